"""CUDA graphs of the diffusion head: one step per number of rows, recorded once per run and replayed at every step.

A graph holds addresses: it is used only while the weights stay where they are, and it lives as long as its run.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from .head import DiffusionHead
from .step import Coefficients, advance

logger = logging.getLogger("gtr_mar")

# Tokens that a graph is recorded for; fewer are filled up, more run without a graph: there the work is large enough.
BUCKETS = (8, 16, 32, 64, 128)

# Evaluated rows of modulations that the graphs' common buffer holds.
BUFFER_ROWS = 512

# Bytes that the driver must have left for a recording: its memory is new. One that fails for want of memory leaves
# torch's allocator unusable for the rest of the process (pytorch/pytorch 180395).
MARGIN = 256 * 2**20

# Rounding may take Triton's kernels so far from torch's own operations, as a part of the largest number.
TOLERANCE, TOLERANCE_16_BIT = 1e-2, 1e-1
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

    Raises RuntimeError where CUDA cannot record it. Without a ``capture`` the step simply runs, on any device.
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
        channels, chain = head.input_proj.in_features, {"device": buffer.device, "dtype": torch.float32}
        self.x = torch.zeros(size, channels, **chain)
        self.noise = torch.zeros(self.steps, size, channels, **chain)
        self.table = torch.zeros(self.steps, size, 4, **chain)
        self.scale = torch.ones((), **chain)
        self.counter = torch.zeros(1, dtype=torch.int64, device=buffer.device)
        self.graph = None if capture is None else capture.record(self._step, self.counter.zero_)

    def load(self, modulations: Iterable[Tensor], table: Coefficients, noise: Tensor, scale: float) -> None:
        """The next k <= ``self.steps`` steps: modulations (k, rows, ...) per layer, table and noise (k, n, ...)."""
        for slot, values in zip(self.modulations.split(self.head.widths, dim=-1), modulations):
            slot[: len(values), : values.shape[1]].copy_(values)
        self.table[: len(noise), : noise.shape[1]].copy_(torch.cat(table, dim=-1))
        self.noise[: len(noise), : noise.shape[1]].copy_(noise)
        self.scale.fill_(scale)
        self.counter.zero_()

    def replay(self) -> None:
        """The next step: the recorded one, or operation by operation."""
        if self.graph is None:
            self._step()
        else:
            self.graph.replay()

    def _step(self) -> None:
        self.step(self.head, self.x, self.modulations, self.table, self.noise, self.scale, self.counter, self.branches)
        self.counter += 1


class Capture:
    """Records the graphs of one run on a CUDA device: they share a pool of memory, as they never run at once, and with
    all runs of the process one stream, as torch keeps a workspace for every stream that ever multiplied matrices."""

    def __init__(self, device: torch.device):
        self.device, self.stream, self.pool = device, capture_stream(device), torch.cuda.graph_pool_handle()

    def record(self, action: Callable[[], object], reset: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """A graph of ``action``, which runs once beforehand; ``reset`` undoes what that did.

        Raises RuntimeError where CUDA cannot record it, or has no memory left to do so safely.
        """
        check_margin(self.device)
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream), collector_held():
            action()  # libraries allocate their workspaces outside the recording
            reset()
            # What other threads ask of the device meanwhile neither breaks the recording nor fails.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                action()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return graph


@lru_cache(maxsize=None)
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that graphs are recorded on."""
    return torch.cuda.Stream(device)


def check_margin(device: torch.device) -> None:
    """Raises RuntimeError where the driver has less than MARGIN left, with torch's own reserves given back."""
    free, _ = torch.cuda.mem_get_info(device)
    if free < MARGIN:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
    if free < MARGIN:
        raise RuntimeError(f"{free / 2**20:.0f} MiB of the device's memory are free, {MARGIN / 2**20:.0f} are needed")


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


class StepGraphs:
    """The graphs of one run. After a failure there are none: the run goes on without."""

    def __init__(self, head: DiffusionHead, *, capture: bool = True):
        self.head, self.recorded, self.usable, self.step = head, capture, True, advance_counted
        self.capture: Capture | None = None
        self.graphs: dict[tuple[int, int], StepGraph] = {}
        self.buffer: Tensor | None = None

    def find(self, tokens: int, branches: int, like: Tensor) -> StepGraph | None:
        """The graph for so many tokens, recorded when first asked for; None where there is none."""
        size = next((size for size in BUCKETS if tokens <= size), None)
        if size is None or not self.usable:
            return None
        if (size, branches) not in self.graphs:
            try:
                self.graphs[size, branches] = self._record(size, branches, like)
            except RuntimeError as error:
                self.usable = False
                self.graphs.clear()
                self.buffer = None
                logger.warning("CUDA graphs are off for this run: %s", str(error).partition("\n")[0])
                return None
        return self.graphs[size, branches]

    def _record(self, size: int, branches: int, like: Tensor) -> StepGraph:
        if self.buffer is None:
            self.buffer = like.new_zeros(BUFFER_ROWS, sum(self.head.widths), dtype=self.head.dtype)
            self.step = fastest_step(self.head, self.buffer)
            self.capture = Capture(self.buffer.device) if self.recorded else None
        return StepGraph(self.head, size, branches, self.buffer, capture=self.capture, step=self.step)


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
    """How far two steps of random rows are from torch's own, as a part of the largest number; infinite for NaN."""
    device, channels = buffer.device, head.input_proj.in_features
    generator = torch.Generator(device).manual_seed(0)
    x, modulations, table, noise = (
        torch.randn(shape, generator=generator, device=device)
        for shape in ((4, channels), (2, 4 * branches, buffer.shape[1]), (2, 4, 4), (2, 4, channels))
    )
    results = []
    for each in (advance_counted, step):
        graph = StepGraph(head, 4, branches, buffer, step=each)
        graph.x.copy_(x)
        graph.load(modulations.split(head.widths, dim=-1), Coefficients(*table.split(1, dim=-1)), noise, 3.0)
        for _ in range(2):
            graph.replay()
        results.append(graph.x)
    plain, other = results
    return torch.nan_to_num((other - plain).abs().max() / plain.abs().max(), nan=math.inf).item()
