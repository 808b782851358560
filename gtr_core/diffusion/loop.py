"""The chains of one AR step in one loop: the same numbers as one evaluation after another, in fewer operations.

Rows are tokens, ordered by the length of their chains, the longest first: those still running are always the first
ones. Guidance evaluates every row twice, side by side. What does not depend on x is computed before the steps that use
it, for many steps in one matrix product: its weights are read once, not once per step (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..device import upload
from .chain import ChainGroup, Chains, OnStep
from .cuda_graphs import SingleStepGraphs, StepGraph, StepGraphs
from .head import DiffusionHead
from .step import Coefficients, advance, coefficients

# A reverse step that multiplies an error of eps by more than this needs a head in float32. It is the first one, by 316
# and more; what follows multiplies by 1.6 at most (docs/upstream.md 1.7).
AMPLIFICATION = 2.0

# Rows of the matrix product that makes the modulations: few enough to stay in a processor's cache.
CHUNK_ROWS = 256


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps ``start`` to ``end - 1`` that the same first ``rows`` run."""

    start: int
    end: int
    rows: int


def stretches(groups: Iterable[ChainGroup]) -> Iterator[Stretch]:
    """The steps of an AR step in stretches, from the first, which all rows run, to the last."""
    lengths, running = [], 0
    for group in groups:
        running += group.rows
        lengths.append((len(group.chain), running))
    start = 0
    for length, rows in reversed(lengths):
        if length > start:
            yield Stretch(start, length, rows)
            start = length


def exact_steps(groups: Iterable[ChainGroup], amplification: float = AMPLIFICATION) -> int:
    """How many steps, counted from the first, hold all that amplify an error of eps in some of the chains."""
    exact = 0
    for group in groups:
        factors = (group.chain.mean_x0 * group.chain.sqrt_recipm1)[::-1]
        exact = max([exact, *(j + 1 for j, factor in enumerate(factors) if factor > amplification)])
    return exact


class HeadLoop:
    """The diffusion of one AR step: ``z`` (n, D) float32 per guidance branch, one or two, and its chains.

    ``low_precision`` is the head in 16 bit, for the steps that amplify its errors by no more than ``amplification``;
    without it all steps are float32.
    """

    def __init__(
        self,
        head: DiffusionHead,
        z: tuple[Tensor, ...],
        chains: Chains,
        scale: float,
        low_precision: DiffusionHead | None = None,
        *,
        amplification: float = AMPLIFICATION,
        chunk_rows: int = CHUNK_ROWS,
    ):
        self.head = head
        self.main = low_precision or head
        self.exact = 0 if low_precision is None else exact_steps(chains.groups, amplification)
        self.groups = chains.groups
        self.steps = chains.steps
        self.branches = len(z)
        self.scale = scale
        self.chunk_rows = chunk_rows
        device = z[0].device
        # The branches of a row lie side by side: (n * branches, width).
        self.condition = head.cond_embed(torch.stack(z, dim=1).flatten(0, 1))
        self.times = [
            head.time_embed(upload(torch.tensor(group.chain.timesteps[::-1]), device), torch.float32)
            for group in self.groups
        ]
        table = torch.zeros(self.steps, len(chains.init), 4, device=device)
        self.noise = chains.noise[: self.steps].clone()
        start = 0
        for group in self.groups:
            rows, length = slice(start, start + group.rows), len(group.chain)
            table[:length, rows] = coefficients(group.chain, device)[:, None]
            self.noise[length - 1 :, rows] = 0  # the last step of a chain adds no noise
            start += group.rows
        self.table = table
        self.x = chains.init.float().clone()

    def run(
        self, on_step: OnStep, graphs: StepGraphs | None = None, exact_graphs: SingleStepGraphs | None = None
    ) -> Tensor:
        """All steps; ``on_step(j, steps)`` is called when j steps are done. Tokens (n, C).

        ``graphs`` are those of the head that most steps use, ``exact_graphs`` those of the head that the first ones do.
        """
        for stretch in stretches(self.groups):
            middle = min(max(stretch.start, self.exact), stretch.end)
            self._run(self.head, exact_graphs, Stretch(stretch.start, middle, stretch.rows), on_step)
            self._run(self.main, graphs, Stretch(middle, stretch.end, stretch.rows), on_step)
        return self.x

    def _run(
        self, head: DiffusionHead, graphs: StepGraphs | SingleStepGraphs | None, stretch: Stretch, on_step: OnStep
    ) -> None:
        """A stretch of steps of one head, which may be empty."""
        if stretch.start == stretch.end:
            return
        graph = None if graphs is None else graphs.find(stretch.rows, self.branches, self.x)
        if graph is None:
            self._advance(head, stretch, on_step)
        else:
            self._replay(graph, stretch, on_step)

    def _advance(self, head: DiffusionHead, stretch: Stretch, on_step: OnStep) -> None:
        """A stretch of steps, operation by operation; one chunk of modulations is gone before the next is made."""
        size = max(1, self.chunk_rows // (stretch.rows * self.branches))
        for first in range(stretch.start, stretch.end, size):
            self._advance_chunk(head, Stretch(first, min(first + size, stretch.end), stretch.rows), on_step)

    def _advance_chunk(self, head: DiffusionHead, chunk: Stretch, on_step: OnStep) -> None:
        rows = chunk.rows
        for j, modulations in enumerate(self._modulations_by_step(head, chunk), start=chunk.start):
            step = Coefficients(*self.table[j, :rows].split(1, dim=-1))
            advance(head, self.x[:rows], modulations, step, self.noise[j, :rows], self.branches, self.scale)
            on_step(j + 1, self.steps)

    def _replay(self, graph: StepGraph, stretch: Stretch, on_step: OnStep) -> None:
        """A stretch of steps by a recorded one."""
        rows = stretch.rows
        graph.x[:rows].copy_(self.x[:rows])
        for first in range(stretch.start, stretch.end, graph.steps):
            chunk = Stretch(first, min(first + graph.steps, stretch.end), rows)
            steps = slice(chunk.start, chunk.end)
            graph.load(self._embedding(chunk), self.table[steps, :rows], self.noise[steps, :rows], self.scale)
            for j in range(chunk.start, chunk.end):
                graph.replay()
                on_step(j + 1, self.steps)
        self.x[:rows].copy_(graph.x[:rows])

    def _embedding(self, stretch: Stretch) -> Tensor:
        """Of timestep and condition together: (steps, rows * branches, width)."""
        times = [
            of_group[stretch.start : stretch.end, None].expand(-1, group.rows * self.branches, -1)
            for of_group, group in zip(self.times, self.groups)
            if len(of_group) >= stretch.end
        ]
        return torch.cat(times, dim=1) + self.condition[: stretch.rows * self.branches]

    def _modulations_by_step(self, head: DiffusionHead, stretch: Stretch) -> Iterable[Iterable[Tensor]]:
        """The layers' modulations, step by step; those of a single step are made layer by layer when asked for."""
        y = self._embedding(stretch)
        if len(y) == 1:
            return [head.modulations(y[0])]
        return zip(*(modulation.unbind(0) for modulation in head.modulations(y)))
