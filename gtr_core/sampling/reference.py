"""How a run evaluates its model: plainly, or with a cache that replaces full evaluations by cheaper ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.chain import Chains, Evaluate, OnStep, denoise_in_turn, guided
from ..models import Model
from ..models.lightgen import LightGen
from ..plans.method import Guidance
from ..plans.plan import Plan
from .evaluator import Engine


@dataclass(frozen=True)
class Reference:
    """The plainest faithful way to run a model, as upstream does: the yardstick of ``bench`` and of the tests.

    Every block at every position, every diffusion step's embeddings and modulations anew, one chain after the other;
    LightGen's guidance halves go through everything separately.
    """

    def start(self, model: Model, plan: Plan, guidance: Guidance) -> Engine:
        return ReferenceLightGen(model, plan) if isinstance(model, LightGen) else ReferenceMAR(model, plan)


@dataclass(frozen=True)
class ReferenceMAR:
    """See :class:`Reference`."""

    model: Model
    plan: Plan

    def conditioning(
        self, index: int, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor], conditions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        known, targets, context = (t.repeat(len(conditions), 1) for t in tables)
        encoded = self.model.encode(tokens.repeat(len(conditions), 1, 1), known, torch.cat(list(conditions)))
        decoded = self.model.decode(encoded, known, torch.cat([targets, context], dim=1))
        start = self.model.spec.buffer + known.shape[1]
        z = (
            decoded[:, start:]
            + self.model.diffusion_pos_embed_learned[0].to(decoded)[torch.cat([targets, context], dim=1)]
        )
        return z[:, : targets.shape[1]].chunk(len(conditions))

    def diffuse(
        self, z: tuple[Tensor, ...], chains: Chains, scale: float, temperature: float, on_step: OnStep
    ) -> Tensor:
        def evaluator(rows: tuple[Tensor, ...], steps: int) -> Evaluate:
            uncond = rows[1] if len(rows) > 1 else None
            return lambda i, x, t: guided(self.model.head, x, t, rows[0], uncond, scale)

        return denoise_in_turn(evaluator, z, chains, temperature, on_step)


class ReferenceLightGen(ReferenceMAR):
    """See :class:`Reference`."""

    def conditioning(
        self, index: int, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor], conditions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        known, targets, context = tables
        masked, grid = torch.cat([targets, context], dim=1), self.plan.grid
        positions, start = torch.cat([known, masked], dim=1), known.shape[1]

        def half(text: Tensor) -> Tensor:
            decoded = self.model.decode(self.model.encode(tokens, known, grid), known, masked, grid)
            return self.model.read_text(decoded, positions, text, grid)[:, start : start + targets.shape[1]]

        return tuple(half(text) for text in conditions)
