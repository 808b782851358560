"""The budget: what is needed, known beforehand, against what there is."""

from __future__ import annotations

import sys
from bisect import bisect_right
from dataclasses import replace
from functools import lru_cache

import torch

from ..device import check_budget
from ..diffusion.cuda_graphs import BUCKETS, BUFFER_ROWS
from ..diffusion.head import DiffusionHead, HeadSpec
from ..diffusion.loop import CHUNK_ROWS
from ..models import ModelSpec
from ..models.lightgen import LightGenSpec
from ..plans.fts import FTS
from ..plans.plan import Plan, Step

# Tensors of (rows, dim) that live at once in a block: residual, norm, q, k, v, output; and the MLP's two.
BLOCK_TENSORS = 6


HEAD_TENSORS = 10


# The MLP's hidden layer of the images that go through the transformer at once on a processor: above, the time per image
# rises with every image, as activations leave the caches and are mapped anew in every layer.
PART_BYTES = 16 * 2**20


def images_at_once(spec: ModelSpec, positions: int, halves: int, itemsize: int, device: torch.device | str) -> int:
    """How many images with ``positions`` tokens each, in so many guidance ``halves``, pay in one evaluation."""
    if torch.device(device).type != "cpu":
        return sys.maxsize
    return max(1, PART_BYTES // (halves * (spec.buffer + positions) * spec.dim * spec.mlp_ratio * itemsize))


def noise_bytes(plan: Plan, spec: ModelSpec, fts: FTS | None = None) -> int:
    """The noise of the largest step, drawn in main memory whatever the device."""
    return max((_step_noise(plan, step, spec, fts) for step in plan.steps), default=0)


def activation_bytes(
    plan: Plan,
    spec: ModelSpec,
    *,
    guided: bool,
    itemsize: int,
    device: torch.device | str,
    fts: FTS | None = None,
    graphs: bool = False,
    cached: bool = False,
) -> int:
    """An upper estimate in bytes for ``plan`` on ``device``; ``itemsize`` is the transformer's. A ``cached`` run takes
    all images at once everywhere; what its cache keeps is not in it.

    It grows linearly with the batch, except for a constant part: the head's chunks of modulations, ``graphs``, and
    beside a transformer in 16 bit the head's copy in 16 bit.
    """
    halves, peak = 2 if guided else 1, 0
    rows = plan.batch * halves
    head = _empty_head(spec.head)
    layers = (sum(head.widths) + spec.head.width) * 4
    for step in plan.steps:
        positions = step.known.shape[1] + step.tokens + step.context.shape[1]
        sequence = spec.buffer + positions
        images = sys.maxsize if cached else images_at_once(spec, positions, halves, itemsize, device)
        together = halves * min(plan.batch, images)
        block = together * sequence * spec.dim * (BLOCK_TENSORS + 2 * spec.mlp_ratio) * itemsize
        scores = together * spec.heads * sequence**2 * itemsize
        loop = rows * step.tokens * spec.head.width * HEAD_TENSORS * 4 + CHUNK_ROWS * layers
        peak = max(peak, block + scores, loop + _step_noise(plan, step, spec, fts))
    text = 2 * spec.text_length * spec.dim * (spec.cross_depth + 1) * itemsize if isinstance(spec, LightGenSpec) else 0
    rounded = sum(p.numel() for p in head.parameters()) * itemsize if itemsize == 2 else 0
    return peak + rows * text + rounded + (graphs_bytes(spec, itemsize) if graphs else 0)


def _step_noise(plan: Plan, step: Step, spec: ModelSpec, fts: FTS | None) -> int:
    """Noise as drawn and as sorted for the loop, with its rows' indices."""
    steps = max(step.diffusion_steps, fts.detail_steps if fts and step.reconstruction else 0)
    return plan.batch * step.tokens * (3 * spec.head.channels + 4) * (steps + 1) * 4


def graphs_bytes(spec: ModelSpec, itemsize: int) -> int:
    """What CUDA graphs keep: the common buffer, and every graph's own activations."""
    columns = sum(_empty_head(spec.head).widths)
    return (BUFFER_ROWS * columns + 2 * sum(BUCKETS) * HEAD_TENSORS * spec.head.width) * itemsize


@lru_cache(maxsize=16)
def _empty_head(spec: HeadSpec) -> DiffusionHead:
    """Shapes without weights."""
    return DiffusionHead(spec, device="meta")


def images_that_fit(budget: int, plan: Plan, spec: ModelSpec, **settings) -> int:
    """The largest part of the plan's batch of which :func:`activation_bytes` stays within ``budget``; at least 1."""

    def needed(batch: int) -> int:
        return activation_bytes(replace(plan, batch=batch), spec, **settings)

    return max(1, bisect_right(range(1, plan.batch + 1), budget, key=needed))


def check_run(plan: Plan, spec: ModelSpec, *, device: torch.device | str, fts: FTS | None = None, **settings) -> None:
    """Raises GtRError for a run that main memory cannot hold; what fits on an accelerator its driver decides.

    ``settings`` are those of :func:`activation_bytes`.
    """
    needed = noise_bytes(plan, spec, fts)
    if torch.device(device).type == "cpu":
        needed = max(needed, activation_bytes(plan, spec, fts=fts, device=device, **settings))
    check_budget(needed, f"{plan.batch} x {plan.tokens} tokens need")
