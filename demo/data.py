"""Synthetic pictures, 64 x 64 pixels, 10 classes: an arrangement of objects times a texture.

Made so that a very small model can learn it: the VAE's tokens are 4 x 4 pixels, so positions and sizes are whole
tokens, texture periods are 4, 8 or 16 pixels with a phase tied to the token grid, and colours come from short lists.
Mirrored parts share their hue: a picture is only right when far-apart tokens agree. Pictures are centred, or shifted
by up to ``spread`` tokens, as the VAE and the first half of the MAR's training see them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE, TOKEN, HUES = 64, 4, 8

# Muted backgrounds (r, g, b) in [0, 1]; a vertical gradient is laid over them.
BACKGROUNDS = ((0.13, 0.15, 0.22), (0.30, 0.27, 0.25), (0.86, 0.84, 0.78), (0.62, 0.68, 0.74))


@dataclass(frozen=True)
class Draw:
    """The random choices behind n pictures; every field (n, 1, 1), lengths in pixels."""

    hue: Tensor          # 0..7
    other: Tensor        # 0..7, another hue for layouts of two colours
    background: Tensor   # 0..3
    cx: Tensor           # centre, a token corner
    cy: Tensor
    size: Tensor         # 0, 1 or 2


@dataclass(frozen=True)
class Part:
    """One object: coverage (n, H, W) in [0, 1], hue (n, 1, 1), texture (n, H, W) or (H, W) in [0, 1] (1 = bright)."""

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


def disk(x: Tensor, y: Tensor, cx: Tensor, cy: Tensor, radius: Tensor) -> Tensor:
    return edge(((x - cx) ** 2 + (y - cy) ** 2).sqrt() - radius)


def box(x: Tensor, y: Tensor, cx: Tensor, cy: Tensor, half_x: Tensor, half_y: Tensor) -> Tensor:
    return edge(torch.maximum((x - cx).abs() - half_x, (y - cy).abs() - half_y))


def bands(position: Tensor, period: int) -> Tensor:
    """1 in the first half of each period, 0 in the second."""
    return ((position.floor() % period) < period // 2).float()


def checks(x: Tensor, y: Tensor, period: int) -> Tensor:
    return (bands(x, period) - bands(y, period)).abs()


def dots(x: Tensor, y: Tensor, period: int, radius: float) -> Tensor:
    """Dark dots, one per period, each in the middle of a token."""
    centre = TOKEN / 2
    return 1 - edge((((x % period) - centre) ** 2 + ((y % period) - centre) ** 2).sqrt() - radius)


def grid_lines(x: Tensor, y: Tensor, period: int) -> Tensor:
    return ((x.floor() % period > 0) & (y.floor() % period > 0)).float()


def striped_disk(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    return [Part(disk(x, y, d.cx, d.cy, 16 + 4 * d.size), d.hue, bands(y, 8))]


def checked_ring(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    outer = disk(x, y, d.cx, d.cy, 20 + 4 * d.size)
    return [Part(outer - disk(x, y, d.cx, d.cy, 8 + 4 * d.size), d.hue, checks(x, y, 8))]


def dotted_square(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    half = 12 + 4 * d.size
    return [Part(box(x, y, d.cx, d.cy, half, half), d.hue, dots(x, y, 8, 2.0))]


def ribbed_twins(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    radius = 8 + 2 * d.size.clamp(max=1)
    return [Part(disk(x, y, d.cx + side * 16, d.cy, radius), d.hue, bands(x, 4)) for side in (-1, 1)]


def woven_cross(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    arm, half = 20 + 4 * d.size, 8.0
    cover = torch.maximum(box(x, y, d.cx, d.cy, arm, half), box(x, y, d.cx, d.cy, half, arm))
    return [Part(cover, d.hue, bands(x + y, 8))]


def framed_dot(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    half = 20 + 4 * d.size.clamp(max=1)
    frame = box(x, y, d.cx, d.cy, half, half) - box(x, y, d.cx, d.cy, half - 8, half - 8)
    return [Part(frame, d.hue, grid_lines(x, y, 4)), Part(disk(x, y, d.cx, d.cy, 8), d.other, torch.ones_like(x))]


def four_tiles(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    half = 8 + 4 * d.size.clamp(max=1)
    offset = half + 4
    return [Part(box(x, y, d.cx + i * offset, d.cy + j * offset, half, half), d.hue if i == j else d.other,
                 checks(x, y, 4)) for i in (-1, 1) for j in (-1, 1)]


def banded_diamond(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    cover = edge(((x - d.cx).abs() + (y - d.cy).abs() - (20 + 4 * d.size)) / 2 ** 0.5)
    return [Part(cover, d.hue, bands(x, 16))]


def sun_and_sea(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    radius = 8 + 2 * d.size.clamp(max=1)
    sea = edge(d.cy - y).expand(d.cx.shape[0], SIZE, SIZE)
    suns = [Part(disk(x, y, d.cx, d.cy + side * 14, radius), d.hue, texture)
            for side, texture in ((-1, torch.ones_like(x)), (1, bands(y, 4)))]
    return [Part(sea, d.other, 0.5 * bands(y, 4)), *suns]


def striped_gate(d: Draw, x: Tensor, y: Tensor) -> list[Part]:
    half = 16 + 4 * d.size.clamp(max=1)
    posts = [Part(box(x, y, d.cx + side * half, d.cy + 4, 4.0, 16.0), d.hue, bands(y, 8)) for side in (-1, 1)]
    return [*posts, Part(box(x, y, d.cx, d.cy - 16, half + 4, 4.0), d.hue, bands(x, 8))]


LAYOUTS: dict[str, Layout] = {
    "striped disk": striped_disk, "checked ring": checked_ring, "dotted square": dotted_square,
    "ribbed twins": ribbed_twins, "woven cross": woven_cross, "framed dot": framed_dot, "four tiles": four_tiles,
    "banded diamond": banded_diamond, "sun and sea": sun_and_sea, "striped gate": striped_gate,
}
CLASS_NAMES: tuple[str, ...] = tuple(LAYOUTS)


def choose(n: int, generator: torch.Generator, spread: int = 0) -> Draw:
    """Draw the random choices of n pictures; centres are up to ``spread`` tokens from the middle."""
    def pick(count: int) -> Tensor:
        return torch.randint(count, (n, 1, 1), generator=generator)

    def centre() -> Tensor:
        return SIZE / 2 + TOKEN * (pick(2 * spread + 1) - float(spread))

    hue = pick(HUES)
    return Draw(hue=hue, other=(hue + 2 + pick(HUES - 3)) % HUES, background=pick(len(BACKGROUNDS)),
                cx=centre(), cy=centre(), size=pick(3).float())


def render(draw: Draw, layout: Layout) -> Tensor:
    """The pictures of one class: (n, 3, H, W) in [-1, 1]."""
    centres = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    colours = palette()
    gradient = 1.1 - 0.2 * y / SIZE
    image = torch.tensor(BACKGROUNDS)[draw.background[:, 0, 0]][..., None, None] * gradient
    for part in layout(draw, x, y):
        dark, bright = colours[part.hue[:, 0, 0]].unbind(1)
        texture = part.texture.expand(image.shape[0], SIZE, SIZE)[:, None]
        colour = dark[..., None, None] + (bright - dark)[..., None, None] * texture
        image = image + part.cover[:, None] * (colour - image)
    return image.clamp(0, 1) * 2 - 1


def pictures(labels: Tensor, generator: torch.Generator, spread: int = 0) -> Tensor:
    """labels (n,) int64 -> pictures (n, 3, 64, 64) float32 in [-1, 1], one random draw each."""
    out = torch.empty(len(labels), 3, SIZE, SIZE)
    for index, layout in enumerate(LAYOUTS.values()):
        rows = (labels == index).nonzero()[:, 0]
        if len(rows):
            out[rows] = render(choose(len(rows), generator, spread), layout)
    return out


def batch(n: int, generator: torch.Generator, spread: int = 0) -> tuple[Tensor, Tensor]:
    """n pictures of random classes: (n, 3, 64, 64) and labels (n,)."""
    labels = torch.randint(len(LAYOUTS), (n,), generator=generator)
    return pictures(labels, generator, spread), labels
