"""Between a VAE's latents (B, C, H, W) and a model's tokens (B, L, C * patch^2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from ..errors import GtRError

# Kinds of latents. Two of the same shape are not the same: a VAE decodes its own kind only.
KL, KL_NORMALISED, DETOK = "KL VAE", "KL VAE, normalised", "l-DeTok"


@dataclass(frozen=True)
class LatentSpec:
    """How tokens relate to the VAE's latent: ``token = (latent - shift) * scale``, ``patch`` x ``patch`` cells each.

    ``stride`` is pixels per latent cell, ``kind`` what makes and decodes the latents. ``assumed`` says why they are
    believed to be these where the file does not say so. ``rgb`` holds, if known, one (r, g, b) row per channel and a
    last row of biases: a linear map from the scaled latent to colours in [-1, 1], good enough for a preview.
    """

    channels: int = 16
    stride: int = 16
    patch: int = 1
    scale: float = 0.2325
    shift: float = 0.0
    rgb: tuple[tuple[float, float, float], ...] | None = None
    kind: str = KL
    assumed: str = field(default="", compare=False)

    @property
    def one_size(self) -> bool:
        """Whether only images of the model's own size can be decoded."""
        return self.kind == DETOK

    @property
    def token_dim(self) -> int:
        return self.channels * self.patch**2

    def size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of a token grid."""
        return grid[0] * self.stride * self.patch, grid[1] * self.stride * self.patch

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The token grid of (height, width) in pixels. Raises GtRError unless it is a whole number of tokens."""
        token = self.stride * self.patch
        if min(size) < token or size[0] % token or size[1] % token:
            raise GtRError(f"size {size[1]} x {size[0]}: expected width x height in multiples of {token} pixels")
        return size[0] // token, size[1] // token

    def pixels(self, grid: tuple[int, int]) -> str:
        """The size of a token grid for messages, width first."""
        height, width = self.size(grid)
        return f"{width} x {height}"


# Names of latents for people.
NAMED = {
    "kl-16": LatentSpec(),
    "detok": LatentSpec(scale=1.0, kind=DETOK),
    "normalised": LatentSpec(scale=1.0, kind=KL_NORMALISED),
}


def latent_named(text: str) -> LatentSpec:
    """The latents of a name, or of a KL VAE by SCALE or SCALE,SHIFT, where channels and patch are still to be said.

    Raises ValueError.
    """
    if text in NAMED:
        return NAMED[text]
    numbers = [float(number) for number in text.split(",")]
    if len(numbers) not in (1, 2) or not all(map(math.isfinite, numbers)) or numbers[0] == 0:
        raise ValueError(text)
    return LatentSpec(scale=numbers[0], shift=numbers[1] if len(numbers) == 2 else 0.0)


def latent_to_tokens(latent: Tensor, spec: LatentSpec) -> Tensor:
    """VAE-scale latent (B, C, h * p, w * p) -> model-scale tokens (B, h * w, C * p * p), values ordered [c, p, q]."""
    scaled = (latent.float() - spec.shift) * spec.scale
    return rearrange(scaled, "b c (h p) (w q) -> b (h w) (c p q)", p=spec.patch, q=spec.patch)


def tokens_to_latent(tokens: Tensor, grid: tuple[int, int], spec: LatentSpec) -> Tensor:
    """Model-scale tokens (B, h * w, C * p * p) -> VAE-scale latent (B, C, h * p, w * p)."""
    latent = rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=grid[0], p=spec.patch, q=spec.patch)
    return latent / spec.scale + spec.shift


def preview_colours(
    tokens: Tensor, grid: tuple[int, int], spec: LatentSpec, rgb: Sequence[Sequence[float]] | None = None
) -> Tensor:
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
