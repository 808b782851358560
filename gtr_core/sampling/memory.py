"""What a run needs of memory, known beforehand."""

from __future__ import annotations

import sys
from bisect import bisect_right
from dataclasses import replace
from functools import lru_cache

from ..device import Runtime, check_budget
from ..diffusion.cuda_graphs import BUCKETS, BUFFER_ROWS, LARGEST, LARGEST_EXACT
from ..diffusion.head import DiffusionHead, HeadSpec
from ..diffusion.loop import CHUNK_ROWS
from ..models.spec import ModelSpec
from ..plans.plan import Plan, Step

# Tensors of (rows, dim) that live at once in a block: residual, norm, q, k, v, output; and the MLP's two.
BLOCK_TENSORS = 6
HEAD_TENSORS = 10
# Rows of an evaluation times the square of their width, up to which it is recorded. A block multiplies 24 times as
# often; its dozen kernels take the host about 200 us to start, in which an H100 multiplies 1e11 times.
LARGEST_WORK = 2**32
# Of CUDA graphs: two segments of the allocator, 2 and 20 MiB, and the workspace that matrix products have on a stream.
GRAPHS_OVERHEAD = (2 + 20 + 32) * 2**20


def images_at_once(spec: ModelSpec, positions: int, branches: int, runtime: Runtime) -> int:
    """How many images with ``positions`` tokens each, in so many guidance ``branches``, pay in one evaluation.

    On a processor as many as keep the MLP's hidden layer small: above, the time per image rises with every image, as
    activations leave the caches and are mapped anew in every layer.
    """
    if runtime.type != "cpu":
        return sys.maxsize
    hidden = branches * (spec.buffer + positions) * spec.dim * spec.mlp_ratio * runtime.dtype.itemsize
    return max(1, runtime.hardware.part_bytes // hidden)


def noise_bytes(plan: Plan, spec: ModelSpec) -> int:
    """The noise of the largest step, drawn in main memory whatever the device."""
    return max((_step_noise(plan, step, spec) for step in plan.steps), default=0)


def activation_bytes(plan: Plan, spec: ModelSpec, runtime: Runtime) -> int:
    """An upper estimate of a run's activations in bytes.

    It grows linearly with the batch, except for a constant part: the head's chunks of modulations, CUDA graphs, and
    beside a transformer in 16 bit the head's copy in 16 bit. A run with a cache is counted with all images at once, and
    with what the cache keeps.
    """
    cached, itemsize = plan.method.cache is not None, runtime.dtype.itemsize
    branches = 2 if plan.method.guidance.enabled else 1
    rows = plan.batch * branches
    head = _empty_head(spec.head)
    modulations = CHUNK_ROWS * (sum(head.widths) + spec.head.width) * 4
    peak = recorded = single = 0
    for step in plan.steps:
        positions = step.known.shape[1] + step.masked
        sequence = spec.buffer + positions
        images = sys.maxsize if cached else images_at_once(spec, positions, branches, runtime)
        together = branches * min(plan.batch, images)
        block = block_bytes(spec, together * sequence, itemsize)
        # A recorded evaluation is one of little work; the graphs share what they need.
        recorded = max(recorded, min(block, block_bytes(spec, LARGEST_WORK // spec.dim**2, itemsize)))
        scores = together * spec.heads * sequence**2 * itemsize
        # A recorded step of many rows, or of the float32 head, makes its modulations itself.
        evaluated, width = rows * step.tokens, HEAD_TENSORS * spec.head.width + sum(head.widths)
        single = max(single, width * max(min(evaluated, 2 * LARGEST) * itemsize, min(evaluated, 2 * LARGEST_EXACT) * 4))
        loop = rows * step.tokens * spec.head.width * HEAD_TENSORS * 4 + modulations
        reader = together * spec.reader_bytes(step.known.shape[1], itemsize)
        peak = max(peak, block + scores, reader, loop + _step_noise(plan, step, spec))
    low_precision = sum(p.numel() for p in head.parameters()) * itemsize if itemsize == 2 else 0
    with_graphs = runtime.accelerate and runtime.type == "cuda" and not plan.method.own_head
    graphs = graphs_bytes(spec, itemsize) + (0 if cached else recorded) + single if with_graphs else 0
    kept = plan.method.cache.kept_bytes(plan, spec, itemsize) if cached else 0
    return peak + rows * spec.condition_bytes(itemsize) + low_precision + graphs + kept


def block_bytes(spec: ModelSpec, rows: int, itemsize: int) -> int:
    """Activations of so many rows in a block of the transformer, without the scores of its attention."""
    return rows * spec.dim * (BLOCK_TENSORS + 2 * spec.mlp_ratio) * itemsize


def _step_noise(plan: Plan, step: Step, spec: ModelSpec) -> int:
    """Noise as drawn and as sorted for the loop, with its rows' indices."""
    steps = step.groups[0].diffusion_steps
    return plan.batch * step.tokens * (3 * spec.head.channels + 4) * (steps + 1) * 4


def graphs_bytes(spec: ModelSpec, itemsize: int) -> int:
    """What CUDA graphs of the head keep: the common buffer, the pool that they share, as large as the largest one's
    activations and what allocator and libraries round up to, and every graph's noise. What grows with the batch,
    :func:`activation_bytes` adds."""
    columns, channels = sum(_empty_head(spec.head).widths), spec.head.channels
    pool = 2 * max(BUCKETS) * HEAD_TENSORS * spec.head.width * itemsize + GRAPHS_OVERHEAD
    return BUFFER_ROWS * columns * itemsize + pool + 2 * len(BUCKETS) * BUFFER_ROWS * (channels + 4) * 4


@lru_cache(maxsize=16)
def _empty_head(spec: HeadSpec) -> DiffusionHead:
    """Shapes without weights."""
    return DiffusionHead(spec, device="meta")


def images_that_fit(budget: int, plan: Plan, spec: ModelSpec, runtime: Runtime) -> int:
    """The largest part of the plan's batch of which :func:`activation_bytes` stays within ``budget``; at least 1."""

    def needed(batch: int) -> int:
        return activation_bytes(replace(plan, batch=batch), spec, runtime)

    return max(1, bisect_right(range(1, plan.batch + 1), budget, key=needed))


def check_run(plan: Plan, spec: ModelSpec, runtime: Runtime) -> None:
    """Raises GtRError for a run that main memory cannot hold; what fits on an accelerator its driver decides.

    What an earlier run left prepared makes room first.
    """
    needed = noise_bytes(plan, spec)
    if runtime.type == "cpu":
        needed = max(needed, activation_bytes(plan, spec, runtime))
    available = runtime.available_bytes
    if available is not None and needed > available and runtime.preparations is not None:
        runtime.preparations.clear()
        available = runtime.available_bytes
    if available is not None:
        check_budget(needed, f"{plan.batch} x {plan.tokens} tokens need", available)
