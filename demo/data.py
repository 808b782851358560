"""Synthetic images, 128 x 128 pixels, 10 classes: an arrangement of objects times a texture.

Global structure and fine detail can both fail visibly. Every image draws a few things once that tokens far apart must
agree on: hue, second hue, background, size, the phase of the texture and the side that the light comes from. Textures
have the class's own period, from one token to two tokens (a token is 8 x 8 pixels) and positions and
sizes are whole tokens, so that a small model can learn them. The background is woven: every row and every column of
tokens has a thread or none. Without threads an image is decided by its first few tokens, and how many are drawn at
once later cannot matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

SIZE, TOKEN, HUES = 128, 8, 8
SHIFT = TOKEN // 2  # pixels of phase: half a token, so that a single token of a texture shows it
MIDDLE = SIZE / 2
FACTORS = {"hue": HUES, "background": 4, "size": 3, "phase": 2, "light": 2}

THREAD = 4  # pixels, in the middle of a row or column of tokens
WARP, WEFT = -0.12, 0.12  # what a thread along a column or a row adds to the background

# Muted backgrounds (r, g, b) in [0, 1]; a vertical gradient and threads are laid over them.
BACKGROUNDS = ((0.24, 0.27, 0.34), (0.40, 0.37, 0.35), (0.78, 0.76, 0.70), (0.62, 0.68, 0.74))


@dataclass(frozen=True)
class Draw:
    """The random choices behind n images; every field (n, 1, 1) but the threads."""

    hue: Tensor  # 0..7
    other: Tensor  # 0..7, another hue for layouts of two colours
    background: Tensor  # 0..3
    size: Tensor  # 0, 1 or 2
    phase: Tensor  # 0 or 1, in units of SHIFT
    light: Tensor  # 0: brighter above, 1: brighter below
    threads: Tensor  # (n, 1, H, W), added to the background


@dataclass(frozen=True)
class Part:
    """One object: coverage and texture (n, H, W) or (H, W) in [0, 1] (1 = bright), hue (n, 1, 1)."""

    cover: Tensor
    hue: Tensor
    texture: Tensor


Layout = Callable[[Draw, Tensor, Tensor], list[Part]]


def palette() -> Tensor:
    """(HUES, 2, 3): per hue its dark and its bright colour, in [0, 1]."""
    hue = torch.arange(HUES)[:, None] / HUES * 6
    ramp = (torch.stack([(hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()], -1)[:, 0]).clamp(0, 1)
    bright = 0.95 * (1 - 0.75 * (1 - ramp))
    return torch.stack([0.4 * bright, bright], 1)


def edge(distance: Tensor) -> Tensor:
    """Signed distance in pixels (negative inside) -> coverage with a one-pixel soft edge."""
    return (0.5 - distance).clamp(0, 1)


def disk(x: Tensor, y: Tensor, cx: Tensor | float, cy: Tensor | float, radius: Tensor | float) -> Tensor:
    return edge(((x - cx) ** 2 + (y - cy) ** 2).sqrt() - radius)


def box(
    x: Tensor, y: Tensor, cx: Tensor | float, cy: Tensor | float, half_x: Tensor | float, half_y: Tensor | float
) -> Tensor:
    return edge(torch.maximum((x - cx).abs() - half_x, (y - cy).abs() - half_y))


def bands(position: Tensor, period: int, phase: Tensor) -> Tensor:
    """1 in one half of each period, 0 in the other."""
    return ((position.floor() + SHIFT * phase) % period < period // 2).float()


def checks(x: Tensor, y: Tensor, period: int, phase: Tensor) -> Tensor:
    return (bands(x, period, phase) - bands(y, period, torch.zeros_like(phase))).abs()


def dots(x: Tensor, y: Tensor, period: int, radius: float, phase: Tensor) -> Tensor:
    """Dark dots, one per period, or bright ones."""
    centre = period / 2
    inside = edge((((x % period) - centre) ** 2 + ((y % period) - centre) ** 2).sqrt() - radius)
    return torch.where(phase == 0, 1 - inside, inside)


def speckle(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    """A fixed random pattern of 4 x 4 pixel grains that repeats every 16 pixels."""
    grains = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    return grains[(y.long() // 4) % 4, ((x.long() + SHIFT * phase) // 4) % 4]


def striped_disk(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    return [Part(disk(x, y, MIDDLE, MIDDLE, 32 + 8 * d.size), d.hue, bands(y, 16, d.phase))]


def checked_ring(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    ring = disk(x, y, MIDDLE, MIDDLE, 40 + 8 * d.size) - disk(x, y, MIDDLE, MIDDLE, 16 + 8 * d.size)
    return [Part(ring, d.hue, checks(x, y, 16, d.phase))]


def dotted_square(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    half = 24 + 8 * d.size
    return [Part(box(x, y, MIDDLE, MIDDLE, half, half), d.hue, dots(x, y, 8, 2.5, d.phase))]


def ribbed_twins(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    radius = 16 + 6 * d.size
    return [Part(disk(x, y, MIDDLE + side * 32, MIDDLE, radius), d.hue, bands(x, 8, d.phase)) for side in (-1, 1)]


def woven_cross(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    arm, half = 40 + 8 * d.size, 16.0
    cover = torch.maximum(box(x, y, MIDDLE, MIDDLE, arm, half), box(x, y, MIDDLE, MIDDLE, half, arm))
    return [Part(cover, d.hue, bands(x + y, 8, d.phase))]


def framed_dot(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    half = 40 + 8 * d.size
    frame = box(x, y, MIDDLE, MIDDLE, half, half) - box(x, y, MIDDLE, MIDDLE, half - 16, half - 16)
    return [Part(frame, d.hue, bands(y, 8, d.phase)), Part(disk(x, y, MIDDLE, MIDDLE, 16), d.other, torch.ones_like(x))]


def four_tiles(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    half = 16 + 4 * d.size
    offset = half + 8
    other = (d.hue + 3) % HUES  # a pair of hues tells which is whose: a small model does not learn to compare corners
    return [
        Part(
            box(x, y, MIDDLE + i * offset, MIDDLE + j * offset, half, half),
            d.hue if i == j else other,
            checks(x, y, 8, d.phase),
        )
        for i in (-1, 1)
        for j in (-1, 1)
    ]


# Older than its texture: saved workflows name it.
def banded_diamond(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    cover = edge(((x - MIDDLE).abs() + (y - MIDDLE).abs() - (40 + 8 * d.size)) / 2**0.5)
    return [Part(cover, d.hue, speckle(x, y, d.phase))]


def sun_and_sea(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    """The lower sun is the mirror image in the sea."""
    radius = 14 + 4 * d.size
    sea = edge(MIDDLE - y)
    suns = [
        Part(disk(x, y, MIDDLE, MIDDLE + side * 32, radius), d.hue, texture)
        for side, texture in ((-1, torch.ones_like(x)), (1, bands(y, 8, d.phase)))
    ]
    return [Part(sea, d.other, 0.5 * bands(y, 8, d.phase)), *suns]


def striped_gate(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    half, texture = 32 + 8 * d.size, bands(x + y, 16, d.phase)
    posts = [Part(box(x, y, MIDDLE + side * half, MIDDLE + 8, 8.0, 32.0), d.hue, texture) for side in (-1, 1)]
    return [*posts, Part(box(x, y, MIDDLE, MIDDLE - 32, half + 8, 8.0), d.hue, texture)]


LAYOUTS: dict[str, Layout] = {
    "striped disk": striped_disk,
    "checked ring": checked_ring,
    "dotted square": dotted_square,
    "ribbed twins": ribbed_twins,
    "woven cross": woven_cross,
    "framed dot": framed_dot,
    "four tiles": four_tiles,
    "banded diamond": banded_diamond,
    "sun and sea": sun_and_sea,
    "striped gate": striped_gate,
}
CLASS_NAMES: tuple[str, ...] = tuple(LAYOUTS)


def threads(n: int, generator: torch.Generator) -> Tensor:
    """Dark threads (n, 1, H, W) along half of the columns of tokens, bright ones along half of the rows, at random."""
    side = SIZE // TOKEN
    across = torch.arange(SIZE) % TOKEN
    on_thread = (across >= (TOKEN - THREAD) // 2) & (across < (TOKEN + THREAD) // 2)
    columns, rows = torch.randint(2, (2, n, 1, side), generator=generator).repeat_interleave(TOKEN, -1) * on_thread
    weft = (rows[..., None] > 0).expand(-1, -1, -1, SIZE)
    return torch.where(weft, WEFT, WARP * columns[..., None, :].float())


def choose(n: int, generator: torch.Generator) -> Draw:
    """Draw the random choices of n images."""

    def pick(count: int) -> Tensor:
        return torch.randint(count, (n, 1, 1), generator=generator)

    draws = {name: pick(count) for name, count in FACTORS.items()}
    return Draw(**draws, other=(draws["hue"] + 3 + 2 * pick(2)) % HUES, threads=threads(n, generator))


def pixel_centres() -> tuple[Tensor, Tensor]:
    """y and x (H, W) of every pixel."""
    centres = torch.arange(SIZE) + 0.5
    return torch.meshgrid(centres, centres, indexing="ij")


def render(draw: Draw, layout: Layout) -> Tensor:
    """The images of one class: (n, 3, H, W) in [-1, 1]."""
    y, x = pixel_centres()
    colours = palette()
    slope = (0.2 - 0.4 * draw.light) * (0.5 - y / SIZE)
    image = torch.tensor(BACKGROUNDS)[draw.background[:, 0, 0]][..., None, None] * (1 + slope)[:, None] + draw.threads
    for part in layout(draw, x, y):
        dark, bright = colours[part.hue[:, 0, 0]].unbind(1)
        cover, texture = (field.expand(len(image), SIZE, SIZE)[:, None] for field in (part.cover, part.texture))
        colour = dark[..., None, None] + (bright - dark)[..., None, None] * texture
        image = image + cover * (colour - image)
    return image.clamp(0, 1) * 2 - 1


def seams(draw: Draw, layout: Layout) -> Tensor:
    """(n, 16, 16) bool: threads do not go on at the left or upper border of a token, and no object covers it."""
    y, x = pixel_centres()
    cover = torch.stack([part.cover.expand(draw.threads[:, 0].shape) for part in layout(draw, x, y)]).amax(0)
    fields, bare = draw.threads[:, 0], cover == 0
    found = torch.zeros(len(cover), SIZE // TOKEN, SIZE // TOKEN, dtype=torch.bool)
    for tokens, field, free in ((found, fields, bare), (found.mT, fields.mT, bare.mT)):
        broken = (field.diff(dim=-1) != 0) & free[..., 1:] & free[..., :-1]
        tokens[..., 1:] |= broken[..., TOKEN - 1 :: TOKEN].unflatten(-2, (-1, TOKEN)).any(-2)
    return found


def images(labels: Tensor, generator: torch.Generator, torn: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """labels (n,) int64 -> images (n, 3, 128, 128) float32 in [-1, 1], and the factors of each, (n,) int64.

    ``torn`` (n, 16, 16) bool: tokens with threads of their own; the factors then have a map of the :func:`seams` too.
    """
    out = torch.empty(len(labels), 3, SIZE, SIZE)
    drawn = {name: torch.empty_like(labels) for name in FACTORS}
    if torn is not None:
        drawn["seams"] = torch.empty_like(torn)
    for index, layout in enumerate(LAYOUTS.values()):
        rows = (labels == index).nonzero()[:, 0]
        if len(rows):
            draw = choose(len(rows), generator)
            if torn is not None:
                cut = F.interpolate(torn[rows, None].float(), scale_factor=TOKEN) > 0
                draw = replace(draw, threads=torch.where(cut, threads(len(rows), generator), draw.threads))
                drawn["seams"][rows] = seams(draw, layout)
            out[rows] = render(draw, layout)
            for name in FACTORS:
                drawn[name][rows] = getattr(draw, name)[:, 0, 0]
    return out, drawn


def batch(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n images of random classes: (n, 3, 128, 128) and labels (n,)."""
    labels = torch.randint(len(LAYOUTS), (n,), generator=generator)
    return images(labels, generator)[0], labels
