"""Between a VAE's latents (B, C, H, W) and a model's tokens (B, L, C * patch^2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from .spec import LatentSpec


def latent_to_tokens(latent: Tensor, spec: LatentSpec) -> Tensor:
    """VAE-scale latent (B, C, h * p, w * p) -> model-scale tokens (B, h * w, C * p * p), values ordered [c, p, q]."""
    scaled = (latent.float() - spec.shift) * spec.scale
    return rearrange(scaled, "b c (h p) (w q) -> b (h w) (c p q)", p=spec.patch, q=spec.patch)


def tokens_to_latent(tokens: Tensor, grid: tuple[int, int], spec: LatentSpec) -> Tensor:
    """Model-scale tokens (B, h * w, C * p * p) -> VAE-scale latent (B, C, h * p, w * p)."""
    latent = rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=grid[0], p=spec.patch, q=spec.patch)
    return latent / spec.scale + spec.shift


def preview_colours(tokens: Tensor, grid: tuple[int, int], spec: LatentSpec,
                    rgb: Sequence[Sequence[float]] | None = None) -> Tensor:
    """Approximate colours (B, h * p, w * p, 3) in [0, 1] of model-scale tokens.

    ``rgb`` is a linear map as in ``LatentSpec.rgb``; without one the first three channels stand for red, green, blue.
    """
    scaled = rearrange(tokens.float(), "b (h w) (c p q) -> b (h p) (w q) c", h=grid[0], p=spec.patch, q=spec.patch)
    if not rgb:
        colours = scaled[..., :3] / 3
        colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[-1]))
    else:
        table = torch.tensor(rgb, device=scaled.device)
        colours = scaled @ table[:-1] + table[-1]
    return ((colours + 1) / 2).clamp(0, 1)
