"""FTS: frequency-weighted token selection (paper section 3.3; docs/gtr.md 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GtRError

SELECTIONS = ("high", "low", "random", "all")


@dataclass(frozen=True)
class FTS:
    """In every reconstruction step the ``fraction`` of tokens with the most high-frequency energy run
    ``detail_steps`` diffusion steps. ``low``, ``random`` and ``all`` are the paper's ablations."""

    fraction: float = 0.1
    detail_steps: int = 50
    selection: str = "high"

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise GtRError(f"FTS selection '{self.selection}': expected one of {', '.join(SELECTIONS)}")
        if not 0 < self.fraction <= 1:
            raise GtRError(f"FTS fraction {self.fraction:g}: expected above 0 and at most 1")
        if not 1 <= self.detail_steps <= 1000:
            raise GtRError(f"FTS detail steps {self.detail_steps}: expected 1 to 1000")

    def count(self, tokens: int) -> int:
        """How many of ``tokens`` get the detail steps: ceil(fraction * tokens), at least 1."""
        if self.selection == "all":
            return tokens
        return min(tokens, max(1, math.ceil(self.fraction * tokens - 1e-9)))


def frequency_scores(z: Tensor) -> Tensor:
    """Conditioning vectors (..., D) -> scores (...): the spectrum's amplitudes A(n), n = 1..floor(D/2), each
    weighted by 1 + n / floor(D/2)."""
    amplitude = torch.fft.rfft(z.float(), dim=-1).abs()[..., 1:]
    half = amplitude.shape[-1]
    weight = 1 + torch.arange(1, half + 1, device=z.device, dtype=torch.float32) / half
    return (amplitude * weight).sum(-1)


def select(fts: FTS, z: Tensor, permutation: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Row indices (B, k) of the tokens that get the detail steps, and (B, n - k) of the others, both ascending.

    z (B, n, D) are the conditional rows; ``permutation`` (B, n), on their device, decides for ``random``.
    """
    count = fts.count(z.shape[1])
    if fts.selection == "random":
        ranked = permutation
    else:
        ranked = torch.argsort(frequency_scores(z), dim=1, descending=fts.selection != "low", stable=True)
    return ranked[:, :count].sort(dim=1).values, ranked[:, count:].sort(dim=1).values
