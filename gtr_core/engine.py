"""How a run evaluates its model: plainly, or with a cache that replaces full evaluations by cheaper ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .diffusion import Evaluate, guided
from .errors import GtRError
from .lightgen import LightGen
from .models import Model
from .plan import Plan

GUIDANCE_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: ``scale`` 1 = off; ``linear`` grows with the decoded part (docs/upstream.md 1.9)."""

    scale: float = 1.0
    schedule: str = "linear"

    def __post_init__(self) -> None:
        if self.schedule not in GUIDANCE_SCHEDULES:
            raise GtRError(f"guidance schedule '{self.schedule}': expected one of {', '.join(GUIDANCE_SCHEDULES)}")
        if not np.isfinite(self.scale):
            raise GtRError(f"guidance scale {self.scale}: expected a finite number")

    @property
    def enabled(self) -> bool:
        return self.scale != 1.0

    def at(self, progress: float) -> float:
        """The scale of an AR step with ``progress`` in [0, 1]."""
        return self.scale if self.schedule == "constant" else 1 + (self.scale - 1) * progress


class Engine(Protocol):
    """The model's evaluations of one run."""

    def conditioning(self, index: int, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor],
                     conditions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """z of AR step ``index``, one per condition; ``tables`` are its known, target and context positions."""

    def evaluator(self, z: tuple[Tensor, ...], scale: float, steps: int) -> Evaluate:
        """The head's evaluations for one chain of ``steps`` steps; z (n, D), conditional and maybe unconditional."""


class Cache(Protocol):
    """Settings of a cache; they start an engine per run, which holds all state."""

    def start(self, model: Model, plan: Plan, guidance: Guidance) -> Engine: ...


@dataclass(frozen=True)
class Plain:
    """Every evaluation in full."""

    model: Model
    plan: Plan

    def conditioning(self, index: int, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor],
                     conditions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self.model(tokens, *tables, conditions, self.plan.grid)

    def evaluator(self, z: tuple[Tensor, ...], scale: float, steps: int) -> Evaluate:
        uncond = z[1] if len(z) > 1 else None
        return lambda i, x, t: guided(self.model.head, x, t, z[0], uncond, scale)


@dataclass(frozen=True)
class Reference:
    """The plainest faithful way to run a model, as upstream does: the yardstick of ``bench``.

    LightGen's guidance halves go through everything separately, and the text is read at every position. MAR is run
    plainly anyway.
    """

    def start(self, model: Model, plan: Plan, guidance: Guidance) -> Engine:
        return ReferenceLightGen(model, plan) if isinstance(model, LightGen) else Plain(model, plan)


class ReferenceLightGen(Plain):
    """See :class:`Reference`."""

    def conditioning(self, index: int, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor],
                     conditions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        known, targets, context = tables
        masked, grid = torch.cat([targets, context], dim=1), self.plan.grid
        positions, start = torch.cat([known, masked], dim=1), known.shape[1]

        def half(text: Tensor) -> Tensor:
            decoded = self.model.decode(self.model.encode(tokens, known, grid), known, masked, grid)
            return self.model.read_text(decoded, positions, text, grid)[:, start:start + targets.shape[1]]

        return tuple(half(text) for text in conditions)
