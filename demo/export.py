"""From checkpoints to the shipped files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gtr_core.metadata import spec_metadata
from gtr_core.spec import MARSpec, VAESpec
from gtr_core.vae import KLVAE

from . import runs

GROUPS = 32


def widen(narrow: KLVAE) -> KLVAE:
    """The same function in the shape that LDM files have: 32 norm groups, the new channels all zero.

    Groups keep their number of channels, so the old groups see what they saw before and the new ones see zeros.
    Attention divides by the root of the width; the query makes up for it.
    """
    spec = narrow.spec
    factor = GROUPS // spec.groups
    wide = KLVAE(wide_spec(spec))
    weights = {}
    for name, target in wide.state_dict().items():
        source = narrow.state_dict()[name].detach()
        if ".q." in name:
            source = source * math.sqrt(factor)
        fill = torch.ones_like(target) if "norm" in name and name.endswith("weight") else torch.zeros_like(target)
        fill[tuple(slice(size) for size in source.shape)] = source
        weights[name] = fill
    wide.load_state_dict(weights)
    return wide.eval()


def wide_spec(spec: VAESpec) -> VAESpec:
    return replace(spec, channels=spec.channels * GROUPS // spec.groups, groups=GROUPS)


def shipped_dtype(name: str) -> torch.dtype:
    """Half precision for the transformer; the head is float32, its errors are amplified by the diffusion chain."""
    return torch.float32 if name.startswith("diffloss.") else torch.float16


def save_mar(path: Path, weights: dict[str, Tensor], spec: MARSpec) -> None:
    tensors = {name: value.detach().cpu().to(shipped_dtype(name)).contiguous() for name, value in weights.items()}
    runs.replace_file(path, lambda temporary: save_file(tensors, temporary, metadata=spec_metadata(spec, "ema")))


def save_vae(path: Path, vae: KLVAE) -> None:
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in widen(vae).state_dict().items()}
    runs.replace_file(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
