"""Randomness: generators per image on the CPU, so that an image depends on its own seed alone.

A stream is identified by (image seed, purpose, index); no generator outlives the draw that it serves. Streams are
numpy's SFC64 with 192 bits of state from a SeedSequence over the whole identity: torch's CPU generator keeps 32 bits of
a seed, and jobs of thousands of images would then draw the same noise twice.
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


def generator(seed: int, purpose: int, index: int = 0) -> np.random.Generator:
    """One stream of one image."""
    return np.random.Generator(np.random.SFC64(_identity(seed, purpose, index)))


def _identity(seed: int, purpose: int, index: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(purpose, index))


def _state(seed: int, purpose: int, index: int) -> int:
    return int(_identity(seed, purpose, index).generate_state(1, np.uint64)[0])


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
        noise = torch.empty(shape[0], len(self.seeds), *shape[1:])
        for index, seed in enumerate(self.seeds):
            drawn = generator(seed, DIFFUSION, step).standard_normal(shape, dtype=np.float32)
            noise[:, index] = torch.from_numpy(drawn)
        return noise[0], noise[1:]

    def shuffled(self, step: int, tokens: int) -> Tensor:
        rows = [generator(seed, SELECTION, step).permutation(tokens) for seed in self.seeds]
        return torch.from_numpy(np.stack(rows))
