"""Pictures for people: grids of images and a loss curve, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


def grid(images: Tensor, columns: int, *, scale: int = 1, gap: int = 2) -> Image.Image:
    """images (n, 3, H, W) in [-1, 1] -> one picture, row by row, magnified ``scale`` times."""
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(pixels):
        sheet.paste(Image.fromarray(image), ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def curve(series: dict[str, Sequence[tuple[float, float]]], *, x_label: str, size: tuple[int, int] = (640, 320)
          ) -> Image.Image:
    """Line chart with a logarithmic y axis: each series is a list of (x, y > 0)."""
    width, height = size
    left, top, right, bottom = 60, 12, width - 12, height - 36
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    points = [point for line in series.values() for point in line]
    x_max = max(x for x, _ in points)
    low, high = (math.log10(pick(y for _, y in points)) for pick in (min, max))
    span = max(high - low, 1e-6)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_max, bottom - (bottom - top) * (math.log10(y) - low) / span

    for k in range(6):
        value = 10 ** (low + span * k / 5)
        y = place(0, value)[1]
        draw.line([(left, y), (right, y)], fill="#dddddd")
        draw.text((4, y - 6), f"{value:.3g}", fill="black")
        x = left + (right - left) * k / 5
        draw.text((x - 12, bottom + 6), f"{x_max * k / 5:.3g}", fill="black")
    draw.rectangle([left, top, right, bottom], outline="black")
    draw.text(((left + right) / 2 - 20, height - 16), x_label, fill="black")
    for (name, line), colour in zip(series.items(), COLOURS):
        draw.line([place(x, y) for x, y in line], fill=colour, width=2)
        draw.text((right - 110, top + 6 + 14 * list(series).index(name)), name, fill=colour)
    return image
