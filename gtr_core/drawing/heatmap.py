"""Pictures over pictures: the state of a run while it goes on, and where its diffusion steps went."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..plans.plan import Plan
from .canvas import LINE, blank, draw_colour_bar, draw_text, enlarge, text_width, viridis

HEATS = ("fts", "all")
HEAT_SIDE, MARGIN = 384, 12


@dataclass(frozen=True, eq=False)
class Spent:
    """Diffusion steps per token of a run's images, (B, h, w) int: those done, 0 for given tokens, and those of them
    that FTS added to the schedule's."""

    steps: np.ndarray
    extra: np.ndarray


def planned_steps(plan: Plan) -> np.ndarray:
    """The schedule's own diffusion steps per token, (B, L); 0 where the plan leaves a token alone."""
    result = np.zeros((plan.batch, plan.tokens), np.int64)
    for step in plan.steps:
        np.put_along_axis(result, step.targets, step.diffusion_steps, 1)
    return result


def draw_heat(picture: np.ndarray, spent: Spent, heat: str, image: int = 0, most: int | None = None) -> np.ndarray:
    """Where the diffusion steps of an image went, over its ``picture`` (H, W, 3) uint8, with a legend below.

    ``fts``: the picture in grey, tokens with extra steps lit in viridis and framed; ``all``: every decoded token by
    its steps. ``most`` is the end of the scale, by default the image's own largest value.
    """
    values = spent.extra[image] if heat == "fts" else spent.steps[image]
    rows, columns = values.shape
    cell = max(2, -(-HEAT_SIDE // max(rows, columns)))
    height, width = rows * cell, columns * cell
    most = max(int(values.max()) if most is None else most, 1)
    grey = _resized(picture, height, width).mean(2, keepdims=True).repeat(3, 2)
    lit = enlarge(values > 0, cell)[..., None]
    tint = enlarge(viridis(values / most), cell).astype(float)
    body = np.where(lit, 0.4 * grey + 0.6 * tint, 0.8 * grey)
    frame = _frame(cell, values.shape)[..., None] & lit
    body = np.where(frame, tint, body)
    words = (
        "extra diffusion steps (FTS)" if heat == "fts" else "diffusion steps",
        f"{int((values > 0).sum())} of {values.size} tokens",
    )
    sheet = blank(height + 3 * LINE + 3 * MARGIN, max(width, *map(text_width, words)) + 2 * MARGIN)
    sheet[MARGIN : MARGIN + height, MARGIN : MARGIN + width] = body.astype(np.uint8)
    for line, text in enumerate(words):
        draw_text(sheet, text, height + 2 * MARGIN + line * LINE, MARGIN)
    top = height + 2 * MARGIN + 2 * LINE
    draw_colour_bar(sheet, top, MARGIN, sheet.shape[1] - 2 * MARGIN, "0", str(most))
    return sheet


def _frame(cell: int, grid: tuple[int, int]) -> np.ndarray:
    """The border of every token's square."""
    square, line = np.ones((cell, cell), bool), max(1, cell // 12)
    square[line:-line, line:-line] = False
    return np.tile(square, grid)


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest neighbours."""
    rows, columns = (np.arange(size) * old // size for size, old in zip((height, width), picture.shape))
    return picture[rows][:, columns].astype(float)
