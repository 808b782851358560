"""The demo's sprites: 12 classes of four, Microsoft's Fluent Emoji in their 3D style (``sprites/LICENSE``).

``python -m demo.sprites FOLDER`` makes the shipped files again from the assets of the npm package
``@lobehub/fluent-emoji-3d`` 1.1.0 (``npm pack @lobehub/fluent-emoji-3d@1.1.0``; WebP files named by code point).
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(__file__).parent / "sprites"
SHIPPED = 160  # pixels
QUALITY = 90

# Class -> sprite -> code point. Sprites of a class differ clearly, so that a mixture of two is seen.
SPRITES: dict[str, dict[str, str]] = {
    "animal face": {"panda": "1f43c", "fox": "1f98a", "frog": "1f438", "lion": "1f981"},
    "bird": {"penguin": "1f427", "owl": "1f989", "parrot": "1f99c", "chick": "1f425"},
    "sea animal": {"whale": "1f433", "turtle": "1f422", "octopus": "1f419", "fish": "1f420"},
    "insect": {"caterpillar": "1f41b", "butterfly": "1f98b", "bee": "1f41d", "ladybird": "1f41e"},
    "fruit": {"orange": "1f34a", "strawberry": "1f353", "watermelon": "1f349", "pear": "1f350"},
    "meal": {"pizza": "1f355", "hamburger": "1f354", "fries": "1f35f", "fried egg": "1f373"},
    "dessert": {"cake": "1f382", "cupcake": "1f9c1", "doughnut": "1f369", "ice cream": "1f368"},
    "vehicle": {"taxi": "1f695", "blue car": "1f699", "train": "1f682", "sailing boat": "26f5"},
    "space": {"sun": "1f31e", "ringed planet": "1fa90", "rocket": "1f680", "earth": "1f30d"},
    "ball": {"football": "26bd", "basketball": "1f3c0", "billiard ball": "1f3b1", "softball": "1f94e"},
    "plant": {"mushroom": "1f344", "cactus": "1f335", "sunflower": "1f33b", "hibiscus": "1f33a"},
    "character": {"pumpkin": "1f383", "robot": "1f916", "ghost": "1f47b", "alien": "1f47d"},
}
CLASS_NAMES: tuple[str, ...] = tuple(SPRITES)
SPRITE_NAMES: tuple[str, ...] = tuple(name for members in SPRITES.values() for name in members)
PER_CLASS = 4


def file_name(sprite: str) -> str:
    return sprite.replace(" ", "_") + ".webp"


def premultiplied(path: Path, side: int) -> Tensor:
    """(4, side, side) in [0, 1]: red, green, blue times alpha, and alpha, resized with a low-pass filter."""
    with Image.open(path) as file:
        rgba = np.asarray(file.convert("RGBA"), dtype=np.float32) / 255
    planes = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
    resized = [
        np.asarray(Image.fromarray(planes[..., i], mode="F").resize((side, side), Image.Resampling.LANCZOS))
        for i in range(4)
    ]
    colours, alpha = torch.from_numpy(np.stack(resized)).clamp(0, 1).split([3, 1])
    return torch.cat([colours.minimum(alpha), alpha])  # the filter rings


@functools.cache
def sprites(side: int) -> Tensor:
    """Every sprite (48, 4, side, side), premultiplied, in the order of SPRITE_NAMES."""
    return torch.stack([premultiplied(FOLDER / file_name(name), side) for name in SPRITE_NAMES])


def ship(assets: Path) -> None:
    """Write the shipped files from the package's ``assets``."""
    FOLDER.mkdir(exist_ok=True)
    for members in SPRITES.values():
        for name, code in members.items():
            with Image.open(assets / f"{code}.webp") as file:
                small = file.convert("RGBA").resize((SHIPPED, SHIPPED), Image.Resampling.LANCZOS)
            small.save(FOLDER / file_name(name), quality=QUALITY, method=6)


if __name__ == "__main__":
    ship(Path(sys.argv[1]))
