"""Figures of the demo's pages: grids of images, a loss curve, and points with error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from gtr_core.drawing.bars import COLOURS, grid_lines, new_chart, rgb
from gtr_core.drawing.canvas import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Which corner of its label is next to a point of a group: neighbours do not write over each other.
SIDES = (("bottom", "left"), ("bottom", "right"), ("top", "left"), ("bottom", "left"))


def grid(images: Tensor, columns: int, *, scale: int = 1, gap: int = 2) -> Image.Image:
    """images (n, 3, H, W) in [-1, 1] -> one figure, row by row, magnified ``scale`` times."""
    n, _, height, width = images.shape
    rows = math.ceil(n / columns)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(pixels):
        sheet.paste(Image.fromarray(image), ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def curve(series: dict[str, Sequence[tuple[float, float]]], *, x_label: str) -> Figure:
    """Line chart with a logarithmic y axis: each series is a list of (x, y > 0)."""
    with new_chart(6.4, 3.2) as (figure, axes):
        for (name, line), colour in zip(series.items(), cycle(COLOURS)):
            axes.plot(*zip(*line), color=colour, linewidth=1.2, label=name)
        axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.margins(x=0)
        grid_lines(axes)
        axes.legend()
    return figure


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
) -> Figure:
    """Points with error bars on linear axes from 0; ``marks`` are named vertical lines."""
    with new_chart(7.5, 4.4) as (figure, axes):
        for (name, group), colour, marker, side in zip(groups.items(), cycle(COLOURS), cycle("osD^vP"), cycle(SIDES)):
            x, y = [point.x for point in group], [point.y for point in group]
            spread = [[point.y - point.low for point in group], [point.high - point.y for point in group]]
            axes.plot(x, y, color=colour, marker=marker, markersize=5, linestyle="-" if lines else "", label=name)
            axes.errorbar(x, y, spread, fmt="none", color=colour, capsize=2.5, linewidth=1.2)
            for point in group:
                _beside(axes, point, side, tuple(0.7 * channel for channel in colour))
        for name, value in (marks or {}).items():
            axes.axvline(value, color=rgb(FAINT), linestyle="--", linewidth=1, zorder=0)
            axes.annotate(
                name,
                (value, 1),
                (-4, -4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right",
                va="top",
            )
        axes.set_xlim(0, 1.08 * max([*(p.x for group in groups.values() for p in group), *(marks or {}).values()]))
        axes.set_ylim(0, 1.08 * max(point.high for group in groups.values() for point in group))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        grid_lines(axes)
        figure.legend(loc="outside right upper")
    return figure


def _beside(axes: Axes, point: Point, side: tuple[str, str], colour: tuple[float, ...]) -> None:
    """A point's label; its corner ``side`` (vertical, horizontal) is next to the point."""
    vertical, horizontal = side
    offset = (6 if horizontal == "left" else -6, 3 if vertical == "bottom" else -3)
    axes.annotate(
        point.label,
        (point.x, point.y),
        offset,
        textcoords="offset points",
        va=vertical,
        ha=horizontal,
        fontsize=8,
        color=colour,
    )
