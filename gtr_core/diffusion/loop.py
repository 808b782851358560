"""The chains of one AR step in one loop: the same numbers as one evaluation after another, in fewer operations.

Rows are tokens, ordered by the length of their chains, the longest first: those still running are always the first
ones. Guidance evaluates every row twice, side by side. What does not depend on x is computed before the steps that use
it, for many steps in one matrix product: its weights are read once, not once per step (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..device import upload
from .chain import Chain, Chains, OnStep
from .cuda_graphs import StepGraph, StepGraphs
from .head import DiffusionHead
from .step import Coefficients, advance, coefficients

# A reverse step that multiplies an error of eps by more than this needs a head in float32. It is the first one, by 316
# and more; what follows multiplies by 1.6 at most (docs/upstream.md 1.7).
AMPLIFICATION = 2.0


# Rows of the matrix product that makes the modulations: few enough to stay in a processor's cache.
CHUNK_ROWS = 256


def phases(groups: Iterable[tuple[int, Chain]]) -> Iterator[tuple[int, int, int]]:
    """(first step, end, rows): stretches of steps that the same rows run."""
    rows, start, counts = 0, 0, []
    for count, table in groups:
        rows += count
        counts.append((len(table), rows))
    for length, rows in reversed(counts):
        if length > start:
            yield start, length, rows
            start = length


def exact_steps(groups: Iterable[tuple[int, Chain]]) -> int:
    """How many steps, counted from the first, hold all that amplify an error of eps in some of the chains."""
    return max(
        (
            j + 1
            for _, table in groups
            for j, factor in enumerate((table.mean_x0 * table.sqrt_recipm1)[::-1])
            if factor > AMPLIFICATION
        ),
        default=0,
    )


class HeadLoop:
    """The diffusion of one AR step: ``z`` (n, D) float32 per condition, one or two of them, and its chains.

    ``rounded`` is the head in 16 bit, for the steps that do not amplify its errors; without it all are float32.
    """

    def __init__(
        self,
        head: DiffusionHead,
        z: tuple[Tensor, ...],
        chains: Chains,
        scale: float,
        temperature: float,
        rounded: DiffusionHead | None = None,
    ):
        self.head, self.groups, self.halves, self.scale = head, chains.groups, len(z), scale
        self.main, self.exact = (head, 0) if rounded is None else (rounded, exact_steps(chains.groups))
        device = z[0].device
        self.condition = head.cond_embed(torch.stack(z, dim=1).flatten(0, 1))
        self.times = [
            head.time_embed(upload(torch.tensor(table.timesteps[::-1]), device), torch.float32)
            for _, table in self.groups
        ]
        steps, n = len(self.groups[0][1]), len(chains.init)
        table = torch.zeros(steps, n, 4, device=device)
        self.noise = chains.noise[:steps] * temperature
        start = 0
        for count, chain in self.groups:
            rows = slice(start, start + count)
            table[: len(chain), rows] = coefficients(chain, device)[:, None]
            self.noise[len(chain) - 1 :, rows] = 0
            start += count
        self.table = Coefficients(*table.split(1, dim=-1))
        self.x = chains.init.float().clone()

    def run(self, on_step: OnStep, graphs: StepGraphs | None = None) -> Tensor:
        """All steps; ``on_step(j, steps)`` is called when j steps are done. Tokens (n, C). ``graphs`` are those of the
        head that most steps use."""
        for start, end, rows in phases(self.groups):
            middle = min(max(start, self.exact), end)
            self._phase(self.head, start, middle, rows, on_step)
            graph = graphs.find(rows, self.halves, self.x) if graphs is not None and middle < end else None
            if graph is None:
                self._phase(self.main, middle, end, rows, on_step)
            else:
                self._replay(graph, middle, end, rows, on_step)
        return self.x

    def _phase(self, head: DiffusionHead, start: int, end: int, rows: int, on_step: OnStep) -> None:
        size = max(1, CHUNK_ROWS // (rows * self.halves))
        for first in range(start, end, size):
            for j, modulations in enumerate(self._by_step(head, first, min(first + size, end), rows), start=first):
                advance(
                    head,
                    self.x[:rows],
                    modulations,
                    Coefficients(*(t[j, :rows] for t in self.table)),
                    self.noise[j, :rows],
                    self.halves,
                    self.scale,
                )
                on_step(j + 1, len(self.noise))

    def _replay(self, graph: StepGraph, start: int, end: int, rows: int, on_step: OnStep) -> None:
        graph.x[:rows].copy_(self.x[:rows])
        for first in range(start, end, graph.steps):
            steps = slice(first, min(first + graph.steps, end))
            graph.load(
                self.main.modulations(self._embedding(steps.start, steps.stop, rows)),
                Coefficients(*(t[steps, :rows] for t in self.table)),
                self.noise[steps, :rows],
                self.scale,
            )
            for j in range(steps.start, steps.stop):
                graph.replay()
                on_step(j + 1, len(self.noise))
        self.x[:rows].copy_(graph.x[:rows])

    def _embedding(self, first: int, end: int, rows: int) -> Tensor:
        """Of timestep and condition together, for a stretch of steps: (end - first, rows * halves, width)."""
        times = torch.cat(
            [
                times[first:end, None].expand(-1, count * self.halves, -1)
                for times, (count, _) in zip(self.times, self.groups)
                if len(times) >= end
            ],
            dim=1,
        )
        return times + self.condition[: rows * self.halves]

    def _by_step(self, head: DiffusionHead, first: int, end: int, rows: int) -> Iterable[Iterable[Tensor]]:
        """The layers' modulations, step by step; those of a single step are made layer by layer when asked for."""
        y = self._embedding(first, end, rows)
        if end - first == 1:
            return [head.modulations(y[0])]
        return zip(*(modulation.unbind(0) for modulation in head.modulations(y)))
