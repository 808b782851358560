"""Randomness: CPU generators per image, so that an image depends on its own seed alone.

A stream is identified by (image seed, purpose, index); no generator outlives the draw that it serves. Image seeds have
64 bits. torch's CPU generator takes 32 bits of what is derived from them, so two streams of a large job may be equal:
of 10,000 images with 32 steps each about 11 pairs of (image, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

ORDER, DIFFUSION, SELECTION, WINDOW = range(4)


def image_seeds(seed: int, batch: int | Sequence[int]) -> tuple[int, ...]:
    """Seeds of the images of a batch: (seed + index) mod 2^64, for indices 0..batch-1 or the given ones."""
    indices = range(batch) if isinstance(batch, int) else batch
    return tuple((seed + int(index)) % 2**64 for index in indices)


def window_seeds(seeds: Sequence[int], window: int) -> tuple[int, ...]:
    """Seeds of the images in a window of a larger grid: their own in the first window, others in every later one."""
    return tuple(seeds) if window == 0 else tuple(_state(seed, WINDOW, window) for seed in seeds)


def generator(seed: int, purpose: int, index: int = 0) -> torch.Generator:
    """A CPU generator for one stream of one image."""
    return torch.Generator("cpu").manual_seed(_state(seed, purpose, index))


def _state(seed: int, purpose: int, index: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(purpose, index)).generate_state(1, np.uint64)[0])


class NoiseSource(Protocol):
    """Where a run's noise comes from."""

    def draw(self, step: int, tokens: int, diffusion_steps: int) -> tuple[Tensor, Tensor]:
        """Noise of AR step ``step``: init (B, tokens, C) and step noise (diffusion_steps, B, tokens, C), float32."""

    def shuffled(self, step: int, tokens: int) -> Tensor:
        """A random permutation of 0..tokens-1 per image, (B, tokens) int64."""


@dataclass(frozen=True)
class SeededNoise:
    """Noise from the seeds of the images. Holds no state: the same draw gives the same numbers."""

    seeds: tuple[int, ...]
    channels: int

    def draw(self, step: int, tokens: int, diffusion_steps: int) -> tuple[Tensor, Tensor]:
        shape = (1 + diffusion_steps, tokens, self.channels)
        noise = torch.stack([torch.randn(shape, generator=generator(seed, DIFFUSION, step)) for seed in self.seeds], 1)
        return noise[0], noise[1:]

    def shuffled(self, step: int, tokens: int) -> Tensor:
        return torch.stack([torch.randperm(tokens, generator=generator(seed, SELECTION, step)) for seed in self.seeds])
