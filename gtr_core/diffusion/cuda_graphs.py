"""CUDA graphs: what is recorded once and replayed, among it one step of the diffusion head per number of rows.

A graph holds addresses: it is used only while the weights stay where they are, and it lives as long as what a run
prepared.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from .head import DiffusionHead
from .step import Coefficients, advance

logger = logging.getLogger("gtr_mar")
Recorded = TypeVar("Recorded")

# Tokens that a graph is recorded for; fewer are filled up. Above it is multiples of COARSE tokens, up to LARGEST; more
# run without a graph: there the work is large enough.
BUCKETS = (4, 8, 16, 32, 64, 128)
COARSE, LARGEST = 32, 1024
# The same for a head of which single steps run in float32: their modulations are twice as large.
LARGEST_EXACT = 256
# Tokens up to which such a step is recorded for each number: 8 rows take 17 us a product on an H100, 4 to 6 take 12.
FEW = 8

# Evaluated rows of modulations that the graphs' common buffer holds.
BUFFER_ROWS = 512

# Bytes that the driver must have left for a recording: its memory is new. One that fails for want of memory leaves
# torch's allocator unusable for the rest of the process (pytorch/pytorch 180395).
MARGIN = 256 * 2**20

# Rounding may take Triton's kernels so far from torch's own operations, as a part of the largest number.
TOLERANCE, TOLERANCE_16_BIT = 1e-2, 1e-1
# Rows of modulations that a comparison of both takes: two steps, two branches, four tokens.
CHECKED_ROWS = 16
StepFunction = Callable[[DiffusionHead, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], None]


def advance_counted(
    head: DiffusionHead,
    x: Tensor,
    modulations: Tensor,
    table: Tensor,
    noise: Tensor,
    scale: Tensor,
    counter: Tensor,
    branches: int,
) -> None:
    """One reverse step of the rows x (n, C), in place: the one that ``counter`` (1,) names of ``modulations``
    (steps, n * branches, columns of all layers), ``table`` (steps, n, 4) and ``noise`` (steps, n, C)."""
    now, coefficients, drawn = (t.index_select(0, counter)[0] for t in (modulations, table, noise))
    advance(
        head, x, now.split(head.widths, dim=-1), Coefficients(*coefficients.split(1, dim=-1)), drawn, branches, scale
    )


class StepGraph:
    """One reverse step of up to ``size`` tokens on buffers of its own; a counter on the device says which step.

    ``buffer`` (n, columns of all layers) holds the modulations of as many steps as it has room for. Raises RuntimeError
    where CUDA cannot record the step. Without a ``capture`` it simply runs, on any device.
    """

    def __init__(
        self,
        head: DiffusionHead,
        size: int,
        branches: int,
        buffer: Tensor,
        *,
        capture: Capture | None = None,
        step: StepFunction = advance_counted,
    ):
        self.head, self.branches, self.rows, self.step = head, branches, size * branches, step
        self.steps = len(buffer) // self.rows
        self.modulations = buffer[: self.steps * self.rows].view(self.steps, self.rows, -1).zero_()
        self._make_buffers(size, buffer.device)
        self.graph = None if capture is None else capture.record(self.device, self._step, self.counter.zero_)

    def _make_buffers(self, size: int, device: torch.device) -> None:
        """What a step reads and writes besides modulations."""
        channels, chain = self.head.input_proj.in_features, {"device": device, "dtype": torch.float32}
        self.device = device
        self.x = torch.zeros(size, channels, **chain)
        self.noise = torch.zeros(self.steps, size, channels, **chain)
        self.table = torch.zeros(self.steps, size, 4, **chain)
        self.scale = torch.ones((), **chain)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)

    def load(self, embedding: Tensor, table: Tensor, noise: Tensor, scale: float) -> None:
        """The next k <= ``self.steps`` steps: embedding (k, rows, width), table (k, n, 4) and noise (k, n, C)."""
        self._load_embedding(embedding)
        self.table[: len(noise), : noise.shape[1]].copy_(table)
        self.noise[: len(noise), : noise.shape[1]].copy_(noise)
        self.scale.fill_(scale)
        self.counter.zero_()

    def _load_embedding(self, embedding: Tensor) -> None:
        self.head.write_modulations(embedding, self.modulations[: len(embedding), : embedding.shape[1]])

    def replay(self) -> None:
        """The next step: the recorded one, or operation by operation."""
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()

    def _step(self) -> None:
        self.step(self.head, self.x, self.modulations, self.table, self.noise, self.scale, self.counter, self.branches)
        self.counter += 1


class SingleStepGraph(StepGraph):
    """One reverse step that makes its modulations itself, where a buffer for those of several would be large: of many
    rows, or of a head of which few steps run. Otherwise as above."""

    def __init__(
        self,
        head: DiffusionHead,
        size: int,
        branches: int,
        device: torch.device,
        *,
        capture: Capture | None = None,
        step: StepFunction = advance_counted,
    ):
        self.head, self.branches, self.rows, self.step, self.steps = head, branches, size * branches, step, 1
        self.embedding = torch.zeros(1, self.rows, head.spec.width, device=device, dtype=torch.float32)
        self._make_buffers(size, device)
        needed = self.rows * sum(head.widths) * head.dtype.itemsize
        self.graph = None if capture is None else capture.record(device, self._step, self.counter.zero_, needed)

    def _load_embedding(self, embedding: Tensor) -> None:
        self.embedding[:, : embedding.shape[1]].copy_(embedding)

    def _step(self) -> None:
        modulations = self.embedding.new_empty(1, self.rows, sum(self.head.widths), dtype=self.head.dtype)
        self.head.write_modulations(self.embedding, modulations)
        self.step(self.head, self.x, modulations, self.table, self.noise, self.scale, self.counter, self.branches)


class Capture:
    """Records graphs on a CUDA device: they share a pool of memory, as they never run at once, and with all others of
    the process one stream, as torch keeps a workspace for every stream that ever multiplied matrices."""

    def __init__(self) -> None:
        self.pool: tuple[int, int] | None = None

    def record(
        self, device: torch.device, action: Callable[[], object], reset: Callable[[], object], needed: int = 0
    ) -> torch.cuda.CUDAGraph:
        """A graph of ``action``, which runs once beforehand; ``reset`` undoes what that did. It may take up to
        ``needed`` bytes more than what every recording may.

        Raises RuntimeError where CUDA cannot record it, or has no memory left to do so safely.
        """
        stream = capture_stream(device)
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        check_margin(device, needed)
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream), collector_held():
            action()  # libraries allocate their workspaces outside the recording
            reset()
            # What other threads ask of the device meanwhile neither breaks the recording nor fails.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                action()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)
        return graph


@lru_cache(maxsize=None)
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that graphs are recorded on."""
    return torch.cuda.Stream(device)


