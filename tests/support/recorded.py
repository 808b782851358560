"""Recorded runs of the original code: how they are compared, and their noise as a noise source."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def positions(mask: Tensor, value: bool) -> Tensor:
    """Row-wise positions where a (B, L) mask has this value."""
    return torch.stack([torch.nonzero(row.bool() == value)[:, 0] for row in mask])


@dataclass
class RecordedNoise:
    """Noise as recorded: one array of rows (image-major) per AR step."""

    arrays: dict[str, Tensor]
    batch: int

    def draw(self, step, tokens, diffusion_steps):
        init, steps = self.arrays[f"it{step:02d}_init"], self.arrays[f"it{step:02d}_steps"]
        shape = (self.batch, tokens, init.shape[-1])
        return init.view(shape), steps[:, : self.batch * tokens].reshape(diffusion_steps, *shape)
