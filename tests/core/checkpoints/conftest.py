"""Fixtures of the checkpoint tests: the golden MAR as tensors and as a file, and how reading a file is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, read_checkpoint
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.mar import MARSpec, infer_mar_spec
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def weights(golden_weights) -> dict[str, torch.Tensor]:
    return golden_weights("mar_tiny_fp16")


@pytest.fixture(scope="session")
def spec(weights) -> MARSpec:
    return infer_mar_spec({name: tuple(t.shape) for name, t in weights.items()}, heads=4)


@pytest.fixture
def good(weights, spec, tmp_path) -> Path:
    """A model's file that nothing is wrong with."""
    save_file(weights, tmp_path / "good.safetensors", metadata=spec_metadata(spec, "ema"))
    return tmp_path / "good.safetensors"


@pytest.fixture(scope="session")
def training_checkpoint(weights) -> dict:
    """What the published training code saves; the raw weights are the averaged ones plus 1."""
    raw = {f"module.{name}": t + 1 for name, t in weights.items()}
    return {"model": raw, "model_ema": weights, "epoch": 7, "args": argparse.Namespace(model="mar", lr=1e-4)}


@pytest.fixture(scope="session")
def refusal() -> Callable[..., str]:
    """The one line with which a file is refused as a model; settings are those of the reader, heads of the spec."""

    def refuse(path: Path, heads: int | None = 4, **settings) -> str:
        with pytest.raises(GtRError) as caught:
            checked_model(read_checkpoint(path, **settings), heads=heads)
        text = str(caught.value)
        assert "\n" not in text
        return text

    return refuse
