"""What figures are drawn on, with a white sheet of pixels, and the palettes of all figures and charts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours, which colour-blind people can tell apart, without the yellow, which is faint on white.
OKABE_ITO = np.array(
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (0, 0, 0)]
)
STAGE_COLOURS = OKABE_ITO[:6]
REVISED = OKABE_ITO[6]

# Viridis at even distances: its lightness rises evenly, so that it can be read without seeing its hues.
VIRIDIS = np.array(
    [
        (68, 1, 84),
        (70, 50, 127),
        (54, 92, 141),
        (39, 127, 142),
        (31, 161, 135),
        (74, 194, 109),
        (159, 218, 58),
        (253, 231, 37),
    ]
)

INK, PAPER, KNOWN, FAINT = (40, 40, 40), (255, 255, 255), (225, 225, 225), (190, 190, 190)
TEXT, LINE = 16, 26  # size of the letters and height of a line, in pixels
SWATCH = 14  # side of a colour's square in a legend
SMOOTH = 4  # how much larger letters are set than they are shown


class Drawing(ABC):
    """A figure in the making. Places and sizes are pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height

    @abstractmethod
    def text(self, left: int, top: int, text: str, *, align: str = "left", size: int = TEXT) -> None:
        """One line of text; ``left`` is where it begins, or its middle or its end by ``align``."""

    @abstractmethod
    def rectangle(self, left: int, top: int, width: int, height: int, colour) -> None:
        """A filled rectangle; nothing where a side is 0."""

    @abstractmethod
    def frame(self, left: int, top: int, width: int, height: int) -> None:
        """The outline of a rectangle."""

    @abstractmethod
    def cells(self, left: int, top: int, colours: np.ndarray, size: tuple[int, int], gap: int = 0) -> None:
        """Colours (h, w, 3) as rectangles of ``size`` (width, height), of which the last ``gap`` rows and columns are
        left white."""

    def swatch(self, left: int, top: int, colour) -> None:
        """A legend's square beside the line of text at ``top``."""
        self.rectangle(left, top + 2, SWATCH, SWATCH, colour)

    def colour_bar(self, left: int, top: int, width: int, low: str, high: str) -> None:
        """Viridis from dark to light between the labels of its ends, one line high, ``width`` pixels in all."""
        self.text(left, top, low)
        self.text(left + width, top, high, align="right")
        start, length = left + text_width(low) + 8, width - text_width(low) - text_width(high) - 16
        if length > 0:
            self.cells(start, top + 2, viridis(np.linspace(0, 1, length))[None], (1, SWATCH))


class Sheet(Drawing):
    """A drawing of pixels, with Pillow; what leaves the sheet is cut off."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self._image = Image.new("RGB", (width, height), PAPER)
        self._pen = ImageDraw.Draw(self._image)

    def text(self, left: int, top: int, text: str, *, align: str = "left", size: int = TEXT) -> None:
        width = text_width(text, size)
        left -= {"left": 0, "middle": width // 2, "right": width}[align]
        # Letters are set in a larger size: in their own, each would move to a whole pixel.
        mask = Image.new("L", (SMOOTH * (width + 2), SMOOTH * 2 * size))
        ImageDraw.Draw(mask).text((0, 0), text, 255, _font(SMOOTH * size))
        self._image.paste(INK, (left, top), mask.reduce(SMOOTH))

    def rectangle(self, left: int, top: int, width: int, height: int, colour) -> None:
        if width > 0 and height > 0:
            self._pen.rectangle((left, top, left + width - 1, top + height - 1), fill=tuple(map(int, colour)))

    def frame(self, left: int, top: int, width: int, height: int) -> None:
        if width > 0 and height > 0:
            self._pen.rectangle((left, top, left + width - 1, top + height - 1), fill=PAPER, outline=INK)

    def cells(self, left: int, top: int, colours: np.ndarray, size: tuple[int, int], gap: int = 0) -> None:
        width, height = size
        pixels = colours.repeat(height, 0).repeat(width, 1)
        for edge in range(1, gap + 1):
            pixels[height - edge :: height] = pixels[:, width - edge :: width] = PAPER
        self.paste(left, top, pixels)

    def paste(self, left: int, top: int, pixels: np.ndarray) -> None:
        """Pixels (h, w, 3) with their upper left corner at a place."""
        self._image.paste(Image.fromarray(np.ascontiguousarray(pixels, np.uint8)), (left, top))

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return np.array(self._image)


def text_width(text: str, size: int = TEXT) -> int:
    """Pixels of a line."""
    return round(_font(SMOOTH * size).getlength(text) / SMOOTH)


def ascent(size: int = TEXT) -> float:
    """Pixels from the top of a line to the foot of its letters."""
    return _font(SMOOTH * size).getmetrics()[0] / SMOOTH


def viridis(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] -> colours (..., 3) uint8, dark to light."""
    place = np.clip(values, 0, 1) * (len(VIRIDIS) - 1)
    below = np.minimum(place.astype(int), len(VIRIDIS) - 2)
    share = (place - below)[..., None]
    return (VIRIDIS[below] * (1 - share) + VIRIDIS[below + 1] * share).round().astype(np.uint8)


def enlarge(cells: np.ndarray, cell: int) -> np.ndarray:
    """Every value of (h, w, ...) as a square of ``cell`` x ``cell`` pixels."""
    return cells.repeat(cell, 0).repeat(cell, 1)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font; it has ASCII's letters and a few more."""
    return ImageFont.load_default(size)
