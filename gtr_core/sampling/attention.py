"""Attention in 16 bit on a processor, about twice as fast as torch's own (docs/performance.md)."""

from __future__ import annotations

import torch
from torch import Tensor

# Scores of so many bytes at a time stay in a processor's cache.
SCORE_BYTES = 8 * 2**20


def product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v (B, H, n or m, d) in 16 bit -> (B, H, n, d), as two matrix products around a softmax.

    The softmax computes in float32, but scores and weights are rounded to 16 bit. That is little beside what a
    transformer in 16 bit rounds everywhere else.
    """
    (images, heads, rows, dim), keys = q.shape, k.shape[2]
    q, k = q * dim**-0.5, k.transpose(-1, -2)
    at_once = max(1, SCORE_BYTES // (rows * keys * q.element_size()))
    if at_once >= images * heads:
        return _attend(q, k, v)
    out = torch.empty_like(q)
    for image in range(images):
        for first in range(0, heads, at_once):
            some = image, slice(first, first + at_once)
            out[some] = _attend(q[some], k[some], v[some])
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k
    torch.softmax(scores, -1, out=scores)
    return scores @ v
