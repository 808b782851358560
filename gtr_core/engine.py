"""How a run evaluates its model: plainly, or with a cache that replaces full evaluations by cheaper ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from .diffusion import Evaluate, guided
from .errors import GtRError
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
