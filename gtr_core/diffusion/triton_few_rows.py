"""One reverse step of the diffusion head for few rows as a single CUDA kernel, in Triton.

With few rows a step reads weights and does little else, and as a sequence of kernels most of its time goes between
them. Here every program keeps one tile of columns through all layers. Between two layers it waits for the others, and
before it waits it asks for the weights that it needs next. Imported as :mod:`.triton_kernels` is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .head import NORM_EPS, DiffusionHead, JoinedWeights
from .triton_kernels import posterior, read

# Columns of a program: as many as the smallest matrix product of the hardware has.
TILE = 16


@triton.jit
def read_shared(at, inside):
    """Float32 of what other programs wrote: never from a multiprocessor's own cache, which may hold an older value."""
    return tl.load(at, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)


@triton.jit
def wait_for_all(arrivals, target, PROGRAMS: tl.constexpr):
    """Until ``target`` arrivals are counted, of which this is one: what all programs wrote before can be read then."""
    if PROGRAMS > 1:
        tl.debug_barrier()
        tl.atomic_add(arrivals, 1, sem="release")
        while tl.atomic_add(arrivals, 0, sem="acquire") < target:
            pass
        tl.debug_barrier()


@triton.jit
def publish(value, column, row, h, sums, padded, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """The residual's tile ``value`` (TILE, n) for the others: rounded in ``h`` (rows, WIDTH), with the tile's sum and
    sum of squared distances from its mean in ``sums`` (tiles, 2, padded)."""
    inside = (column < WIDTH)[:, None]
    tl.store(h + row[None, :] * WIDTH + column[:, None], value, mask=inside)
    count = tl.minimum(WIDTH - tl.program_id(0) * TILE, TILE)
    total = tl.sum(tl.where(inside, value, 0.0), 0)
    centred = tl.where(inside, value - (total / count)[None, :], 0.0)
    at = sums + tl.program_id(0) * 2 * padded + row
    tl.store(at, total)
    tl.store(at + padded, tl.sum(centred * centred, 0))


@triton.jit
def statistics(sums, row, padded, eps, WIDTH: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr):
    """Mean and reciprocal standard deviation of the residual's rows (n,), from the tiles' sums."""
    tile = tl.arange(0, TILES)
    inside = (tile * TILE < WIDTH)[:, None]
    count = tl.maximum(tl.minimum(WIDTH - tile * TILE, TILE), 1).to(tl.float32)
    at = sums + (tile * 2 * padded)[:, None] + row[None, :]
    total, squares = read_shared(at, inside), read_shared(at + padded, inside)
    mean = tl.sum(total, 0) / WIDTH
    apart = tl.where(inside, total / count[:, None] - mean[None, :], 0.0)
    variance = (tl.sum(squares, 0) + tl.sum(apart * apart * count[:, None], 0)) / WIDTH
    return mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def product(weights, rows, SPLIT: tl.constexpr):
    """weights (s, TILE, k) times rows (s, n, k), summed over s and k: (TILE, n). Every warp multiplies a part of k."""
    if SPLIT > 1:
        result = tl.sum(tl.dot(weights, tl.permute(rows, (0, 2, 1)), input_precision="ieee"), 0)
    else:
        left = tl.reshape(weights, (weights.shape[1], weights.shape[2]))
        right = tl.trans(tl.reshape(rows, (rows.shape[1], rows.shape[2])))
        result = tl.dot(left, right, input_precision="ieee")
    return result


@triton.jit(do_not_specialize=["rows"])
def head_step(
    x,
    h,
    residual,
    hidden,
    sums,
    evaluated,
    modulations,
    counter,
    arrivals,
    input_weight,
    input_bias,
    norm_weight,
    norm_bias,
    first_weight,
    first_bias,
    second_weight,
    second_bias,
    output_weight,
    output_bias,
    rows,
    step_stride,
    row_stride,
    eps,
    CHANNELS: tl.constexpr,
    CHANNELS_BLOCK: tl.constexpr,
    BRANCHES: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    SPLIT: tl.constexpr,
    PART: tl.constexpr,
):
    """evaluated (rows, 2 CHANNELS) <- the head at x (rows / BRANCHES, CHANNELS), with the modulations that ``counter``
    names. ``rows`` are taken ROWS at a time; all other tensors are scratch, ``arrivals`` holds 0.

    A program owns the columns of one TILE; of its weights (TILE, WIDTH) it reads SPLIT parts of PART columns.
    """
    padded = tl.cdiv(rows, ROWS) * ROWS
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    own = column < WIDTH
    k = tl.arange(0, SPLIT)[:, None, None] * PART + tl.arange(0, PART)[None, None, :]
    at_weights = column[None, :, None] * WIDTH + k
    inside_weights = own[None, :, None] & (k < WIDTH)
    now = modulations + tl.load(counter) * step_stride
    weights = tl.load(first_weight + at_weights, mask=inside_weights, other=0.0)
    arrived = PROGRAMS

    channel = tl.arange(0, CHANNELS_BLOCK)
    into = read(
        input_weight + column[:, None] * CHANNELS + channel[None, :], own[:, None] & (channel < CHANNELS)[None, :]
    )
    bias = read(input_bias + column, own)
    first = 0
    while first < rows:
        row = first + tl.arange(0, ROWS)
        token = tl.load(
            x + (row // BRANCHES)[:, None] * CHANNELS + channel[None, :],
            mask=(row < rows)[:, None] & (channel < CHANNELS)[None, :],
            other=0.0,
        )
        token = token.to(weights.dtype).to(tl.float32)
        value = tl.sum(into[:, None, :] * token[None, :, :], 2) + bias[:, None]
        tl.store(residual + column[:, None] * padded + row[None, :], value, mask=own[:, None])
        publish(value, column, row, h, sums, padded, WIDTH, TILE)
        first += ROWS
    wait_for_all(arrivals, arrived, PROGRAMS)

    for layer in range(DEPTH):
        shift = now + layer * 3 * WIDTH
        scaling = read(norm_weight + layer * WIDTH + k, k < WIDTH)
        adding = read(norm_bias + layer * WIDTH + k, k < WIDTH)
        bias = read(first_bias + layer * WIDTH + column, own)
        first = 0
        while first < rows:
            row = first + tl.arange(0, ROWS)
            mean, deviation = statistics(sums, row, padded, eps, WIDTH, TILE, TILES)
            inside = (row < rows)[None, :, None] & (k < WIDTH)
            at = shift + row[None, :, None] * row_stride + k
            y = read_shared(h + row[None, :, None] * WIDTH + k, inside)
            y = (y - mean[None, :, None]) * deviation[None, :, None] * scaling + adding
            y = y * (1.0 + read(at + WIDTH, inside)) + read(at, inside)
            value = product(weights, y.to(weights.dtype), SPLIT) + bias[:, None]
            value = value / (1.0 + tl.exp(-value))
            tl.store(hidden + row[None, :] * WIDTH + column[:, None], value, mask=own[:, None])
            first += ROWS
        weights = tl.load(second_weight + layer * WIDTH * WIDTH + at_weights, mask=inside_weights, other=0.0)
        arrived += PROGRAMS
        wait_for_all(arrivals, arrived, PROGRAMS)

        bias = read(second_bias + layer * WIDTH + column, own)
        first = 0
        while first < rows:
            row = first + tl.arange(0, ROWS)
            inside = (row < rows)[None, :, None] & (k < WIDTH)
            u = tl.load(hidden + row[None, :, None] * WIDTH + k, mask=inside, other=0.0, cache_modifier=".cg")
            value = product(weights, u, SPLIT) + bias[:, None]
            mine = own[:, None] & (row < rows)[None, :]
            gate = read(shift + 2 * WIDTH + row[None, :] * row_stride + column[:, None], mine)
            at = residual + column[:, None] * padded + row[None, :]
            value = tl.load(at, mask=own[:, None], other=0.0, cache_modifier=".cg") + gate * value
            tl.store(at, value, mask=own[:, None])
            publish(value, column, row, h, sums, padded, WIDTH, TILE)
            first += ROWS
        more = inside_weights & (layer + 1 < DEPTH)
        weights = tl.load(first_weight + (layer + 1) * WIDTH * WIDTH + at_weights, mask=more, other=0.0)
        arrived += PROGRAMS
        wait_for_all(arrivals, arrived, PROGRAMS)

    own = column < 2 * CHANNELS
    if tl.program_id(0) * TILE < 2 * CHANNELS:
        shift = now + DEPTH * 3 * WIDTH
        weights = tl.load(output_weight + at_weights, mask=own[None, :, None] & (k < WIDTH), other=0.0)
        bias = read(output_bias + column, own)
        first = 0
        while first < rows:
            row = first + tl.arange(0, ROWS)
            mean, deviation = statistics(sums, row, padded, eps, WIDTH, TILE, TILES)
            inside = (row < rows)[None, :, None] & (k < WIDTH)
            at = shift + row[None, :, None] * row_stride + k
            y = read_shared(h + row[None, :, None] * WIDTH + k, inside)
            y = (y - mean[None, :, None]) * deviation[None, :, None]
            y = y * (1.0 + read(at + WIDTH, inside)) + read(at, inside)
            value = product(weights, y.to(weights.dtype), SPLIT) + bias[:, None]
            mine = own[:, None] & (row < rows)[None, :]
            tl.store(evaluated + row[None, :] * (2 * CHANNELS) + column[:, None], value, mask=mine)
            first += ROWS


@dataclass(frozen=True)
class Launch:
    """How the kernel is cut: ``rows`` at a time, ``warps`` per program, and the parts of a row that warps share."""

    rows: int = 8
    warps: int = 16
    split: int = 16
    tile: int = TILE


def fits(head: DiffusionHead, device: torch.device, launch: Launch = Launch()) -> bool:
    """Whether the kernel can run a head on a device: all its programs must run at once. It is written for NVIDIA's."""
    if head.joined is None or torch.version.hip:
        return False
    programs = triton.cdiv(head.spec.width, launch.tile)
    return programs <= torch.cuda.get_device_properties(device).multi_processor_count


def advance(
    head: DiffusionHead,
    x: Tensor,
    modulations: Tensor,
    table: Tensor,
    noise: Tensor,
    scale: Tensor,
    counter: Tensor,
    branches: int,
    launch: Launch = Launch(),
) -> None:
    """See :func:`.cuda_graphs.advance_counted`: the same step, of a head whose weights are joined."""
    evaluated = evaluate(head, head.joined, x, modulations, counter, branches, launch)
    posterior[(len(x),)](
        x,
        evaluated,
        table,
        noise,
        scale,
        counter,
        len(x),
        x.shape[1],
        BRANCHES=branches,
        BLOCK=triton.next_power_of_2(x.shape[1]),
    )


def evaluate(
    head: DiffusionHead,
    weights: JoinedWeights,
    x: Tensor,
    modulations: Tensor,
    counter: Tensor,
    branches: int,
    launch: Launch = Launch(),
) -> Tensor:
    """The head at x (n, C), with the modulations that ``counter`` names: (n * branches, 2 C) in its dtype."""
    width, channels, rows = head.spec.width, x.shape[1], len(x) * branches
    padded, programs = triton.cdiv(rows, launch.rows) * launch.rows, triton.cdiv(width, launch.tile)

    def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    evaluated = scratch(rows, 2 * channels, dtype=head.dtype)
    head_step[(programs,)](
        x,
        scratch(padded, width, dtype=head.dtype),
        scratch(width, padded),
        scratch(padded, width, dtype=head.dtype),
        scratch(programs, 2, padded),
        evaluated,
        modulations,
        counter,
        torch.zeros(1, dtype=torch.int32, device=x.device),
        head.input_proj.weight,
        head.input_proj.bias,
        weights.norm_weight,
        weights.norm_bias,
        weights.first_weight,
        weights.first_bias,
        weights.second_weight,
        weights.second_bias,
        head.final_layer.linear.weight,
        head.final_layer.linear.bias,
        rows,
        modulations.stride(0),
        modulations.stride(1),
        NORM_EPS,
        CHANNELS=channels,
        CHANNELS_BLOCK=triton.next_power_of_2(channels),
        BRANCHES=branches,
        WIDTH=width,
        DEPTH=head.spec.depth,
        PROGRAMS=programs,
        ROWS=launch.rows,
        TILE=launch.tile,
        TILES=triton.next_power_of_2(programs),
        SPLIT=launch.split,
        PART=triton.next_power_of_2(width) // launch.split,
        num_warps=launch.warps,
        **({"launch_cooperative_grid": True} if programs > 1 else {}),
    )
    return evaluated
