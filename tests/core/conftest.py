"""Fixtures of the core tests: golden arrays and the tiny models that produced them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.models.lightgen import LightGen, infer_lightgen_spec
from gtr_pack.gtr_core.models.mar import MAR, infer_mar_spec
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def golden():
    """Loads a golden .npz by name as torch tensors (float16 noise becomes float32)."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        return {key: t.float() if t.dtype == torch.float16 else t for key, t in tensors.items()}

    return load


@pytest.fixture(scope="session")
def golden_weights():
    """Loads a golden state dict by name, in float32."""
    return lambda name: {key: t.float() for key, t in load_file(GOLDEN / f"{name}.safetensors").items()}


@pytest.fixture(scope="session")
def tiny_mar(golden_weights) -> MAR:
    """The golden MAR: 8 x 8 tokens, 10 classes, buffer 8."""
    weights = golden_weights("mar_tiny_fp16")
    model = MAR(infer_mar_spec({key: tuple(t.shape) for key, t in weights.items()}, heads=4))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def lightgen(golden_weights) -> LightGen:
    """The golden LightGen, for texts of 7 positions."""
    weights = golden_weights("lightgen_tiny_fp16")
    spec = infer_lightgen_spec({name: tuple(t.shape) for name, t in weights.items()}, heads=3)
    model = LightGen(replace(spec, text_length=7))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)
