"""The transformer block that the families share, and its cost.

``operations`` is a namespace with Linear, LayerNorm, RMSNorm, Embedding (torch.nn, or a host's weight-streaming twins);
``attention`` is a function of q, k, v, each (batch, heads, tokens, head_dim), that returns the same shape.
Constructors never initialise weights of their own: a host may build layers whose weights do not exist yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's scaled dot product attention."""
    return F.scaled_dot_product_attention(q, k, v)


class Uninitialised:
    """Torch's layers as ``operations``, whose weights are still to be loaded: to draw values that are replaced takes
    seconds in a large model, and on ``meta`` torch first imports a computer algebra system for it."""

    LayerNorm = nn.LayerNorm
    RMSNorm = nn.RMSNorm

    class Linear(nn.Linear):
        def reset_parameters(self) -> None: ...

    class Embedding(nn.Embedding):
        def reset_parameters(self) -> None: ...


def empty_parameter(*shape: int, device=None, dtype=None) -> nn.Parameter:
    """A parameter that waits for its weights."""
    return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))


class SelfAttention(nn.Module):
    """Multi-head self-attention; ``qkv`` is laid out [q | k | v], each head-major (docs/upstream.md 1.3)."""

    def __init__(self, dim: int, heads: int, *, operations, attention: Attention, **factory):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.qkv = operations.Linear(dim, 3 * dim, **factory)
        self.proj = operations.Linear(dim, dim, **factory)

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """x (B, n, D) -> (B, n, D), or what the queries at ``rows`` get."""
        q, k, v = self.project(x)
        return self.attend(q[:, :, rows], k, v)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, H, n, d) of x (B, n, D)."""
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention and output projection: q (B, H, n, d) over k and v (B, H, m, d) -> (B, n, D)."""
        return self.proj(rearrange(self.attention(q, k, v), "b h n d -> b n (h d)"))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int, *, operations, **factory):
        super().__init__()
        self.fc1 = operations.Linear(dim, hidden, **factory)
        self.fc2 = operations.Linear(hidden, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Sizes(Protocol):
    """What a spec says about a block."""

    @property
    def dim(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def mlp_ratio(self) -> int: ...

    @property
    def norm_eps(self) -> float: ...


class Block(nn.Module):
    """Pre-norm ViT block (docs/upstream.md 1.3)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, eps: float, *, operations, attention, **factory):
        super().__init__()
        self.norm1 = operations.LayerNorm(dim, eps=eps, **factory)
        self.attn = SelfAttention(dim, heads, operations=operations, attention=attention, **factory)
        self.norm2 = operations.LayerNorm(dim, eps=eps, **factory)
        self.mlp = Mlp(dim, mlp_ratio * dim, operations=operations, **factory)

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """x (B, n, D) -> (B, n, D), or the output at ``rows`` only: enough where nothing reads the others."""
        return self.feed_forward(x[:, rows] + self.attn(self.norm1(x), rows))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, H, n, d) of the block's input."""
        return self.attn.project(self.norm1(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half of the block."""
        return x + self.mlp(self.norm2(x))


def blocks(depth: int, spec: Sizes, **layers) -> nn.ModuleList:
    """So many blocks of a model's sizes; ``layers`` are what a :class:`Block` takes by name."""
    return nn.ModuleList(Block(spec.dim, spec.heads, spec.mlp_ratio, spec.norm_eps, **layers) for _ in range(depth))


def block_flops(dim: int, mlp_ratio: int, queries: int, keys: int | None = None, fed: int | None = None) -> int:
    """FLOPs of a block: attention of ``queries`` rows over ``keys`` rows, an MLP for ``fed`` rows; all are equal by
    default."""
    keys = queries if keys is None else keys
    fed = queries if fed is None else fed
    linear = 4 * queries + 2 * mlp_ratio * fed  # qkv and proj; the MLP's two layers
    return 2 * dim**2 * linear + 4 * queries * keys * dim
