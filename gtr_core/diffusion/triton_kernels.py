"""One reverse step of the diffusion head in fewer CUDA kernels, in Triton: what lies between two matrix products is one
pass over the rows, and the recorded step reads its tables where they are.

Imported only where a CUDA graph is to be recorded; raises ImportError where Triton is not installed.
"""

from __future__ import annotations

import subprocess
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.errors import TritonError

from .head import NORM_EPS, DiffusionHead
from .step import evaluated_rows

# What compiling and starting a kernel may raise: Triton's own, a driver's, a missing or failing C compiler.
FAILURES = (TritonError, RuntimeError, OSError, subprocess.SubprocessError)


@triton.jit
def read(at, inside):
    """Float32 of whatever lies there; 0 outside."""
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def norm_modulate(
    h,
    branch,
    out,
    weight,
    bias,
    modulations,
    counter,
    column,
    width,
    step_stride,
    row_stride,
    eps,
    GATED: tl.constexpr,
    AFFINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """h <- h + gate branch; out <- LN(h) (1 + scale) + shift. One program per row, ``BLOCK`` >= width.

    A row of modulations holds gate (of the layer before), shift and scale side by side, shift at ``column``.
    """
    row, lane = tl.program_id(0), tl.arange(0, BLOCK)
    inside = lane < width
    at = row * width + lane
    shift = modulations + tl.load(counter) * step_stride + row * row_stride + column + lane
    x = read(h + at, inside)
    if GATED:
        gate = read(shift - width, inside)
        x += gate * read(branch + at, inside)
        tl.store(h + at, x, mask=inside)
    centred = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    y = centred / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    if AFFINE:
        y = y * read(weight + lane, inside) + read(bias + lane, inside)
    y = y * (1.0 + read(shift + width, inside)) + read(shift, inside)
    tl.store(out + at, y, mask=inside)


@triton.jit(do_not_specialize=["size"])
def posterior(x, evaluated, table, noise, scale, counter, size, channels, BRANCHES: tl.constexpr, BLOCK: tl.constexpr):
    """x <- a x + b eps + exp(c v + d) noise, with eps guided. One program per token, ``BLOCK`` >= channels."""
    token, lane = tl.program_id(0), tl.arange(0, BLOCK)
    inside = lane < channels
    at = tl.load(counter) * size + token
    own = evaluated + token * BRANCHES * 2 * channels + lane
    eps = read(own, inside)
    v = read(own + channels, inside)
    if BRANCHES == 2:
        unconditional = read(own + 2 * channels, inside)
        eps = unconditional + tl.load(scale) * (eps - unconditional)
    a, b = tl.load(table + 4 * at), tl.load(table + 4 * at + 1)
    c, d = tl.load(table + 4 * at + 2), tl.load(table + 4 * at + 3)
    drawn = read(noise + at * channels + lane, inside)
    place = x + token * channels + lane
    moved = a * read(place, inside) + b * eps + tl.exp(c * v + d) * drawn
    tl.store(place, moved, mask=inside)


def advance(
    head: DiffusionHead,
    x: Tensor,
    modulations: Tensor,
    table: Tensor,
    noise: Tensor,
    scale: Tensor,
    counter: Tensor,
    branches: int,
) -> None:
    """See :func:`.cuda_graphs.advance_counted`: the same step."""
    h, branch = head.input_proj(evaluated_rows(head, x, branches)), None
    *columns, last = accumulate(head.widths[:-1], initial=0)
    for block, column in zip(head.res_blocks, columns):
        branch = block.mlp(_between(h, branch, modulations, counter, column, block.in_ln))
    evaluated = head.final_layer.linear(_between(h, branch, modulations, counter, last, None))
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


def _between(
    h: Tensor, branch: Tensor | None, modulations: Tensor, counter: Tensor, column: int, norm: nn.LayerNorm | None
) -> Tensor:
    """What goes into the layer whose shift is at ``column``; h becomes its input."""
    out, affine = torch.empty_like(h), norm is not None
    norm_modulate[(len(h),)](
        h,
        h if branch is None else branch,
        out,
        norm.weight if affine else h,
        norm.bias if affine else h,
        modulations,
        counter,
        column,
        h.shape[1],
        modulations.stride(0),
        modulations.stride(1),
        NORM_EPS,
        GATED=branch is not None,
        AFFINE=affine,
        BLOCK=triton.next_power_of_2(h.shape[1]),
    )
    return out
