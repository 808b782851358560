"""Editing a given image: which tokens to resample, and windows over grids larger than a model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import GtRError
from ..noise import ORDER, generator, window_seeds
from .method import Method
from .partition import stage_of_tokens
from .plan import Plan, make_plan, token_sequences
from .schedule import Schedule

REDRAWS = ("reconstruction", "variations", "denoise")
LARGEST_WINDOWED_SIDE = 512


@dataclass(frozen=True, eq=False)
class Region:
    """One plan of a run and where it applies: ``positions`` (n,) are the raster positions of its tokens in the whole
    grid, ``unknown`` those of them, (h, w) bool, that the plan decodes; ``seeds`` are for its noise."""

    plan: Plan
    positions: np.ndarray
    unknown: np.ndarray
    seeds: tuple[int, ...]


def redrawn_tokens(schedule: Schedule, grid: tuple[int, int], redraw: str, denoise: float = 1.0) -> np.ndarray:
    """The tokens of a given image to resample, (h, w) bool: always the last ones of the schedule's order.

    ``reconstruction``: the last stage (the odd colour of the checkerboard); ``variations``: all but stage 1, whose
    structure tokens stay; ``denoise``: that share of all tokens; a random order is drawn from seed 0, so they are
    the same every time. Raises GtRError for a share outside 0 to 1, or stages that the schedule does not have.
    """
    if redraw not in REDRAWS:
        raise GtRError(f"redraw '{redraw}': expected one of {', '.join(REDRAWS)}")
    if not 0 <= denoise <= 1:
        raise GtRError(f"denoise {denoise:g}: expected 0 (nothing is resampled) to 1 (everything)")
    if redraw == "denoise":
        order = np.concatenate(token_sequences(schedule, grid, generator(0, ORDER)))
        mask = np.zeros(len(order), bool)
        mask[order[len(order) - round(denoise * len(order)) :]] = True
        return mask.reshape(grid)
    if schedule.stages == 1:
        raise GtRError(
            f"schedule '{schedule.name}' has a single stage, so there is no other stage to keep: use a GtR "
            "schedule, or redraw 'denoise'"
        )
    stage = stage_of_tokens(grid, schedule.stages, schedule.partition)
    return stage > (1 if redraw == "variations" else schedule.stages - 1)


def whole_grid(method: Method, seeds: Sequence[int], unknown: np.ndarray) -> tuple[Region, ...]:
    """One region: the ``unknown`` tokens, (h, w) bool, of a grid that the model draws at once."""
    plan = make_plan(method, unknown.shape, seeds, unknown=unknown)
    return (Region(plan, np.arange(plan.tokens), unknown, tuple(seeds)),)


def window_regions(
    method: Method, own: tuple[int, int], seeds: Sequence[int], unknown: np.ndarray, overlap: int = 0
) -> tuple[Region, ...]:
    """Parts that together decode the ``unknown`` tokens, (H, W) bool, of a grid larger than the model's ``own``.

    What a window decodes is known to the following ones; each has an order and noise of its own. Raises GtRError, see
    :func:`windows`.
    """
    open_tokens, raster, regions = unknown.copy(), np.arange(unknown.size).reshape(unknown.shape), []
    for index, (top, left) in enumerate(windows(own, unknown, overlap)):
        area = np.s_[top : top + own[0], left : left + own[1]]
        inside, its_seeds = open_tokens[area].copy(), window_seeds(seeds, index)
        plan = make_plan(method, own, its_seeds, unknown=inside)
        regions.append(Region(plan, raster[area].ravel(), inside, its_seeds))
        open_tokens[area] = False
    return tuple(regions)


def windows(own: tuple[int, int], unknown: np.ndarray, overlap: int = 0) -> list[tuple[int, int]]:
    """Top left tokens of windows of the size ``own`` that cover the ``unknown`` tokens, (H, W) bool, in their order.

    Windows lie on a lattice and overlap by at least ``overlap`` tokens (0 = half the shorter side); the one with most
    known tokens goes next. Raises GtRError when the grid is smaller than a window or above 512 tokens a side, or when
    the overlap does not fit.
    """
    (height, width), (rows, columns) = unknown.shape, own
    if height < rows or width < columns or max(height, width) > LARGEST_WINDOWED_SIDE:
        raise GtRError(
            f"a grid of {height} x {width} tokens: windows of {rows} x {columns} need at least that, and at "
            f"most {LARGEST_WINDOWED_SIDE} tokens a side"
        )
    overlap = overlap or min(own) // 2
    if not 1 <= overlap < min(own):
        raise GtRError(f"windows of {rows} x {columns} tokens cannot overlap by {overlap}: use 1 to {min(own) - 1}")
    corners = [(top, left) for top in _lattice(height, rows, overlap) for left in _lattice(width, columns, overlap)]
    open_tokens, chosen = unknown.copy(), []
    while open_tokens.any():
        counts = [open_tokens[top : top + rows, left : left + columns].sum() for top, left in corners]
        top, left = corners[min(np.flatnonzero(counts), key=counts.__getitem__)]
        open_tokens[top : top + rows, left : left + columns] = False
        chosen.append((top, left))
    return chosen


def _lattice(length: int, window: int, overlap: int) -> list[int]:
    """First rows (or columns) of windows that cover ``length`` with at least ``overlap`` shared by neighbours."""
    last = length - window
    return [*range(0, last, window - overlap), last]
