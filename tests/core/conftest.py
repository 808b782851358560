"""Fixtures of the core tests: golden arrays, the tiny models that produced them, and a seeded one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.models import Model, build, infer_spec
from gtr_tests.models import seeded_mar
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
def golden_layout():
    """Names and shapes of a published state dict, by name, in the order of its file."""
    layouts = {}
    for name in ("state_dict_layouts", "detok_layouts"):
        layouts |= json.loads((GOLDEN / f"{name}.json").read_text())
    return lambda name: {key: tuple(shape) for key, shape in layouts[name].items()}


@pytest.fixture(scope="session")
def golden_model(golden_weights):
    """Builds the model of a golden state dict: by name, with its number of heads and changes of its spec."""

    def load(name: str, heads: int, **changes) -> Model:
        weights = golden_weights(name)
        spec = infer_spec({key: tuple(t.shape) for key, t in weights.items()}, {}, heads=heads)
        model = build(replace(spec, **changes))
        model.load_state_dict(weights)
        return model.eval().requires_grad_(False)

    return load


@pytest.fixture(scope="session")
def tiny_mar(golden_model) -> Model:
    """The golden MAR: 8 x 8 tokens, 10 classes, buffer 8."""
    return golden_model("mar_tiny_fp16", heads=4)


@pytest.fixture(scope="session")
def lazymar_mar(golden_model) -> Model:
    """The golden MAR of LazyMAR's recordings: 16 x 16 tokens."""
    return golden_model("lazymar_tiny_fp16", heads=2)


@pytest.fixture(scope="session")
def lightgen(golden_model) -> Model:
    """The golden LightGen, for texts of 7 positions."""
    return golden_model("lightgen_tiny_fp16", heads=3, text_length=7)


@pytest.fixture(scope="session")
def small_mar() -> Model:
    """A MAR of 6 x 6 tokens and 5 classes with seeded weights."""
    return seeded_mar()
