"""The diffusion head: an adaLN MLP that denoises one token vector at a time (MAR, docs/upstream.md 1.6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .spec import HeadSpec


def timestep_features(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features, cosines first: t (n,) base timesteps, float or int -> (n, dim) float32."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    def __init__(self, spec: HeadSpec, *, operations, **factory):
        super().__init__()
        self.frequency_dim = spec.frequency_dim
        self.mlp = nn.Sequential(operations.Linear(spec.frequency_dim, spec.width, **factory), nn.SiLU(),
                                 operations.Linear(spec.width, spec.width, **factory))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(timestep_features(t, self.frequency_dim).to(dtype))


class ResidualBlock(nn.Module):
    def __init__(self, width: int, *, operations, **factory):
        super().__init__()
        self.in_ln = operations.LayerNorm(width, eps=1e-6, **factory)
        self.mlp = nn.Sequential(operations.Linear(width, width, **factory), nn.SiLU(),
                                 operations.Linear(width, width, **factory))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(width, 3 * width, **factory))

    def modulation(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """shift, scale and gate."""
        return self.adaLN_modulation(y).chunk(3, dim=-1)

    def branch(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gate and what it lets through."""
        shift, scale, gate = self.modulation(y)
        return gate, self.mlp(self.in_ln(h) * (1 + scale) + shift)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        gate, output = self.branch(h, y)
        return h + gate * output


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int, *, operations, **factory):
        super().__init__()
        self.linear = operations.Linear(width, out, **factory)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(width, 2 * width, **factory))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """x (n, C) noisy tokens, t (n,) base timesteps 0..999, z (n, D) conditioning -> (n, 2C): eps, then v.

    Runs in the dtype of ``x``: keep that float32, the first reverse step amplifies errors (docs/upstream.md 1.7).
    """

    def __init__(self, spec: HeadSpec, *, operations=nn, **factory):
        super().__init__()
        self.time_embed = TimestepEmbedding(spec, operations=operations, **factory)
        self.cond_embed = operations.Linear(spec.condition_dim, spec.width, **factory)
        self.input_proj = operations.Linear(spec.channels, spec.width, **factory)
        self.res_blocks = nn.ModuleList(
            ResidualBlock(spec.width, operations=operations, **factory) for _ in range(spec.depth))
        self.final_layer = FinalLayer(spec.width, 2 * spec.channels, operations=operations, **factory)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        y = self.time_embed(t, x.dtype) + self.cond_embed(z)
        h = self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, y)
        return self.final_layer(h, y)
