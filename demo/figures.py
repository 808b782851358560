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

from gtr_core.drawing.bars import COLOURS, grid_lines, new_chart, new_figure, rgb
from gtr_core.drawing.canvas import FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP"


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


@dataclass(frozen=True)
class Mark:
    """A value of the x axis with a name."""

    name: str
    x: float


def error_bars(groups: dict[str, Sequence[Point]], *, x_label: str, y_label: str, mark: Mark) -> Figure:
    """Points with error bars on linear axes from 0, each group in a colour of its own; ``mark`` is a vertical line."""
    with new_chart(7.5, 4.4) as (figure, axes):
        for (name, group), colour, marker in zip(groups.items(), cycle(COLOURS), cycle(MARKERS)):
            _points(axes, group, colour, marker, label=name)
        _frame(axes, groups, mark.x)
        axes.annotate(
            mark.name,
            (mark.x, 1),
            (-4, -4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="top",
        )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.legend(loc="outside right upper")
    return figure


def panels(groups: dict[str, Sequence[Point]], *, x_label: str, y_label: str, mark: Mark, columns: int = 4) -> Figure:
    """The same with a panel for each group: its points, which a list names, and those of all other groups faintly."""
    rows = math.ceil(len(groups) / columns)
    with new_figure(2.6 * columns, 3.1 * rows) as figure:
        for axes, name, colour in zip(figure.subplots(rows, columns, sharey=True).flat, groups, cycle(COLOURS)):
            for other, group in groups.items():
                if other != name:
                    axes.plot([p.x for p in group], [p.y for p in group], "o", markersize=3, color=rgb(FAINT))
            _points(axes, groups[name], colour, "o")
            labels = "\n".join(f"{point.label}  {point.x:.2f}×" for point in groups[name])
            axes.text(0.98, 0.98, labels, transform=axes.transAxes, ha="right", va="top", fontsize=7.5)
            _frame(axes, groups, mark.x, room=1.5)
            axes.set_title(name)
        for unused in figure.axes[len(groups) :]:
            unused.remove()
        figure.supxlabel(x_label, fontsize=9)
        figure.supylabel(y_label, fontsize=9)
    return figure


def _points(
    axes: Axes, group: Sequence[Point], colour: tuple[float, ...], marker: str, label: str | None = None
) -> None:
    """A group: marks, a line from one to the next, and intervals."""
    x, y = [point.x for point in group], [point.y for point in group]
    spread = [[point.y - point.low for point in group], [point.high - point.y for point in group]]
    axes.plot(x, y, color=colour, marker=marker, markersize=5, label=label)
    axes.errorbar(x, y, spread, fmt="none", color=colour, capsize=2.5, linewidth=1.2)


def _frame(axes: Axes, groups: dict[str, Sequence[Point]], mark: float, room: float = 1.08) -> None:
    """Axes from 0 that hold all groups, with ``room`` times their height, and a vertical line at ``mark``."""
    axes.axvline(mark, color=rgb(FAINT), linestyle="--", linewidth=1, zorder=0)
    axes.set_xlim(0, 1.08 * max([mark, *(point.x for group in groups.values() for point in group)]))
    axes.set_ylim(0, room * max(point.high for group in groups.values() for point in group))
    grid_lines(axes)
