"""Pictures for people: grids of images and a loss curve, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

# Okabe and Ito's palette, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def grid(images: Tensor, columns: int, *, scale: int = 1, gap: int = 2) -> Image.Image:
    """images (n, 3, H, W) in [-1, 1] -> one picture, row by row, magnified ``scale`` times."""
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(pixels):
        sheet.paste(Image.fromarray(image), ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def curve(
    series: dict[str, Sequence[tuple[float, float]]], *, x_label: str, size: tuple[int, int] = (640, 320)
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


@dataclass(frozen=True)
class Point:
    """A measured value with its interval, in one of the groups that share a colour and a line."""

    x: float
    y: float
    low: float
    high: float
    label: str = ""


def error_bars(
    groups: dict[str, Sequence[Point]],
    *,
    x_label: str,
    y_label: str,
    lines: bool = True,
    marks: dict[str, float] | None = None,
    size: tuple[int, int] = (900, 520),
) -> Image.Image:
    """Points with error bars on linear axes from 0; ``marks`` are named vertical lines. Point labels need no legend."""
    width, height = size
    left, top, right, bottom = 64, 16, width - 190, height - 48
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    points = [point for group in groups.values() for point in group]
    x_max = 1.08 * max([*(point.x for point in points), *(marks or {}).values()])
    y_max = 1.08 * max(point.high for point in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_max, bottom - (bottom - top) * max(y, 0) / y_max

    for k in range(6):
        (x, _), (_, y) = place(x_max * k / 5, 0), place(0, y_max * k / 5)
        draw.line([(left, y), (right, y)], fill="#e6e6e6")
        draw.text((8, y - 6), f"{y_max * k / 5:.3g}", fill="black")
        draw.text((x - 10, bottom + 6), f"{x_max * k / 5:.3g}", fill="black")
    for name, value in (marks or {}).items():
        x, _ = place(value, 0)
        draw.line([(x, top), (x, bottom)], fill="#999999")
        draw.text((x + 4, top + 2), name, fill="#555555")
    draw.rectangle([left, top, right, bottom], outline="black")
    draw.text(((left + right) / 2 - 3 * len(x_label), height - 22), x_label, fill="black")
    draw.text((left + 6, top + 4), y_label, fill="black")
    for index, (name, group) in enumerate(groups.items()):
        colour, row = COLOURS[index % len(COLOURS)], top + 18 * index
        if lines and len(group) > 1:
            draw.line([place(point.x, point.y) for point in group], fill=colour, width=2)
        for point in group:
            x, y = place(point.x, point.y)
            draw.line([place(point.x, point.low), place(point.x, point.high)], fill=colour, width=2)
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
            draw.text((x + 6, y - 12), point.label, fill=colour)
        draw.ellipse([right + 12, row + 2, right + 20, row + 10], fill=colour)
        draw.text((right + 26, row), name, fill=colour)
    return image
