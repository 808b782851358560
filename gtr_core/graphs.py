"""CUDA graphs of the diffusion head: one step per number of rows, recorded once per run and replayed at every step.

A graph holds addresses: it is used only while the weights stay where they are, and it lives as long as its run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from .head import DiffusionHead
from .headloop import Coefficients, advance

logger = logging.getLogger("gtr_mar")

# Tokens that a graph is recorded for; fewer are filled up, more run without a graph: there the work is large enough.
BUCKETS = (8, 16, 32, 64, 128)
# Evaluated rows of modulations that the graphs' common buffer holds.
BUFFER_ROWS = 512


class StepGraph:
    """One reverse step of up to ``size`` tokens on buffers of its own; a counter on the device says which step.

    Raises RuntimeError where CUDA cannot record it. Without ``capture`` the step simply runs, on any device.
    """

    def __init__(self, head: DiffusionHead, size: int, halves: int, buffer: Tensor, *, capture: bool):
        self.head, self.halves, self.rows = head, halves, size * halves
        self.steps = len(buffer) // self.rows
        self.modulations = buffer[:self.steps * self.rows].view(self.steps, self.rows, -1).zero_()
        channels, width = head.input_proj.in_features, head.input_proj.out_features
        self.widths = [3 * width] * len(head.res_blocks) + [2 * width]
        self.x = buffer.new_zeros(size, channels)
        self.noise = buffer.new_zeros(self.steps, size, channels)
        self.table = buffer.new_zeros(self.steps, size, 4)
        self.scale = buffer.new_ones(())
        self.counter = torch.zeros(1, dtype=torch.int64, device=buffer.device)
        self.replay = self._capture() if capture else self._step

    def load(self, modulations: Iterable[Tensor], table: Coefficients, noise: Tensor, scale: float) -> None:
        """The next k <= ``self.steps`` steps: modulations (k, rows, ...) per layer, table and noise (k, n, ...)."""
        for slot, values in zip(self.modulations.split(self.widths, dim=-1), modulations):
            slot[:len(values), :values.shape[1]].copy_(values)
        self.table[:len(noise), :noise.shape[1]].copy_(torch.cat(table, dim=-1))
        self.noise[:len(noise), :noise.shape[1]].copy_(noise)
        self.scale.fill_(scale)
        self.counter.zero_()

    def _step(self) -> None:
        modulations, table, noise = (t.index_select(0, self.counter)[0]
                                     for t in (self.modulations, self.table, self.noise))
        advance(self.head, self.x, modulations.split(self.widths, dim=-1), Coefficients(*table.split(1, dim=-1)), noise,
                self.halves, self.scale)
        self.counter += 1

    def _capture(self):
        stream = torch.cuda.Stream(self.x.device)
        stream.wait_stream(torch.cuda.current_stream(self.x.device))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            self._step()  # libraries allocate their workspaces outside the recording
            self.counter.zero_()
            graph.capture_begin()
            try:
                self._step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self.x.device).wait_stream(stream)
        return graph.replay


class StepGraphs:
    """The graphs of one run. After a failure there are none: the run goes on without."""

    def __init__(self, head: DiffusionHead, *, capture: bool = True):
        self.head, self.capture, self.usable = head, capture, True
        self.graphs: dict[tuple[int, int], StepGraph] = {}
        self.buffer: Tensor | None = None

    def find(self, tokens: int, halves: int, like: Tensor) -> StepGraph | None:
        """The graph for so many tokens, recorded when first asked for; None where there is none."""
        size = next((size for size in BUCKETS if tokens <= size), None)
        if size is None or not self.usable:
            return None
        if (size, halves) not in self.graphs:
            try:
                self.graphs[size, halves] = self._record(size, halves, like)
            except RuntimeError as error:
                self.usable = False
                self.graphs.clear()
                logger.warning("CUDA graphs are off for this run: %s", str(error).partition("\n")[0])
                return None
        return self.graphs[size, halves]

    def _record(self, size: int, halves: int, like: Tensor) -> StepGraph:
        if self.buffer is None:
            columns = (3 * len(self.head.res_blocks) + 2) * self.head.input_proj.out_features
            self.buffer = like.new_zeros(BUFFER_ROWS, columns)
        return StepGraph(self.head, size, halves, self.buffer, capture=self.capture)
