"""What turns images into latents and back: the base of the KL VAE and the l-DeTok tokenizer, and what each registers.

A model draws latents whose statistics are those that it was trained on. Where that is a mean and a deviation per
channel, they are folded into the two layers beside the latent: the file then encodes to normalised latents and decodes
them, and a model's tokens are its latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import GtRError
from .shapes import Shapes


@dataclass(frozen=True, eq=False)
class LatentStatistics:
    """Mean and standard deviation (C,) of the latents that a model was trained on, float64, per channel."""

    mean: Tensor
    std: Tensor


class AutoencoderSpec:
    """A frozen description of an autoencoder. Families derive a frozen dataclass from it, in their own file."""

    family: ClassVar[str]
    """The family's name, for people."""
    stored: ClassVar[tuple[str, ...]]
    """Fields that shapes do not tell: they travel in a file's metadata."""

    embed_channels: int
    normalised: bool  # statistics of the latents are folded in

    @property
    def variant(self) -> str:
        """Which of its family it is, for people."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Pixels per latent cell along one axis."""
        raise NotImplementedError

    @property
    def latents(self) -> str:
        """What its latents are called: ``LatentSpec.kind`` of the models that draw them."""
        raise NotImplementedError

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises GtRError for images of (height, width) in pixels that it cannot encode and decode."""

    @property
    def unusable(self) -> str | None:
        """Why it cannot decode a model's latents as it is, and what to do."""
        return None


class Autoencoder(nn.Module):
    """Latents here are in the autoencoder's own scale; the scaling to tokens is in ``LatentSpec``."""

    spec: AutoencoderSpec

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> the latents' mean and log-variance, (B, C, H / stride, W / stride)."""
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """The mean alone."""
        return self.moments(images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, C, h, w) -> images (B, 3, h * stride, w * stride), about [-1, 1], not clamped."""
        raise NotImplementedError


@dataclass(frozen=True)
class AutoencoderFamily:
    """One entry of AUTOENCODERS: how its files are recognised and read, and what runs them.

    ``anchors`` are names that together only its state dicts have. ``infer(shapes, **stored)`` reads the spec off it,
    completed by what the file's metadata stores. ``layers`` are the two beside the latent: the one that makes the
    moments and the one that takes the latent.
    """

    spec: type[AutoencoderSpec]
    model: type[Autoencoder]
    anchors: tuple[str, ...]
    infer: Callable[..., AutoencoderSpec]
    layers: tuple[str, str]

    def matches(self, shapes: Shapes) -> bool:
        return all(anchor in shapes for anchor in self.anchors)

    @property
    def folded(self) -> tuple[str, ...]:
        """The tensors that statistics change."""
        return tuple(f"{layer}.{part}" for layer in self.layers for part in ("weight", "bias"))

    def fold(self, tensors: Mapping[str, Tensor], statistics: LatentStatistics) -> dict[str, Tensor]:
        """The same function on latents (z - mean) / std; what changes is float32. Raises GtRError."""
        missing = next((name for name in self.folded if name not in tensors), None)
        if missing is not None:
            raise GtRError(f"there is no layer beside the latent that could take statistics ('{missing}' is missing)")
        weight, bias, taking, added = (tensors[name].double() for name in self.folded)
        mean, std, channels = statistics.mean, statistics.std, taking.shape[1]
        if len(mean) != channels:
            raise GtRError(f"statistics of {len(mean)} channels for latents of {channels}: give those of this file")
        # The first half of the moments is the mean, the second the logarithm of the variance.
        scale = torch.cat([1 / std, torch.ones_like(std)])
        shift = torch.cat([-mean / std, -2 * std.log()])
        columns = taking.flatten(1)
        values = (
            weight * scale.view(-1, *[1] * (weight.ndim - 1)),
            bias * scale + shift,
            taking * std.view(1, -1, *[1] * (taking.ndim - 2)),
            added + columns @ mean,
        )
        return {**tensors, **{name: value.float() for name, value in zip(self.folded, values)}}
