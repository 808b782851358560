"""Models with weights from an explicit generator, the same in every process."""

from __future__ import annotations

from typing import TypeVar

import torch
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec
from gtr_pack.gtr_core.diffusion.head import HeadSpec
from gtr_pack.gtr_core.models.latents import LatentSpec
from gtr_pack.gtr_core.models.mar import MAR, MARSpec
from torch import nn

Module = TypeVar("Module", bound=nn.Module)

# Small enough for dozens of runs in a second; its noise process ends early, so that nothing amplifies.
SMALL_MAR = MARSpec(
    name="small",
    grid=(6, 6),
    dim=32,
    heads=2,
    encoder_depth=2,
    decoder_depth=2,
    classes=5,
    buffer=4,
    head=HeadSpec(4, 32, 32, 2),
    latent=LatentSpec(channels=4),
    diffusion=DiffusionSpec(beta_cap=0.2),
)


def seeded_mar(dtype: torch.dtype | None = None) -> MAR:
    """The small MAR; its head is float32 whatever ``dtype`` the transformer has."""
    return seeded(MAR(SMALL_MAR, dtype=dtype))


def seeded(module: Module, seed: int = 1) -> Module:
    """Every parameter drawn, one after another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval().requires_grad_(False)
