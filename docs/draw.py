"""Draws the icon, the banner and the figures of the plans: `python -m docs.draw`, from the repository's root.

The icon and the banner show what the pack does: structure tokens of a checkerboard come first, all others then at
once, and the tokens turn into a picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gtr_core.drawing.plan_figure import plan_figure
from gtr_core.plans.fts import FTS
from gtr_core.plans.method import Method
from gtr_core.plans.plan import make_plan
from gtr_core.plans.presets import preset

HERE = Path(__file__).resolve().parent
NIGHT, CELL, INK = (17, 20, 34), (34, 40, 62), (244, 241, 232)
PLANS = {"origin": (16, 16), "gtr-paper": (16, 16), "gtr-lightgen": (32, 32)}
OVERSAMPLE = 2


def scene(height: int, width: int) -> np.ndarray:
    """The picture: a low sun over hills and water, (height, width, 3) in 0..1."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    v, u = y / height, x / height
    middle, horizon = width / height - 0.5, 0.64
    sky = blend(v / horizon, ((0.10, 0.10, 0.32), (0.45, 0.20, 0.50), (0.93, 0.42, 0.40), (1.0, 0.76, 0.42)))
    sun = np.hypot(u - middle, v - 0.45)
    picture = sky + np.exp(-((sun / 0.30) ** 2))[..., None] * np.array((0.35, 0.22, 0.06))
    picture = np.where((sun < 0.17)[..., None], (1.0, 0.93, 0.68), picture)
    for base, rise, rate, phase, colour in (
        (0.56, 0.07, 3.1, 0.4, (0.36, 0.19, 0.42)),
        (0.62, 0.06, 5.3, 1.7, (0.20, 0.13, 0.33)),
    ):
        ridge = base - rise * (0.6 * np.sin(rate * u + phase) + 0.4 * np.sin(2.3 * rate * u + 2 * phase))
        picture = np.where((v > ridge)[..., None], colour, picture)
    depth = np.clip((v - horizon) / (1 - horizon), 0, 1)
    water = blend(depth, ((0.86, 0.45, 0.44), (0.38, 0.20, 0.45), (0.09, 0.09, 0.27)))
    waves = np.sin(90 * np.sqrt(depth + 0.02) + 1.5 * np.sin(11 * u))
    path = np.exp(-(((u - middle) / (0.10 + 0.22 * depth)) ** 2)) * (waves > -0.1)
    water += path[..., None] * np.array((0.75, 0.50, 0.22)) * (1 - 0.55 * depth[..., None])
    return np.clip(np.where((v > horizon)[..., None], water, picture), 0, 1)


def blend(share: np.ndarray, stops: tuple) -> np.ndarray:
    """Colours (..., 3) along evenly spaced stops."""
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(share, places, channel) for channel in zip(*stops)], -1)


def tokens(height: int, width: int, rows: int, growth: np.ndarray) -> Image.Image:
    """The scene as a grid of tokens of which `growth` (rows, columns) in 0..1 says how far each region is.

    Structure tokens ((row + column) even) come at 0.2 to 0.5, as flat colours that gain detail; the others at 0.7.
    """
    side = height * OVERSAMPLE // rows
    picture = Image.fromarray((scene(rows * side, width * OVERSAMPLE // side * side) * 255).astype(np.uint8))
    sheet = Image.new("RGB", picture.size, NIGHT)
    chance = np.random.default_rng(6).random(growth.shape)
    for row, column in np.ndindex(*growth.shape):
        now, structure = growth[row, column], (row + column) % 2 == 0
        shown = now > (0.12 + 0.4 * chance[row, column] if structure else 0.60 + 0.12 * chance[row, column])
        box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
        gap = round(side * 0.07 * np.clip((0.94 - now) / 0.2, 0, 1))
        tile = picture.crop(box) if shown else Image.new("RGB", (side, side), CELL)
        if shown:
            # Blocks that get finer: the detail that the diffusion steps add.
            fine = 1 if now < 0.45 else 2 if now < 0.6 else 4 if now < 0.72 else side
            tile = tile.resize((fine, fine), Image.Resampling.BOX).resize((side, side), Image.Resampling.NEAREST)
        mask = Image.new("L", (side, side), 0)
        inset = gap if shown else round(side * 0.12)
        ImageDraw.Draw(mask).rounded_rectangle(
            (inset, inset, side - 1 - inset, side - 1 - inset), round(side * 0.12) if gap or not shown else 0, fill=255
        )
        sheet.paste(tile, box[:2], mask)
    return sheet.resize((sheet.width // OVERSAMPLE, sheet.height // OVERSAMPLE), Image.Resampling.LANCZOS)


def ramp(rows: int, columns: int, start: float, end: float, slant: float) -> np.ndarray:
    """Growth from the left (0) to the right (1), along a slant, with a little unrest."""
    row, column = np.mgrid[0:rows, 0:columns]
    place = (column + 0.5) / columns + slant * ((row + 0.5) / rows - 0.5)
    unrest = np.random.default_rng(4).uniform(-0.02, 0.02, place.shape)
    return np.clip((place - start) / (end - start), 0, 1) + unrest


def icon() -> Image.Image:
    """400 x 400, with round corners."""
    sheet = tokens(400, 400, 8, ramp(8, 8, -0.42, 0.80, -0.50))
    mask = Image.new("L", (1600, 1600), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 1599, 1599), 300, fill=255)
    sheet.putalpha(mask.resize(sheet.size, Image.Resampling.LANCZOS))
    return sheet


def banner() -> Image.Image:
    """1344 x 576, the registry's 21:9: the name on the empty side, the picture on the other."""
    height, width, rows = 576, 1344, 12
    sheet = tokens(height, width, rows, ramp(rows, 28, 0.30, 0.80, -0.12))
    shade = np.asarray(sheet).astype(float)
    dark = np.clip((0.52 - np.linspace(0, 1, sheet.width)) / 0.30, 0, 1)[None, :, None] * 0.75
    sheet = Image.fromarray((shade * (1 - dark) + np.array(NIGHT) * dark).astype(np.uint8))
    pen = ImageDraw.Draw(sheet)
    for text, top, size, colour in (
        ("GtR", 150, 168, INK),
        ("Generation then Reconstruction", 345, 36, INK),
        ("MAR, Harmon, UniPic and LightGen in ComfyUI", 397, 24, (230, 170, 120)),
    ):
        pen.text((64, top), text, font=ImageFont.load_default(size), fill=colour)
    return sheet


def plan_image(name: str) -> Image.Image:
    """What `python -m gtr_core schedule --preset NAME --figure F` draws, with FTS in the legend where it counts."""
    return Image.fromarray(plan_figure(make_plan(Method(preset(name), fts=FTS()), PLANS[name], (0,))))


def main() -> None:
    icon().save(HERE / "icon.png", optimize=True)
    banner().quantize(256, dither=Image.Dither.NONE).save(HERE / "banner.png", optimize=True)
    for name in PLANS:
        plan_image(name).quantize(64, dither=Image.Dither.NONE).save(HERE / f"plan_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
