"""Runs of the one loop as the tests need them: noise from seeds, tables on the device, nothing computed at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gtr_pack.gtr_core.diffusion.chain import ChainGroup, Chains, Evaluate, chain, denoise_in_turn, guided
from gtr_pack.gtr_core.diffusion.head import DiffusionHead
from gtr_pack.gtr_core.models.model import Model, Positions
from gtr_pack.gtr_core.noise import SeededNoise, image_seeds
from gtr_pack.gtr_core.plans.method import Method
from gtr_pack.gtr_core.plans.plan import Step, make_plan
from gtr_pack.gtr_core.sampling.sampler import sample
from torch import Tensor, nn


def run(
    model: Model,
    method: Method,
    condition: Tensor,
    seeds: Sequence[int] | None = None,
    *,
    grid: tuple[int, int] | None = None,
    unknown: np.ndarray | None = None,
    noise: type[SeededNoise] = SeededNoise,
    **settings,
) -> Tensor:
    """Tokens of one call of ``sample``; image k has the seed ``3 + k`` unless ``seeds`` say otherwise."""
    seeds = image_seeds(3, len(condition)) if seeds is None else tuple(seeds)
    plan = make_plan(method, grid or model.spec.grid, seeds, unknown=unknown)
    return sample(model, plan, condition, noise(seeds, model.spec.head.channels), **settings)


def positions_of(step: Step, device: str = "cpu") -> Positions:
    """A step's positions as the models take them."""
    return Positions(*(torch.from_numpy(array).to(device) for array in (step.known, step.targets, step.context)))


def inputs_of(module: nn.Module, action) -> list[torch.Size]:
    """Shapes of what goes into a module while ``action`` runs."""
    shapes = []
    handle = module.register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    try:
        action()
    finally:
        handle.remove()
    return shapes


class MetaNoise(SeededNoise):
    """Noise without numbers, on the meta device: a run then costs shapes and operations only."""

    def draw(self, step, tokens, diffusion_steps):
        shape = (len(self.seeds), tokens, self.channels)
        return torch.empty(shape, device="meta"), torch.empty(diffusion_steps, *shape, device="meta")


def seeded_chains(*groups: tuple[int, int], channels: int = 16) -> Chains:
    """Chains of (rows, steps) each, the longest first, with noise from a generator."""
    generator = torch.Generator().manual_seed(2)
    rows, steps = sum(rows for rows, _ in groups), groups[0][1]
    return Chains(
        tuple(ChainGroup(rows, chain(steps)) for rows, steps in groups),
        torch.randn(rows, channels, generator=generator),
        torch.randn(steps, rows, channels, generator=generator),
    )


def seeded_z(rows: int, branches: int, dim: int = 64) -> tuple[Tensor, ...]:
    """Conditioning vectors (rows, dim) per guidance branch."""
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(rows, dim, generator=generator) for _ in range(branches))


def in_turn(head: DiffusionHead, z: tuple[Tensor, ...], chains: Chains, scale: float) -> Tensor:
    """The plainest way to run the chains of one AR step: one group after the other, every evaluation complete."""

    def evaluator(rows: tuple[Tensor, ...], steps: int) -> Evaluate:
        uncond = rows[1] if len(rows) > 1 else None
        return lambda i, x, t: guided(head, x, t, rows[0], uncond, scale)

    return denoise_in_turn(evaluator, z, chains, lambda j, total: None)
