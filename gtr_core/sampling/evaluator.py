"""How a run evaluates its model: plainly here, or with a cache that replaces full evaluations by cheaper ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..device import Runtime, upload
from ..diffusion.chain import Chains, OnStep
from ..diffusion.loop import HeadLoop
from ..models import Model
from ..models.model import Memory, Positions
from ..models.prompts import Condition
from ..plans.plan import Plan, Step
from .acceleration import Prepared
from .memory import images_at_once


@dataclass(frozen=True, eq=False)
class Run:
    """What one call of ``sample`` evaluates. ``conditions`` are one per guidance branch, None for what the model takes
    for no condition."""

    prepared: Prepared
    plan: Plan
    conditions: tuple[Condition | None, ...]
    runtime: Runtime

    @property
    def model(self) -> Model:
        return self.prepared.model


class Evaluator(Protocol):
    """The model's evaluations of one run."""

    def conditioning(self, step: Step, tokens: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        """z (B, T, D) of an AR step's targets, one tensor per guidance branch that the step needs.

        ``tokens`` (B, L, C) are in the transformer's dtype and hold values at the known positions. The result stands
        until the next call.
        """

    def diffuse(self, step: Step, z: tuple[Tensor, ...], chains: Chains, on_step: OnStep) -> Tensor:
        """The diffusion of one AR step: z (n, D) float32 per branch -> tokens (n, C), rows in the chains' order.

        ``on_step(j, total)`` is called when j of ``total`` steps are done.
        """


@dataclass(frozen=True, eq=False)
class DirectEvaluator:
    """What a run uses without a cache: all that counts is computed, and nothing twice (docs/performance.md)."""

    run: Run
    memory: Memory

    @classmethod
    def start(cls, run: Run) -> DirectEvaluator:
        return cls(run, run.model.start(run.conditions, run.runtime.device, run.runtime.dtype))

    def conditioning(self, step: Step, tokens: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        memory, grid = self.memory.first(step.branches), self.run.plan.grid
        shared = shared_first_step(self.run.plan) if step.index == 0 else None
        if shared is not None:
            masked, places = (upload(torch.from_numpy(array), tokens.device) for array in shared)
            z = self.run.model.first_step(tokens, masked, places, memory, grid, self.in_parts)
            if z is not None:
                return z
        graphs = self.run.prepared.transformer
        z = None if graphs is None else graphs.evaluate(tokens, positions, self.memory, step.branches, grid)
        if z is not None:
            return z
        return self.in_parts(
            len(tokens),
            positions.count,
            step.branches,
            lambda rows: self.run.model(tokens[rows], positions.images(rows), memory.images(rows), grid),
        )

    def in_parts(
        self, images: int, positions: int, branches: int, evaluate: Callable[[slice], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """``evaluate`` of as many of the ``images`` at a time as pay, in order."""
        size = images_at_once(self.run.model.spec, positions, branches, self.run.runtime)
        return joined([evaluate(slice(start, start + size)) for start in range(0, images, size)])

    def diffuse(self, step: Step, z: tuple[Tensor, ...], chains: Chains, on_step: OnStep) -> Tensor:
        prepared = self.run.prepared
        loop = HeadLoop(prepared.model.head, z, chains, step.scale, prepared.low_precision)
        return loop.run(on_step, prepared.graphs, prepared.exact_graphs)


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """z per guidance branch of all parts of a batch."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(branch) for branch in zip(*parts))


def shared_first_step(plan: Plan) -> tuple[np.ndarray, np.ndarray] | None:
    """Positions (1, M) that all images of a batch have masked while nothing is known, ascending, and the places (B, T)
    of the first step's targets among them. None where a token is known, or for a single image."""
    step = plan.steps[0]
    if plan.batch == 1 or step.known.shape[1]:
        return None
    masked = np.sort(np.concatenate([step.targets, step.context], axis=1), axis=1)
    if (masked != masked[:1]).any():
        return None
    return masked[:1], np.searchsorted(masked[0], step.targets)
