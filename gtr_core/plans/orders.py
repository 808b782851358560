"""Orders of the tokens within a stage (docs/upstream.md 6 and 7). A new order is a function and its entry in ORDERS."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np

# Parities (row, column) of subsample's four phases: the first two make one colour of the checkerboard, or row by row.
PHASES = {"checkerboard": ((0, 0), (1, 1), (0, 1), (1, 0)), "plain": ((0, 0), (0, 1), (1, 0), (1, 1))}


def raster_order(grid: tuple[int, int]) -> np.ndarray:
    """Row by row."""
    return np.arange(grid[0] * grid[1])


def subsample_order(grid: tuple[int, int], phases: str) -> np.ndarray:
    """Four phases by the parity of row and column, each in raster order."""
    raster = raster_order(grid).reshape(grid)
    return np.concatenate([raster[row::2, column::2].ravel() for row, column in PHASES[phases]])


@cache
def halton_order(grid: tuple[int, int]) -> np.ndarray:
    """Cells in the order in which the Halton points (base 2 for rows, base 3 for columns) first visit them.

    Points are drawn until every cell is visited; exact integer arithmetic.
    """
    height, width = grid
    seen: dict[int, None] = {}
    index = 0
    while len(seen) < height * width:
        index += 1
        cell = _radical_inverse(index, 2, height) * width + _radical_inverse(index, 3, width)
        seen.setdefault(cell)
    return np.fromiter(seen, dtype=np.int64)


def shifted(order: np.ndarray, stream: np.random.Generator) -> np.ndarray:
    """The sequence moved forward cyclically by a random number of places."""
    return np.roll(order, int(stream.integers(len(order))))


class OrderSettings(Protocol):
    """What a schedule says about its order."""

    phases: str
    shift: bool


# (positions of a stage, ascending; grid; a stream of randomness; settings) -> the positions in generation order.
Order = Callable[[np.ndarray, tuple[int, int], np.random.Generator, OrderSettings], np.ndarray]


def shuffled(
    subset: np.ndarray, grid: tuple[int, int], stream: np.random.Generator, settings: OrderSettings
) -> np.ndarray:
    """A random permutation."""
    return stream.permutation(subset)


def raster(
    subset: np.ndarray, grid: tuple[int, int], stream: np.random.Generator, settings: OrderSettings
) -> np.ndarray:
    """Row by row."""
    return within(subset, raster_order(grid))


def subsample(
    subset: np.ndarray, grid: tuple[int, int], stream: np.random.Generator, settings: OrderSettings
) -> np.ndarray:
    """Phase by phase."""
    return within(subset, subsample_order(grid, settings.phases))


def halton(
    subset: np.ndarray, grid: tuple[int, int], stream: np.random.Generator, settings: OrderSettings
) -> np.ndarray:
    """The Halton sequence, from a random place on where the settings ask for it."""
    sequence = halton_order(grid)
    return within(subset, shifted(sequence, stream) if settings.shift else sequence)


def within(subset: np.ndarray, sequence: np.ndarray) -> np.ndarray:
    """The positions of a stage in the order of a sequence over the whole grid."""
    return sequence[np.isin(sequence, subset)]


ORDERS: dict[str, Order] = {
    "gtr": shuffled,
    "random": shuffled,
    "raster": raster,
    "subsample": subsample,
    "halton": halton,
}


def _radical_inverse(index: int, base: int, scale: int) -> int:
    """floor(scale * radical inverse of ``index``)."""
    digits, unit = 0, 1
    while index:
        index, digit = divmod(index, base)
        digits, unit = digits * base + digit, unit * base
    return digits * scale // unit
