"""CUDA graphs of the transformer: one recorded evaluation per shape of an AR step, for work so small that starting its
kernels takes longer than they do."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..device import UploadsOnce
from ..diffusion.cuda_graphs import Capture, Graphs
from ..models import Model
from ..models.model import Memory, Positions
from .memory import LARGEST_WORK, block_bytes

# Graphs at a time: as many as the longest of the usual plans has AR steps.
MOST_GRAPHS = 64
# Shapes that were met once are remembered up to this many.
MOST_SHAPES = 1024
# A recording costs several evaluations: a shape is recorded when it was met so often before.
MEETINGS = 1


class NotRecordable(TypeError):
    """A memory that holds something else than tensors, dataclasses, sequences and plain values."""


class StaticMemory:
    """A copy of a run's memory in tensors that stay where they are, for all graphs of runs whose conditions have the
    same shapes."""

    def __init__(self, memory: Memory):
        self.tensors = [t.clone(memory_format=torch.contiguous_format) for t in tensors_of(memory)]
        self.value: Memory = rebuilt(memory, iter(self.tensors))
        self.holds = weakref.ref(memory)

    def load(self, memory: Memory) -> None:
        """The values of another run; nothing is copied where they are there already."""
        if self.holds() is not memory:
            for target, source in zip(self.tensors, tensors_of(memory)):
                target.copy_(source)
            self.holds = weakref.ref(memory)


class EvaluationGraph:
    """One evaluation of the model on inputs of its own. Raises RuntimeError where CUDA cannot record it; without a
    ``capture`` it simply runs, on any device."""

    def __init__(
        self,
        model: Model,
        tokens: Tensor,
        positions: Positions,
        memory: StaticMemory,
        branches: int,
        grid: tuple[int, int],
        capture: Capture | None,
    ):
        self.model, self.memory, self.branches, self.grid = model, memory, branches, grid
        self.tokens = tokens.clone(memory_format=torch.contiguous_format)
        self.positions = Positions(*(t.clone(memory_format=torch.contiguous_format) for t in _tables(positions)))
        self.z: tuple[Tensor, ...] = ()
        self.uploads = UploadsOnce()
        self.used = 0
        self.graph = None
        if capture is not None:
            known, count, itemsize = positions.known.shape[1], branches * len(tokens), tokens.dtype.itemsize
            needed = block_bytes(model.spec, count * (model.spec.buffer + positions.count), itemsize)
            needed += count * model.spec.reader_bytes(known, itemsize)
            self.graph = capture.record(tokens.device, self._evaluate, self._forget, needed)

    def replay(self, tokens: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        """z of these inputs, (B, T, D) per branch; the next call overwrites it."""
        self.tokens.copy_(tokens)
        for target, source in zip(_tables(self.positions), _tables(positions)):
            target.copy_(source)
        if self.graph is None:
            self._evaluate()
        else:
            self.graph.replay()
        return self.z

    def _evaluate(self) -> None:
        with self.uploads:
            self.z = self.model(self.tokens, self.positions, self.memory.value.first(self.branches), self.grid)

    def _forget(self) -> None:
        self.z = ()
        self.uploads.complete()


class TransformerGraphs(Graphs[EvaluationGraph]):
    """The graphs of a model's evaluations. Without a ``capture`` nothing is recorded: evaluations simply run on the
    buffers. A shape is recorded when it was met ``meetings`` times before."""

    def __init__(self, model: Model, capture: Capture | None = None, *, meetings: int = MEETINGS):
        super().__init__("CUDA graphs of the transformer", capture)
        self.model, self.meetings = model, meetings
        self.met: dict[Any, int] = {}
        self.memories: weakref.WeakValueDictionary[Any, StaticMemory] = weakref.WeakValueDictionary()
        self.current: weakref.ref[Memory] | None = None
        self.run = 0

    def evaluate(
        self, tokens: Tensor, positions: Positions, memory: Memory, branches: int, grid: tuple[int, int]
    ) -> tuple[Tensor, ...] | None:
        """What ``model(tokens, positions, memory.first(branches), grid)`` gives; None where there is no graph for it.

        ``memory`` is the run's whole one. The result stands until the next call.
        """
        if not self.usable or work(self.model, positions, branches) > LARGEST_WORK:
            return None
        if not type(memory).__weakrefoffset__:
            return None  # what cannot be watched could be mistaken for the next run's
        try:
            shape = structure_of(memory)
        except NotRecordable:
            return None
        self._notice(memory)
        key = (tokens.shape, tokens.dtype, *(t.shape for t in _tables(positions)), branches, grid, shape)
        if key not in self.graphs and not (self._met_often(key) and self._has_room()):
            return None

        def record() -> EvaluationGraph:
            static = self.memories.get(shape)
            if static is None:
                static = self.memories[shape] = StaticMemory(memory)
            static.load(memory)
            return EvaluationGraph(self.model, tokens, positions, static, branches, grid, self.capture)

        graph = self.recorded(key, record)
        if graph is None:
            return None
        graph.used = self.run
        graph.memory.load(memory)
        return graph.replay(tokens, positions)

    def clear(self) -> None:
        super().clear()
        self.met.clear()

    def _notice(self, memory: Memory) -> None:
        """Counts runs by their memories."""
        if self.current is None or self.current() is not memory:
            self.current = weakref.ref(memory)
            self.run += 1

    def _met_often(self, key: Any) -> bool:
        if len(self.met) >= MOST_SHAPES:
            self.met.clear()
        before = self.met.get(key, 0)
        self.met[key] = before + 1
        return before >= self.meetings

    def _has_room(self) -> bool:
        """Where there are as many as may be, the one that was used longest ago goes, unless the run before this one
        used it: a plan of more shapes would record all of them anew in every run."""
        if len(self.graphs) < MOST_GRAPHS:
            return True
        oldest = min(self.graphs, key=lambda key: self.graphs[key].used)
        if self.graphs[oldest].used + 1 >= self.run:
            return False
        del self.graphs[oldest]
        return True


def work(model: Model, positions: Positions, branches: int) -> int:
    """Rows of an evaluation times the square of their width."""
    spec = model.spec
    return branches * len(positions.targets) * (spec.buffer + positions.count) * spec.dim**2


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in dataclasses and sequences, in order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in _parts(value):
            yield from tensors_of(part)


def structure_of(value: Any) -> Any:
    """Equal for values that differ in the numbers of their tensors only. Raises NotRecordable."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if is_dataclass(value) or isinstance(value, (tuple, list)):
        return type(value), tuple(structure_of(part) for part in _parts(value))
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise NotRecordable(f"{type(value).__name__} in a memory")


def rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same value with other tensors in place of its own."""
    if isinstance(value, Tensor):
        return next(tensors)
    if is_dataclass(value):
        return type(value)(*(rebuilt(part, tensors) for part in _parts(value)))
    if isinstance(value, (tuple, list)):
        return type(value)(rebuilt(part, tensors) for part in value)
    return value


def _parts(value: Any) -> tuple:
    if is_dataclass(value):
        return tuple(getattr(value, each.name) for each in fields(value))
    return tuple(value) if isinstance(value, (tuple, list)) else ()


def _tables(positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
    return positions.known, positions.targets, positions.context
