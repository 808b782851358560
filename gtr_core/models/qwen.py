"""The trunk of a Qwen2.5 language model, over rows of embeddings behind prompts (docs/upstream.md 9.2).

Parameter names are those of the published files: ``embed_tokens``, ``layers.0.self_attn.q_proj``, ..., ``norm``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class QwenSpec:
    """``dim`` wide with ``depth`` layers; ``heads`` query heads share ``kv_heads`` heads of keys and values."""

    dim: int
    depth: int
    heads: int
    hidden: int
    vocabulary: int = 151936
    kv_heads: int = 2
    rope_base: float = 1e6
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def row_flops(self) -> int:
        """The linear layers at one row."""
        keys_and_values = 2 * self.dim * self.kv_heads * self.head_dim
        return 2 * self.depth * (2 * self.dim**2 + keys_and_values + 3 * self.dim * self.hidden)

    def attention_flops(self, rows: int, before: int) -> int:
        """Attention of ``rows`` rows behind ``before`` others, causal pairs only."""
        return 4 * self.depth * self.dim * (rows * before + rows * (rows + 1) // 2)

    def row_bytes(self, itemsize: int) -> int:
        """Keys and values of one row of a prompt, in all layers."""
        return 2 * self.depth * self.kv_heads * self.head_dim * itemsize


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prompt as later rows see it: keys after their rotation and values (kv_heads, P, head_dim) of every layer."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        """P, its tokens."""
        return self.layers[0][0].shape[1]


@dataclass(frozen=True, eq=False)
class Group:
    """``count`` rows of a batch that stand next to each other behind the same prompt, turned by its length."""

    count: int
    prefix: Prefix
    rotation: Rotation


def rotation(start: int, count: int, spec: QwenSpec, like: Tensor) -> Rotation:
    """Cosines and sines (count, head_dim / 2) of positions ``start``, ``start`` + 1, ..., in the dtype of ``like``."""
    steps = torch.arange(0, spec.head_dim, 2, device=like.device, dtype=torch.float32) / spec.head_dim
    positions = torch.arange(start, start + count, device=like.device, dtype=torch.float32)
    angles = positions[:, None] * spec.rope_base**-steps
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """x (..., n, head_dim) turned in the planes of its two halves."""
    (cos, sin), (first, second) = turn, x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, heads, T, d) over k and v (B, kv_heads, P + T, d) -> (B, heads, T, d): row i sees P + i + 1 of them.

    Torch's causal kernels, which skip what is not seen, pair the first query with the first key: P queries whose
    results nobody wants stand before the others, or a mask is cheaper where there would be more of them.
    """
    rows, before, shared = q.shape[2], k.shape[2] - q.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    if before > rows:
        seen = torch.ones(rows, before + rows, dtype=torch.bool, device=q.device).tril(before)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return F.scaled_dot_product_attention(F.pad(q, (0, 0, before, 0)), k, v, is_causal=True)[:, :, before:]


class GroupedAttention(nn.Module):
    """Causal attention with fewer heads of keys and values than of queries; q, k and v have biases."""

    def __init__(self, spec: QwenSpec, *, operations, **factory):
        super().__init__()
        shared = spec.kv_heads * spec.head_dim
        self.head_dim = spec.head_dim
        self.q_proj = operations.Linear(spec.dim, spec.dim, **factory)
        self.k_proj = operations.Linear(spec.dim, shared, **factory)
        self.v_proj = operations.Linear(spec.dim, shared, **factory)
        self.o_proj = operations.Linear(spec.dim, spec.dim, bias=False, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, heads, n, d), k and v (B, kv_heads, n, d) of x (B, n, dim), not turned."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (rearrange(layer(x), "b n (h d) -> b h n d", d=self.head_dim) for layer in layers)
        return q, k, v

    def join(self, attended: Tensor) -> Tensor:
        """The heads' results (B, heads, n, d) -> (B, n, dim)."""
        return self.o_proj(rearrange(attended, "b h n d -> b n (h d)"))


class GatedMlp(nn.Module):
    """down(silu(gate x) * up x), without biases."""

    def __init__(self, spec: QwenSpec, *, operations, **factory):
        super().__init__()
        self.gate_proj = operations.Linear(spec.dim, spec.hidden, bias=False, **factory)
        self.up_proj = operations.Linear(spec.dim, spec.hidden, bias=False, **factory)
        self.down_proj = operations.Linear(spec.hidden, spec.dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class QwenLayer(nn.Module):
    """Pre-norm layer: attention, then the gated MLP."""

    def __init__(self, spec: QwenSpec, *, operations, **factory):
        super().__init__()
        self.input_layernorm = operations.RMSNorm(spec.dim, eps=spec.norm_eps, **factory)
        self.self_attn = GroupedAttention(spec, operations=operations, **factory)
        self.post_attention_layernorm = operations.RMSNorm(spec.dim, eps=spec.norm_eps, **factory)
        self.mlp = GatedMlp(spec, operations=operations, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.project(self.input_layernorm(x))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output of its input x (B, n, dim) and what its heads attended to."""
        x = x + self.self_attn.join(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen(nn.Module):
    """The trunk: embeddings, layers and the last norm. There is no head over the vocabulary."""

    def __init__(self, spec: QwenSpec, *, operations=nn, device=None, dtype: torch.dtype | None = None):
        super().__init__()
        self.spec = spec
        factory = {"device": device, "dtype": dtype}
        self.embed_tokens = operations.Embedding(spec.vocabulary, spec.dim, **factory)
        self.layers = nn.ModuleList(QwenLayer(spec, operations=operations, **factory) for _ in range(spec.depth))
        self.norm = operations.RMSNorm(spec.dim, eps=spec.norm_eps, **factory)

    def remember(self, x: Tensor) -> Prefix:
        """What later rows see of a prompt of embeddings x (P, dim)."""
        x, turn, seen = x[None], rotation(0, len(x), self.spec, x), []
        for layer in self.layers:
            q, k, v = layer.project(x)
            k = rotate(k, turn)
            seen.append((k[0], v[0]))
            if len(seen) < len(self.layers):
                x = layer.finish(x, causal_attention(rotate(q, turn), k, v))
        return Prefix(tuple(seen))

    def forward(self, x: Tensor, behind: Sequence[tuple[int, Prefix]]) -> Tensor:
        """x (B, T, dim) -> (B, T, dim) after the last norm; row i of each sees the prompt before it and rows 0 to i.

        ``behind`` says how many of the batch in a row stand behind which prompt, in order.
        """
        groups = [Group(count, prefix, rotation(prefix.length, x.shape[1], self.spec, x)) for count, prefix in behind]
        for index, layer in enumerate(self.layers):
            q, k, v = layer.project(x)
            parts = zip(groups, *(t.split([group.count for group in groups]) for t in (q, k, v)))
            attended = [_attend(group, index, *projected) for group, *projected in parts]
            x = layer.finish(x, attended[0] if len(attended) == 1 else torch.cat(attended))
        return self.norm(x)


def _attend(group: Group, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A group's queries over its prompt and its own rows."""
    before = group.prefix.layers[layer]
    k, v = (
        torch.cat([seen.to(own).expand(len(own), -1, -1, -1), own], dim=2)
        for seen, own in zip(before, (rotate(k, group.rotation), v))
    )
    return causal_attention(rotate(q, group.rotation), k, v)
