"""The reference implementation: the plainest faithful way to run a model, as the original code does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..diffusion.chain import Chains, Evaluate, OnStep, denoise_in_turn, guided
from ..models.model import Positions
from ..models.spec import ModelSpec
from ..plans.plan import Plan, Step
from .evaluator import Run


@dataclass(frozen=True)
class Reference:
    """The yardstick of ``bench`` and of the tests, chosen like a cache.

    Every block at every position, every diffusion step's embeddings and modulations anew, one chain after the other,
    nothing remembered between AR steps.
    """

    accelerated: ClassVar[bool] = False
    own_head: ClassVar[bool] = True

    def start(self, run: Run) -> ReferenceEvaluator:
        return ReferenceEvaluator(run, run.model.embed(run.conditions, run.runtime.device, run.runtime.dtype))

    def flops(self, plan: Plan, step: Step, spec: ModelSpec) -> None:
        """Those of a full evaluation."""

    def kept_bytes(self, plan: Plan, spec: ModelSpec, itemsize: int) -> int:
        return 0

    def summary(self, plan: Plan, spec: ModelSpec) -> str:
        return ""


@dataclass(frozen=True, eq=False)
class ReferenceEvaluator:
    """See :class:`Reference`; ``embedded`` are the conditions, one per guidance branch."""

    run: Run
    embedded: tuple[Tensor, ...]

    def conditioning(self, step: Step, tokens: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        return self.run.model.reference(tokens, positions, self.embedded[: step.branches], self.run.plan.grid)

    def diffuse(self, step: Step, z: tuple[Tensor, ...], chains: Chains, on_step: OnStep) -> Tensor:
        def evaluator(rows: tuple[Tensor, ...], steps: int) -> Evaluate:
            uncond = rows[1] if len(rows) > 1 else None
            return lambda i, x, t: guided(self.run.model.head, x, t, rows[0], uncond, step.scale)

        return denoise_in_turn(evaluator, z, chains, on_step)
