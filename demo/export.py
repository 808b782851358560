"""From checkpoints to the shipped files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gtr_core.checkpoints.metadata import spec_metadata, vae_metadata
from gtr_core.models.mar import MARSpec
from gtr_core.models.vae import KLVAE

from . import runs


def shipped_dtype(name: str) -> torch.dtype:
    """Half precision for the transformer; the head is float32, its errors are amplified by the diffusion chain."""
    return torch.float32 if name.startswith("diffloss.") else torch.float16


def save_mar(path: Path, weights: dict[str, Tensor], spec: MARSpec) -> None:
    tensors = {name: value.detach().cpu().to(shipped_dtype(name)).contiguous() for name, value in weights.items()}
    runs.replace_file(path, lambda temporary: save_file(tensors, temporary, metadata=spec_metadata(spec, "ema")))


def save_vae(path: Path, vae: KLVAE) -> None:
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in vae.state_dict().items()}
    runs.replace_file(path, lambda temporary: save_file(tensors, temporary, metadata=vae_metadata(vae.spec)))
