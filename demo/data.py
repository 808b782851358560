"""The demo's world, 128 x 128 pixels: one sprite on a gradient, with a soft shadow.

The class is given, which of its four sprites is drawn is the model's own choice: a sampler that draws tokens at once
before enough is known mixes two sprites, the failure that decoding in parallel has on photographs as well. Sizes are
few and places are whole tokens (a token is 8 x 8 pixels), so that a small model can learn them; brightness and the
colours of the background are free.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .sprites import CLASS_NAMES, PER_CLASS, SPRITE_NAMES, sprites

SIZE, TOKEN = 128, 8
SIDES = (96, 112)  # pixels of a sprite's box
ACROSS, DOWN = 3, 3  # places in each direction, around the middle
STEP = TOKEN  # pixels between places
MIRRORS = 2  # 1: never mirrored
TILT = 0.0  # largest angle in degrees
DIMMEST = 0.85  # brightness is uniform in [DIMMEST, 1]
SHADOW, DROP, BLUR = 0.35, 5, 3.0  # its strength, how many pixels lower it lies, deviation of its blur
HUES = 8  # bins of the hue above, for the judge
CHOICES = {
    "sprite": len(SPRITE_NAMES),
    "size": len(SIDES),
    "across": ACROSS,
    "down": DOWN,
    "mirror": MIRRORS,
    "hue": HUES,
}
FACTORS = {name: count for name, count in CHOICES.items() if count > 1}


@dataclass(frozen=True)
class Draw:
    """The random choices behind n images, each (n,)."""

    sprite: Tensor  # index in SPRITE_NAMES
    size: Tensor  # index in SIDES
    across: Tensor  # 0..ACROSS-1
    down: Tensor  # 0..DOWN-1
    mirror: Tensor  # 0 or 1
    tilt: Tensor  # degrees
    brightness: Tensor  # 0..1, of [DIMMEST, 1]
    colour: Tensor  # (n, 4) in 0..1: hue above, its saturation, its lightness, how far the hue below lies

    @property
    def hue(self) -> Tensor:
        """The bin of the hue above."""
        return (self.colour[:, 0] * HUES).long()


def place(generator: torch.Generator) -> dict:
    """What makes torch draw with the generator, on its device."""
    return {"generator": generator, "device": generator.device}


def choose(labels: Tensor, generator: torch.Generator, tilt: float = TILT) -> Draw:
    """Random choices for images of the classes ``labels`` (n,), tilted by up to ``tilt`` degrees.

    Everything is drawn and computed on the device of ``generator``, where the labels are.
    """
    n, drawn = len(labels), place(generator)

    def pick(count: int) -> Tensor:
        return torch.randint(count, (n,), **drawn)

    return Draw(
        sprite=labels * PER_CLASS + pick(PER_CLASS),
        size=pick(len(SIDES)),
        across=pick(ACROSS),
        down=pick(DOWN),
        mirror=pick(MIRRORS),
        tilt=tilt * (2 * torch.rand(n, **drawn) - 1),
        brightness=torch.rand(n, **drawn),
        colour=torch.rand(n, 4, **drawn),
    )


def rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Hue, saturation, value, each (n,) with hue in turns -> (n, 3) in [0, 1]."""
    offset = torch.tensor([5.0, 3.0, 1.0], device=hue.device)
    k = (offset + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def backgrounds(colour: Tensor) -> Tensor:
    """(n, 4) -> (n, 3, SIZE, 1): a vertical gradient between two related hues, darker below."""
    hue, saturation, value, shift = colour.unbind(1)
    saturation, value = 0.2 + 0.3 * saturation, 0.82 + 0.18 * value
    above = rgb(hue, saturation, value)
    below = rgb(hue + 0.2 * (shift - 0.5), saturation, 0.75 * value)
    height = ((torch.arange(SIZE, device=colour.device) + 0.5) / SIZE)[:, None]
    return above[..., None, None] * (1 - height) + below[..., None, None] * height


@functools.cache
def layers(device: torch.device) -> Tensor:
    """(len(SIDES), sprites, 5, SIZE, SIZE): sprites in the middle of a canvas, premultiplied, alpha, and the shadow."""
    taps = torch.arange(-3 * math.ceil(BLUR), 3 * math.ceil(BLUR) + 1).float()
    kernel = torch.exp(-0.5 * (taps / BLUR) ** 2)
    kernel = kernel / kernel.sum()
    out = []
    for side in SIDES:
        margin = (SIZE - side) // 2
        drawn = F.pad(sprites(side), (margin,) * 4)
        shadow = F.pad(drawn[:, 3:], (0, 0, DROP, -DROP))
        for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
            shadow = F.conv2d(shadow, kernel.view(shape), padding="same")
        out.append(torch.cat([drawn, shadow], 1))
    return torch.stack(out).to(device)


def placed(draw: Draw) -> Tensor:
    """(n, 5, SIZE, SIZE): each image's sprite and shadow where they are drawn."""
    n = len(draw.sprite)
    angle = draw.tilt * (math.pi / 180)
    flip = 1.0 - 2 * draw.mirror
    # Output to input coordinates, in units of half the image.
    x, y = ((index - (count - 1) / 2) * STEP * 2 / SIZE for index, count in ((draw.across, ACROSS), (draw.down, DOWN)))
    cos, sin = torch.cos(angle), torch.sin(angle)
    affine = torch.stack(
        [
            torch.stack([flip * cos, flip * sin, -flip * (cos * x + sin * y)], 1),
            torch.stack([-sin, cos, sin * x - cos * y], 1),
        ],
        1,
    )
    grid = F.affine_grid(affine, (n, 5, SIZE, SIZE), align_corners=False)
    return F.grid_sample(layers(draw.sprite.device)[draw.size, draw.sprite], grid, align_corners=False)


def render(draw: Draw) -> Tensor:
    """Images (n, 3, SIZE, SIZE) in [-1, 1]."""
    sprite, alpha, shadow = placed(draw).split([3, 1, 1], 1)
    brightness = (DIMMEST + (1 - DIMMEST) * draw.brightness)[:, None, None, None]
    ground = backgrounds(draw.colour) * (1 - SHADOW * shadow)
    return (ground * (1 - alpha) + brightness * sprite).clamp(0, 1) * 2 - 1


def images(labels: Tensor, generator: torch.Generator, tilt: float = TILT) -> tuple[Tensor, dict[str, Tensor]]:
    """labels (n,) int64 -> images (n, 3, 128, 128) float32 in [-1, 1], and the factors of each, (n,) int64."""
    draw = choose(labels, generator, tilt)
    return render(draw), {name: getattr(draw, name) for name in FACTORS}


def rivals(draw: Draw, same_pose: Tensor, generator: torch.Generator) -> Draw:
    """For each image another sprite of its class before the same background, in the same pose where asked for."""
    n = len(draw.sprite)
    other = choose(draw.sprite // PER_CLASS, generator)
    step = torch.randint(1, PER_CLASS, (n,), generator=generator, device=generator.device)
    sprite = draw.sprite // PER_CLASS * PER_CLASS + (draw.sprite + step) % PER_CLASS
    pose = {
        name: torch.where(same_pose, getattr(draw, name), getattr(other, name))
        for name in ("size", "across", "down", "mirror")
    }
    return replace(draw, sprite=sprite, **pose)


def mixtures(draw: Draw, rival: Draw, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Images (n, 3, SIZE, SIZE) whose ``tokens`` (n, 16, 16) bool are the rival's, and the rival's share (n,).

    The share is that of the visible sprites' area: 0 where no rival's token shows any of it.
    """
    inside = tokens.repeat_interleave(TOKEN, 1).repeat_interleave(TOKEN, 2)[:, None]
    own, other = (placed(one)[:, 3:4] * where for one, where in ((draw, ~inside), (rival, inside)))
    areas = [area.sum((1, 2, 3)) for area in (own, other)]
    return torch.where(inside, render(rival), render(draw)), areas[1] / (areas[0] + areas[1]).clamp(min=1e-6)


def batch(n: int, generator: torch.Generator, tilt: float = TILT) -> tuple[Tensor, Tensor]:
    """n images of random classes: (n, 3, 128, 128) and labels (n,)."""
    labels = torch.randint(len(CLASS_NAMES), (n,), generator=generator, device=generator.device)
    return images(labels, generator, tilt)[0], labels
