"""The state of a run while it goes on, drawn over what is known of its image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, uniform_filter

from ..plans.regions import Region
from .canvas import FAINT, PAPER, enlarge
from .plan_figure import stage_colour, token_values

DIM = 0.5  # brightness of tokens to come
NOW = -1  # the state of tokens that are decoded now
SAMPLES = 4  # per pixel and side, for smooth edges


def preview_figure(colours: np.ndarray, state: np.ndarray, side: int) -> np.ndarray:
    """A run in the middle, about ``side`` pixels: colours (h * p, w * p, 3) uint8 of the cells, valid where tokens are
    known, and ``state`` (h, w) per token: 0 known, k > 0 to come in stage k, -1 decoded now.

    Tokens to come show their surroundings at half brightness, with a dot in their stage's colour, or a white
    ring where they are decoded now: shape and lightness tell the same as the colour.
    """
    patch = colours.shape[0] // state.shape[0]
    cell = max(1, side // max(colours.shape[:2])) * patch
    known = state == 0
    spread = _spread(colours.reshape(state.shape[0], patch, state.shape[1], patch, 3).mean((1, 3)), known)
    image = np.where(enlarge(known, patch)[..., None], colours, enlarge(spread, patch) * DIM).astype(np.uint8)
    marks = np.stack([PAPER, *(stage_colour(k) for k in range(1, max(int(state.max()), 1) + 1))])[np.maximum(state, 0)]
    disc, ring = _disc(cell, 0.17), _disc(cell, 0.4) - _disc(cell, 0.27)
    cover = np.stack([np.zeros((cell, cell)), disc, ring])[np.where(state == NOW, 2, np.minimum(state, 1))]
    cover = cover.swapaxes(1, 2).reshape(state.shape[0] * cell, state.shape[1] * cell, 1)
    image = enlarge(image, cell // patch)
    return (image * (1 - cover) + enlarge(marks, cell) * cover).round().astype(np.uint8)


def state_of(regions: Sequence[Region], current: int, step: int, grid: tuple[int, int], index: int = 0) -> np.ndarray:
    """What :func:`preview_figure` takes, (h, w): a run of ``regions`` at AR step ``step`` of region ``current``."""
    state = np.zeros(grid[0] * grid[1], np.int64)
    for later, region in enumerate(regions[current:]):
        plan = region.plan
        revises = not later and step < len(plan.steps) and plan.steps[step].revision
        if not revises:  # what will be drawn again is known until then
            plan = plan.without_revision()
        values = [entry.stage if later or k > step else NOW if k == step else 0 for k, entry in enumerate(plan.steps)]
        state[region.positions[region.unknown.ravel()]] = token_values(plan, values, index)[region.unknown]
    return state.reshape(grid)


def _spread(colours: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) with the tokens that are not ``known`` (h, w) filled from the nearest known one, blurred."""
    if not known.any():
        return np.full(colours.shape, float(FAINT[0]))
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    filled = colours[tuple(nearest)]
    return np.where(known[..., None], filled, uniform_filter(filled, (3, 3, 0), mode="nearest"))


def _disc(cell: int, radius: float) -> np.ndarray:
    """How much of each pixel a disc in the middle of a square covers, (cell, cell) in [0, 1]; ``radius`` in squares."""
    place = (np.arange(cell * SAMPLES) + 0.5) / (cell * SAMPLES) - 0.5
    inside = place[:, None] ** 2 + place**2 <= radius**2
    return inside.reshape(cell, SAMPLES, cell, SAMPLES).mean((1, 3))