def check_margin(device: torch.device, needed: int = 0) -> None:
    """Raises RuntimeError where the driver has less than MARGIN and ``needed`` bytes left, with torch's own reserves
    given back."""
    margin = MARGIN + needed
    free, _ = torch.cuda.mem_get_info(device)
    if free < margin:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
    if free < margin:
        raise RuntimeError(f"{free / 2**20:.0f} MiB of the device's memory are free, {margin / 2**20:.0f} are needed")


@contextmanager
def collector_held() -> Iterator[None]:
    """Python's collector may free a graph or memory of the device, which a recording does not survive."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Graphs(Generic[Recorded]):
    """Recordings by a key. After a failure there are none, with one line in the log about ``what``."""

    def __init__(self, what: str, capture: Capture | None):
        self.what, self.capture, self.usable = what, capture, True
        self.graphs: dict[Hashable, Recorded] = {}

    def recorded(self, key: Hashable, record: Callable[[], Recorded]) -> Recorded | None:
        """The graph of a key, recorded when first asked for; None where there is none."""
        if not self.usable:
            return None
        if key not in self.graphs:
            try:
                self.graphs[key] = record()
            except RuntimeError as error:
                self.usable = False
                self.clear()
                logger.warning("%s are off for this run: %s", self.what, str(error).partition("\n")[0])
                return None
        return self.graphs[key]

    def clear(self) -> None:
        """Frees all of them."""
        self.graphs.clear()


class StepGraphs(Graphs[StepGraph]):
    """The graphs of a head's steps, many of which run one after another. Without a ``capture`` nothing is recorded: the
    steps simply run on the same buffers."""

    def __init__(self, head: DiffusionHead, capture: Capture | None = None):
        super().__init__("CUDA graphs", capture)
        self.head, self.step = head, advance_counted
        self.buffer: Tensor | None = None

    def find(self, tokens: int, branches: int, like: Tensor) -> StepGraph | None:
        """The graph for so many tokens, recorded when first asked for; None where there is none."""
        size = bucket(tokens)
        return None if size is None else self.recorded((size, branches), lambda: self._record(size, branches, like))

    def clear(self) -> None:
        super().clear()
        self.buffer = None

    def _record(self, size: int, branches: int, like: Tensor) -> StepGraph:
        if self.buffer is None:
            self.buffer = like.new_zeros(BUFFER_ROWS, sum(self.head.widths), dtype=self.head.dtype)
            self.step = fastest_step(self.head, self.buffer)
        if size > max(BUCKETS):
            return SingleStepGraph(self.head, size, branches, like.device, capture=self.capture, step=self.step)
        return StepGraph(self.head, size, branches, self.buffer, capture=self.capture, step=self.step)


class SingleStepGraphs(Graphs[SingleStepGraph]):
    """The same of a head of which few steps run at a time."""

    def __init__(self, head: DiffusionHead, capture: Capture | None = None):
        super().__init__("CUDA graphs of the first steps", capture)
        self.head, self.step = head, advance_counted

    def find(self, tokens: int, branches: int, like: Tensor) -> SingleStepGraph | None:
        """The graph for so many tokens, recorded when first asked for; None where there is none."""
        # cuBLAS's float32 products of so few rows take longer with every row.
        size = tokens if tokens <= FEW else bucket(tokens, LARGEST_EXACT)
        return None if size is None else self.recorded((size, branches), lambda: self._record(size, branches, like))

    def _record(self, size: int, branches: int, like: Tensor) -> SingleStepGraph:
        if not self.graphs:
            rows = like.new_zeros(CHECKED_ROWS, sum(self.head.widths), dtype=self.head.dtype)
            self.step = fastest_step(self.head, rows)
        return SingleStepGraph(self.head, size, branches, like.device, capture=self.capture, step=self.step)


def bucket(tokens: int, largest: int = LARGEST) -> int | None:
    """The number of tokens that a graph for so many is recorded for; None where there is none."""
    if tokens > max(BUCKETS):
        return -(-tokens // COARSE) * COARSE if tokens <= largest else None
    return next(size for size in BUCKETS if tokens <= size)


def fastest_step(head: DiffusionHead, buffer: Tensor) -> StepFunction:
    """Triton's step, where it is installed and makes of random rows what torch's own operations make; else these."""
    if not buffer.is_cuda:
        return advance_counted
    try:
        from . import triton_kernels
    except ImportError:
        return advance_counted
    try:
        with torch.cuda.device(buffer.device):
            difference = max(disagreement(head, buffer, triton_kernels.advance, branches) for branches in (1, 2))
        if difference <= (TOLERANCE_16_BIT if head.dtype.itemsize == 2 else TOLERANCE):
            return triton_kernels.advance
        reason = f"they differ from torch's operations by {difference:.1e}"
    except triton_kernels.FAILURES as error:
        reason = str(error).partition("\n")[0]
    logger.warning("Triton's kernels are off for this run: %s", reason)
    return advance_counted


def disagreement(head: DiffusionHead, buffer: Tensor, step: StepFunction, branches: int) -> float:
    """How far two steps of random rows are from torch's own, as a part of the largest number; infinite for NaN.

    ``buffer`` has room for CHECKED_ROWS rows of modulations.
    """
    device, channels, tokens = buffer.device, head.input_proj.in_features, CHECKED_ROWS // 4
    generator = torch.Generator(device).manual_seed(0)
    rows, columns = tokens * branches, buffer.shape[1]
    x, modulations, table, noise = (
        torch.randn(shape, generator=generator, device=device)
        for shape in ((tokens, channels), (2, rows, columns), (2, tokens, 4), (2, tokens, channels))
    )
    results = []
    for each in (advance_counted, step):
        graph = StepGraph(head, tokens, branches, buffer, step=each)
        graph.x.copy_(x)
        graph.load(x.new_zeros(2, rows, head.spec.width), table, noise, 3.0)
        graph.modulations[:2].copy_(modulations / 2)  # larger ones would add rounding of their own in 16 bit
        for _ in range(2):
            graph.replay()
        results.append(graph.x)
    plain, other = results
    return torch.nan_to_num((other - plain).abs().max() / plain.abs().max(), nan=math.inf).item()
