"""A drawing of shapes instead of pixels, for .svg and .pdf files (matplotlib, in the extra ``eval``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .bars import new_chart, rgb
from .canvas import INK, PAPER, TEXT, Drawing, ascent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS = 100  # pixels per inch
POINT = 72 / DOTS
NARROW = 0.86  # how much wider matplotlib's letters are than those of the figures in pixels


class VectorSheet(Drawing):
    """The same drawing as a :class:`Sheet`. Raises GtRError where matplotlib is missing."""

    figure: Figure

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        with new_chart(width / DOTS, height / DOTS) as (self.figure, self._axes):
            self.figure.set_layout_engine("none")
            self._axes.set_position((0, 0, 1, 1))
            self._axes.set_xlim(0, width)
            self._axes.set_ylim(height, 0)
            self._axes.set_axis_off()

    def text(self, left: int, top: int, text: str, *, align: str = "left", size: int = TEXT) -> None:
        side = {"middle": "center"}.get(align, align)
        style = {"family": "DejaVu Sans", "fontsize": size * POINT * NARROW, "color": rgb(INK)}
        self._axes.text(left, top + ascent(size), text, ha=side, va="baseline", parse_math=False, **style)

    def rectangle(self, left: int, top: int, width: int, height: int, colour) -> None:
        if width > 0 and height > 0:
            self._add(left, top, width, height, facecolor=rgb(colour), linewidth=0)

    def frame(self, left: int, top: int, width: int, height: int) -> None:
        if width > 0 and height > 0:
            inside = (left + 0.5, top + 0.5, width - 1, height - 1)
            self._add(*inside, facecolor=rgb(PAPER), edgecolor=rgb(INK), linewidth=POINT)

    def cells(self, left: int, top: int, colours: np.ndarray, size: tuple[int, int], gap: int = 0) -> None:
        width, height = size
        for row, column in np.ndindex(colours.shape[:2]):
            place = (left + column * width, top + row * height)
            self.rectangle(*place, width - gap, height - gap, colours[row, column])

    def _add(self, left: float, top: float, width: float, height: float, **style) -> None:
        from matplotlib.patches import Rectangle

        self._axes.add_patch(Rectangle((left, top), width, height, antialiased=False, **style))
