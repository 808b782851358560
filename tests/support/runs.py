"""Runs of the one loop as the tests need them: noise from seeds, tables on the device, nothing computed at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
    unknown=None,
    **settings,
) -> Tensor:
    """Tokens of one call of ``sample``; image k has the seed ``3 + k`` unless ``seeds`` say otherwise."""
    seeds = image_seeds(3, len(condition)) if seeds is None else tuple(seeds)
    plan = make_plan(method, grid or model.spec.grid, seeds, unknown=unknown)
    return sample(model, plan, condition, SeededNoise(seeds, model.spec.head.channels), **settings)


def positions_of(step: Step) -> Positions:
    """A step's positions as the models take them."""
    return Positions(*(torch.from_numpy(array) for array in (step.known, step.targets, step.context)))


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
