"""How a run evaluates its model: plainly, or with a cache that replaces full evaluations by cheaper ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..device import upload
from ..diffusion.chain import Chains, OnStep
from ..diffusion.cuda_graphs import StepGraphs
from ..diffusion.head import DiffusionHead
from ..diffusion.loop import HeadLoop
from ..models import Model
from ..models.lightgen import LightGen
from ..plans.plan import Plan
from .acceleration import Prepared
from .memory import images_at_once


class Engine(Protocol):
    """The model's evaluations of one run."""

    def conditioning(
        self, index: int, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor], conditions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """z of AR step ``index``, one per condition; ``tables`` are its known, target and context positions."""

    def diffuse(
        self, z: tuple[Tensor, ...], chains: Chains, scale: float, temperature: float, on_step: OnStep
    ) -> Tensor:
        """The diffusion of one AR step: z (n, D), conditional and maybe unconditional -> tokens (n, C).

        ``on_step(j, total)`` is called when j of ``total`` steps are done.
        """


@dataclass(eq=False)
class Direct:
    """What a run uses without a cache: all that counts is computed, and nothing twice (docs/performance.md)."""

    model: Model
    plan: Plan
    graphs: StepGraphs | None = None
    rounded: DiffusionHead | None = None

    def conditioning(
        self, index: int, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor], conditions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        shared = common_canvas(self.plan) if index == 0 else None
        if shared is None:
            return self.evaluate(tokens, tables, conditions)
        masked, places = (upload(torch.from_numpy(array), tokens.device) for array in shared)
        return self.evaluate_canvas(tokens, masked, places, tables, conditions)

    def evaluate(
        self, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor], conditions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """z of the targets (B, T, D), one per condition."""
        return self._in_parts(
            tokens,
            tables,
            len(conditions),
            lambda part: self.model(
                tokens[part], *(table[part] for table in tables), [each[part] for each in conditions], self.plan.grid
            ),
        )

    def evaluate_canvas(
        self,
        tokens: Tensor,
        masked: Tensor,
        places: Tensor,
        tables: tuple[Tensor, Tensor, Tensor],
        conditions: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """The same before anything is known: every different condition once, at all positions ``masked`` (1, M);
        ``places`` (B, T) are the targets' among them."""
        rows = [once(condition) for condition in conditions]
        batch = sum(map(len, rows))
        if batch == len(rows) * len(tokens):
            return self.evaluate(tokens, tables, conditions)
        tokens, masked, stacked = tokens[:1].expand(batch, -1, -1), masked.expand(batch, -1), torch.cat(rows)
        empty = masked[:, :0]
        (z,) = self._in_parts(
            tokens,
            (empty, masked, empty),
            1,
            lambda part: self.model(
                tokens[part], empty[part], masked[part], empty[part], [stacked[part]], self.plan.grid
            ),
        )
        return tuple(pick(half, places) for half in z.split([len(part) for part in rows]))

    def _in_parts(
        self,
        tokens: Tensor,
        tables: tuple[Tensor, Tensor, Tensor],
        halves: int,
        evaluate: Callable[[slice], tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """``evaluate`` of as many images at a time as pay, in order."""
        size = images_at_once(
            self.model.spec, sum(table.shape[1] for table in tables), halves, tokens.dtype.itemsize, tokens.device
        )
        parts = [evaluate(slice(start, start + size)) for start in range(0, len(tokens), size)]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(half) for half in zip(*parts))

    def diffuse(
        self, z: tuple[Tensor, ...], chains: Chains, scale: float, temperature: float, on_step: OnStep
    ) -> Tensor:
        return HeadLoop(self.model.head, z, chains, scale, temperature, self.rounded).run(on_step, self.graphs)


@dataclass(eq=False)
class DirectLightGen(Direct):
    """The same; what the cross-attention reads of the text is computed once per run."""

    text: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)  # by how many conditions are read

    def evaluate(
        self, tokens: Tensor, tables: tuple[Tensor, Tensor, Tensor], conditions: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        def part(images: slice) -> tuple[Tensor, ...]:
            known, targets, context = (table[images] for table in tables)
            decoded = self.model.decode_targets(tokens[images], known, targets, context, self.plan.grid)
            return self._read(decoded, targets, conditions, images)

        return self._in_parts(tokens, tables, len(conditions), part)

    def evaluate_canvas(
        self,
        tokens: Tensor,
        masked: Tensor,
        places: Tensor,
        tables: tuple[Tensor, Tensor, Tensor],
        conditions: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        empty = masked[:, :0]
        decoded = self.model.decode_targets(tokens[:1], empty, masked, empty, self.plan.grid)
        return self._in_parts(
            tokens,
            tables,
            len(conditions),
            lambda images: self._read(pick(decoded, places[images]), tables[1][images], conditions, images),
        )

    def _read(
        self, decoded: Tensor, targets: Tensor, conditions: Sequence[Tensor], images: slice
    ) -> tuple[Tensor, ...]:
        """z of some ``images`` of the batch, whose rows ``decoded`` and ``targets`` are."""
        halves = len(conditions)
        if halves not in self.text:
            self.text[halves] = self.model.remember(torch.cat(list(conditions)))
        text = [
            tuple(t.unflatten(0, (halves, -1))[:, images].flatten(0, 1) for t in pair) for pair in self.text[halves]
        ]
        return self.model.read(decoded.repeat(halves, 1, 1), targets.repeat(halves, 1), text, self.plan.grid).chunk(
            halves
        )


def direct(prepared: Prepared, plan: Plan) -> Direct:
    """The engine of a run without a cache."""
    kind = DirectLightGen if isinstance(prepared.model, LightGen) else Direct
    return kind(prepared.model, plan, prepared.graphs, prepared.rounded)


def once(condition: Tensor) -> Tensor:
    """The rows (B, ...) of a condition, or the one of which all are views."""
    return condition[:1] if condition.stride(0) == 0 else condition


def pick(values: Tensor, places: Tensor) -> Tensor:
    """Rows ``places`` (B, T) of values (B or 1, M, D): (B, T, D)."""
    return values.expand(len(places), -1, -1).gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def common_canvas(plan: Plan) -> tuple[np.ndarray, np.ndarray] | None:
    """Positions (1, M) that all images of a batch have masked while nothing is known, ascending, and the places (B, T)
    of the first step's targets among them. None where a token is known, or for a single image."""
    step = plan.steps[0]
    if plan.batch == 1 or step.known.shape[1]:
        return None
    masked = np.sort(np.concatenate([step.positions, step.context], axis=1), axis=1)
    if (masked != masked[:1]).any():
        return None
    return masked[:1], np.searchsorted(masked[0], step.positions)
