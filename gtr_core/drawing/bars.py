"""Pictures of a plan: stage, AR step and diffusion steps of the tokens, and what every AR step does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .canvas import INK, STAGE_COLOURS, blank, draw_text, text_width
from .plan_figure import GAP


def draw_bars(rows: list[tuple[str, float, str]], title: str, errors: Sequence[float] = ()) -> np.ndarray:
    """Horizontal bars for (name, value, label) as (H, W, 3) uint8, with half widths of intervals if given."""
    line, width = 26, 560
    errors = tuple(errors) or (0.0,) * len(rows)
    left = GAP + max((text_width(name) for name, _, _ in rows), default=0) + GAP
    right = max((text_width(label) for _, _, label in rows), default=0) + GAP
    sheet = blank(2 * GAP + line * (len(rows) + 1), left + width + GAP + right)
    draw_text(sheet, title, GAP, GAP)
    top = max((value + error for (_, value, _), error in zip(rows, errors)), default=1.0) or 1.0
    for index, ((name, value, label), error) in enumerate(zip(rows, errors), start=1):
        y, length, reach = GAP + line * index, max(1, int(width * value / top)), int(width * error / top)
        draw_text(sheet, name, y + 3, GAP)
        sheet[y : y + line - 6, left : left + length] = STAGE_COLOURS[0 if index == 1 else 1]
        if reach:
            sheet[y + 9 : y + 11, max(left, left + length - reach) : left + length + reach] = INK
        draw_text(sheet, label, y + 3, left + length + reach + 8)
    return sheet
