"""Drawing on (H, W, 3) uint8 arrays: colours that colour-blind people can tell apart, letters, colour bars."""

from __future__ import annotations

import numpy as np

# Okabe and Ito's colours, which colour-blind people can tell apart, without the yellow, which is faint on white.
OKABE_ITO = np.array(
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (0, 0, 0)]
)
STAGE_COLOURS = OKABE_ITO[:6]


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


SCALE, ADVANCE, LINE = 2, 12, 22


# Letters of 5 x 8 dots, the last row for descenders: every character is a row of five bits, a digit in base 32.
FONT = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789abcdefghijklmnopqrstuvwxyz-.:/%+=,()_±",
        (
            "ehhvhhh0 uhhuhhu0 ehggghe0 uhhhhhu0 vgguggv0 vgguggg0 ehgnhhf0 hhhvhhh0 e44444e0 72222ic0 hikokih0 ggggggv0 "
            "hrllhhh0 hhpljhh0 ehhhhhe0 uhhuggg0 ehhhlid0 uhhukih0 fgge11u0 v4444440 hhhhhhe0 hhhhha40 hhhllla0 hha4ahh0 "
            "hhha4440 v1248gv0 ehjlphe0 4c4444e0 eh1248v0 v2421he0 26aiv220 vgu11he0 68guhhe0 v1248880 ehhehhe0 ehhf12c0 "
            "00e1fhf0 ggmphhu0 00egghe0 11djhhf0 00ehvge0 698s8880 00fhhf1e ggmphhh0 40c444e0 206222ic ggikoki0 c44444e0 "
            "00qllhh0 00mphhh0 00ehhhe0 00uhhugg 00fhhf11 00mpggg0 00fge1u0 88s88960 00hhhjd0 00hhha40 00hhlla0 00ha4ah0 "
            "00hhhf1e 00v248v0 000v0000 00000cc0 0cc0cc00 01248g00 op248j30 044v4400 00v0v000 00000c48 24888420 84222480 "
            "000000v0 44v440v0"
        ).split(),
    )
)


def blank(height: int, width: int) -> np.ndarray:
    """An empty sheet."""
    return np.full((height, width, 3), PAPER, np.uint8)


def draw_text(canvas: np.ndarray, text: str, top: int, left: int, colour=INK) -> None:
    """Write ``text`` into (H, W, 3), clipped at the border; characters without a letter leave a gap."""
    for index, glyph in enumerate(FONT.get(character, "00000000") for character in text):
        bits = np.array([[int(row, 32) >> shift & 1 for shift in range(4, -1, -1)] for row in glyph], bool)
        bits = bits.repeat(SCALE, 0).repeat(SCALE, 1)
        start = left + ADVANCE * index
        area = canvas[top : top + bits.shape[0], start : start + bits.shape[1]]
        area[bits[: area.shape[0], : area.shape[1]]] = colour


def text_width(text: str) -> int:
    """Pixels of a line."""
    return ADVANCE * len(text) - SCALE


def viridis(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] -> colours (..., 3) uint8, dark to light."""
    place = np.clip(values, 0, 1) * (len(VIRIDIS) - 1)
    below = np.minimum(place.astype(int), len(VIRIDIS) - 2)
    share = (place - below)[..., None]
    return (VIRIDIS[below] * (1 - share) + VIRIDIS[below + 1] * share).round().astype(np.uint8)


def draw_colour_bar(canvas: np.ndarray, top: int, left: int, width: int, low: str, high: str) -> None:
    """Viridis from dark to light between its two ends' labels, one line high, ``width`` pixels in all."""
    draw_text(canvas, low, top, left)
    draw_text(canvas, high, top, left + width - text_width(high))
    start, end = left + text_width(low) + 8, left + width - text_width(high) - 8
    canvas[top : top + 14, start:end] = viridis(np.linspace(0, 1, max(end - start, 0)))


def enlarge(cells: np.ndarray, cell: int) -> np.ndarray:
    """Every value of (h, w, ...) as a square of ``cell`` x ``cell`` pixels."""
    return cells.repeat(cell, 0).repeat(cell, 1)
