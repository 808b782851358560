"""Where the diffusion steps of a run went, drawn over its images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .canvas import LINE, Sheet, enlarge, text_width, viridis

HEATS = ("fts", "all")
SIDE, MARGIN = 384, 16  # the longer side of the image, at least, and what lies around it


@dataclass(frozen=True, eq=False)
class StepCounts:
    """Diffusion steps per token of a run's images, (B, h, w) int: those done, 0 for known tokens, and those of them
    that FTS added to the schedule's."""

    steps: np.ndarray
    extra: np.ndarray

    @classmethod
    def between(cls, steps: np.ndarray, scheduled: np.ndarray, grid: tuple[int, int]) -> StepCounts:
        """Of ``steps`` that were done and those that the schedule asked for, both (B, L)."""
        extra = np.maximum(steps - scheduled, 0)
        return cls(steps.reshape(-1, *grid), extra.reshape(-1, *grid))

    def of(self, heat: str) -> np.ndarray:
        """The counts that a figure of this kind shows, (B, h, w)."""
        return self.extra if heat == "fts" else self.steps


def heatmap(image: np.ndarray, counts: StepCounts, heat: str, index: int = 0, most: int | None = None) -> np.ndarray:
    """Where the diffusion steps of a batch's image ``index`` went: :func:`overlay` with a legend below."""
    values = counts.of(heat)[index]
    most = int(values.max()) if most is None else most
    body = overlay(image, values, most)
    words = (
        "extra diffusion steps (FTS)" if heat == "fts" else "diffusion steps",
        f"{int((values > 0).sum())} of {values.size} tokens",
    )
    height, width, _ = body.shape
    sheet = Sheet(max(width, *map(text_width, words)) + 2 * MARGIN, height + 3 * LINE + 2 * MARGIN + 8)
    sheet.paste(MARGIN, MARGIN, body)
    top = height + 2 * MARGIN
    for line, text in enumerate(words):
        sheet.text(MARGIN, top + line * LINE, text)
    sheet.colour_bar(MARGIN, top + 2 * LINE, sheet.width - 2 * MARGIN, "0", str(max(most, 1)))
    return sheet.pixels()


def overlay(image: np.ndarray, values: np.ndarray, most: int) -> np.ndarray:
    """An ``image`` (H, W, 3) uint8 in grey, about ``SIDE`` pixels, with the tokens whose ``values`` (h, w) are above 0
    lit in viridis, brightest at ``most``, and framed."""
    rows, columns = values.shape
    cell = max(2, -(-SIDE // max(rows, columns)))
    grey = _resized(image, rows * cell, columns * cell).mean(2, keepdims=True).repeat(3, 2)
    lit = enlarge(values > 0, cell)[..., None]
    tint = enlarge(viridis(values / max(most, 1)), cell).astype(float)
    body = np.where(lit, 0.4 * grey + 0.6 * tint, 0.8 * grey)
    frame = _frame(cell, values.shape)[..., None] & lit
    return np.where(frame, tint, body).astype(np.uint8)


def _frame(cell: int, grid: tuple[int, int]) -> np.ndarray:
    """The border of every token's square."""
    square, line = np.ones((cell, cell), bool), max(1, cell // 12)
    square[line:-line, line:-line] = False
    return np.tile(square, grid)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS), float)
