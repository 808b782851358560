"""Recorded runs of the original code: how they are compared, and their noise as a noise source."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import Plan, plan_from_sequences
from gtr_pack.gtr_core.plans.schedule import Schedule, cosine_counts
from torch import Tensor


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def positions(mask: Tensor, value: bool) -> Tensor:
    """Row-wise positions where a (B, L) mask has this value."""
    return torch.stack([torch.nonzero(row.bool() == value)[:, 0] for row in mask])


def recorded_plan(g: dict[str, Tensor], grid: tuple[int, int], guidance: Guidance, temperature: float) -> Plan:
    """The plan of a recorded run of 20 diffusion steps per token: upstream's orders are consumed from their end."""
    sequence, steps = g["orders"].numpy()[:, ::-1], len(g["cfg_iter"])
    schedule = Schedule("recorded", "random", (steps,), diffusion=(20, 20, 20))
    method = Method(schedule, guidance, temperature=temperature)
    return plan_from_sequences(method, grid, [sequence], [cosine_counts(grid[0] * grid[1], steps)])


@dataclass
class RecordedNoise:
    """Noise as recorded: one array of rows (image-major) per AR step."""

    arrays: dict[str, Tensor]
    batch: int

    def draw(self, step, tokens, diffusion_steps):
        init, steps = self.arrays[f"it{step:02d}_init"], self.arrays[f"it{step:02d}_steps"]
        shape = (self.batch, tokens, init.shape[-1])
        return init.view(shape), steps[:, : self.batch * tokens].reshape(diffusion_steps, *shape)
