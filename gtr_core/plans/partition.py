"""Disjoint subsets of a token grid for GtR's stages (paper, Algorithm 1; docs/gtr.md 1)."""

from __future__ import annotations

import numpy as np

from ..errors import GtRError

PARTITIONS = ("diagonal", "quincunx")
LONGEST_SIDE = 256


def check_grid(grid: tuple[int, int]) -> None:
    """Raise GtRError for a grid that no plan is made for, before anything of its size is made."""
    height, width = grid
    if not (1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE):
        raise GtRError(
            f"a grid of {height} x {width} tokens: expected at least 1 x 1 and at most {LONGEST_SIDE} x {LONGEST_SIDE}"
        )


def stage_of_tokens(grid: tuple[int, int], stages: int, partition: str) -> np.ndarray:
    """The stage 1..K of every token, (h, w) int64.

    The unassigned set is cut in halves K - 1 times, the first cut being the checkerboard (i + j) mod 2: the half
    with remainder 1 becomes S_K, then S_{K-1}, ...; what is left is S_1. ``diagonal`` cuts by (i + j) mod 2^k;
    ``quincunx`` alternates rows and checkerboards of the remaining lattice, which keeps tokens of one subset as
    far apart as possible. Raises GtRError when a subset would be empty.
    """
    check_grid(grid)
    if partition not in PARTITIONS:
        raise GtRError(f"partition '{partition}': expected one of {', '.join(PARTITIONS)}")
    if stages < 1:
        raise GtRError(f"{stages} stages: expected at least 1")
    i, j = np.indices(grid)
    stage = np.ones(grid, dtype=np.int64)
    unassigned = np.ones(grid, dtype=bool)
    for cut in range(1, stages):
        half = unassigned & (_bit(i, j, cut, partition) == 1)
        stage[half] = stages - cut + 1
        unassigned &= ~half
        if not half.any() or not unassigned.any():
            raise GtRError(
                f"{stages} stages leave an empty subset on a grid of {grid[0]} x {grid[1]} tokens "
                f"({partition} partition): use at most {cut} stages"
            )
    return stage


def _bit(i: np.ndarray, j: np.ndarray, cut: int, partition: str) -> np.ndarray:
    """Which half of the k-th cut a token falls into."""
    if partition == "diagonal":
        return (i + j) // 2 ** (cut - 1) % 2
    spacing = 2 ** ((cut - 1) // 2)
    return (i // spacing + j // spacing) % 2 if cut % 2 else i // spacing % 2
