"""The diffusion head: an adaLN MLP that denoises one token vector at a time (MAR, docs/upstream.md 1.6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class HeadSpec:
    """The per-token diffusion head: an adaLN MLP of ``depth`` residual blocks of ``width`` units."""

    channels: int
    condition_dim: int
    width: int
    depth: int
    frequency_dim: int = 256

    @property
    def flops(self) -> int:
        """One token through the head once: embeddings, residual blocks with their modulations, final layer."""
        width = self.width
        embeddings = (self.frequency_dim + width + self.condition_dim + self.channels) * width
        final = 2 * width**2 + 2 * self.channels * width
        return 2 * (embeddings + 5 * self.depth * width**2 + final)


# Of all layer norms of the head.
NORM_EPS = 1e-6


def timestep_features(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features, cosines first: t (n,) base timesteps, float or int -> (n, dim) float32."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """h (1 + scale) + shift."""
    return torch.addcmul(h + shift, h, scale)


class TimestepEmbedding(nn.Module):
    def __init__(self, spec: HeadSpec, *, operations, **factory):
        super().__init__()
        self.frequency_dim = spec.frequency_dim
        self.mlp = nn.Sequential(
            operations.Linear(spec.frequency_dim, spec.width, **factory),
            nn.SiLU(),
            operations.Linear(spec.width, spec.width, **factory),
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(timestep_features(t, self.frequency_dim).to(dtype))


class ResidualBlock(nn.Module):
    def __init__(self, width: int, *, operations, **factory):
        super().__init__()
        self.in_ln = operations.LayerNorm(width, eps=NORM_EPS, **factory)
        self.mlp = nn.Sequential(
            operations.Linear(width, width, **factory), nn.SiLU(), operations.Linear(width, width, **factory)
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(width, 3 * width, **factory))

    def modulation(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """shift, scale and gate."""
        return self.adaLN_modulation(y).chunk(3, dim=-1)

    def branch(self, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gate and what it lets through."""
        shift, scale, gate = self.modulation(y)
        return gate, self.mlp(modulate(self.in_ln(h), shift, scale))

    def modulated(self, h: Tensor, modulation: Tensor) -> Tensor:
        """The block with its ``modulation`` (n, 3 width) computed beforehand."""
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return torch.addcmul(h, gate, self.mlp(modulate(self.in_ln(h), shift, scale)))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return self.modulated(h, self.adaLN_modulation(y))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int, *, operations, **factory):
        super().__init__()
        self.linear = operations.Linear(width, out, **factory)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(width, 2 * width, **factory))

    def modulated(self, h: Tensor, modulation: Tensor) -> Tensor:
        """The layer with its ``modulation`` (n, 2 width) computed beforehand."""
        return self.linear(modulate(F.layer_norm(h, h.shape[-1:], eps=NORM_EPS), *modulation.chunk(2, dim=-1)))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return self.modulated(h, self.adaLN_modulation(y))


class DiffusionHead(nn.Module):
    """x (n, C) noisy tokens, t (n,) base timesteps 0..999, z (n, D) conditioning -> (n, 2C): eps, then v.

    Runs in the dtype of ``x``: keep that float32, the first reverse step amplifies errors (docs/upstream.md 1.7).
    What :meth:`copied` makes in 16 bit runs in its own ``dtype`` and takes precomputed modulations only.
    """

    dtype = torch.float32
    joined: tuple[Tensor, Tensor] | None = None

    def __init__(self, spec: HeadSpec, *, operations=nn, **factory):
        super().__init__()
        self.spec = spec
        self.time_embed = TimestepEmbedding(spec, operations=operations, **factory)
        self.cond_embed = operations.Linear(spec.condition_dim, spec.width, **factory)
        self.input_proj = operations.Linear(spec.channels, spec.width, **factory)
        self.res_blocks = nn.ModuleList(
            ResidualBlock(spec.width, operations=operations, **factory) for _ in range(spec.depth)
        )
        self.final_layer = FinalLayer(spec.width, 2 * spec.channels, operations=operations, **factory)

    def copied(
        self, dtype: torch.dtype, device: torch.device | str | None = None, *, joined: bool = False
    ) -> DiffusionHead:
        """A copy of torch's own layers in ``dtype``, on the device or where the weights are now; with the layers that
        make the modulations ``joined``: their weights lie one after another, for one matrix product."""
        copy = DiffusionHead(self.spec, device="meta").requires_grad_(False)
        weights = {name: t.to(t.device if device is None else device, dtype) for name, t in self.state_dict().items()}
        if joined:
            copy.joined = self._join(weights)
        copy.load_state_dict(weights, assign=True)
        copy.dtype = dtype
        return copy

    def _join(self, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """One weight and one bias of all layers' modulations; in ``weights`` their parts become views."""
        prefixes = [*(f"res_blocks.{index}" for index in range(self.spec.depth)), "final_layer"]
        joined = []
        for kind in ("weight", "bias"):
            names = [f"{prefix}.adaLN_modulation.1.{kind}" for prefix in prefixes]
            whole = torch.cat([weights.pop(name) for name in names])
            weights |= zip(names, whole.split(self.widths))
            joined.append(whole)
        return joined[0], joined[1]

    @property
    def widths(self) -> list[int]:
        """Columns of the layers' modulations: shift, scale and gate of residual blocks, shift and scale of the last."""
        return [layer.adaLN_modulation[1].out_features for layer in (*self.res_blocks, self.final_layer)]

    def modulations(self, y: Tensor) -> Iterator[Tensor]:
        """What the layers make of the embedding y (..., width), one layer after another: (..., 3 width) of every
        residual block, then (..., 2 width) of the final layer. It does not depend on x."""
        y = F.silu(y).to(self.dtype)
        for layer in (*self.res_blocks, self.final_layer):
            yield layer.adaLN_modulation[1](y)

    def write_modulations(self, y: Tensor, out: Tensor) -> None:
        """The same into ``out`` (..., columns of all layers), in one matrix product where the weights are joined."""
        if self.joined is None:
            for slot, values in zip(out.split(self.widths, dim=-1), self.modulations(y)):
                slot.copy_(values)
        else:
            weight, bias = self.joined
            out.copy_(F.linear(F.silu(y).to(self.dtype), weight, bias))

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        z: Tensor | None = None,
        *,
        modulations: Iterable[Tensor] | None = None,
    ) -> Tensor:
        """As above; ``modulations`` of every layer, if they are at hand, stand for ``t`` and ``z``."""
        if modulations is None:
            modulations = self.modulations(self.time_embed(t, x.dtype) + self.cond_embed(z))
        h = self.input_proj(x)
        for layer, modulation in zip((*self.res_blocks, self.final_layer), modulations):
            h = layer.modulated(h, modulation)
        return h
