"""Charts, drawn with matplotlib (in the extra ``eval``): bars with intervals, lines, and how every chart looks."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GtRError
from ..files import replace_file
from .canvas import FAINT, INK, OKABE_ITO

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a format writes beside the drawing: no dates and versions, so that equal charts are equal files.
METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
DOTS = 144  # per inch, in a PNG
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "pdf.fonttype": 42,
    "svg.hashsalt": "gtr",
}


def rgb(colour: Sequence[int]) -> tuple[float, ...]:
    """A colour of 0 to 255 as matplotlib takes it."""
    return tuple(float(channel) / 255 for channel in colour)


COLOURS = tuple(map(rgb, OKABE_ITO))


def bar_chart(rows: Sequence[tuple[str, float, str]], title: str, errors: Sequence[float] = ()) -> Figure:
    """Horizontal bars for (name, value, label), the first in a colour of its own; ``errors`` are the half widths of
    their intervals."""
    names, values, labels = zip(*rows)
    halves = tuple(errors) or (0.0,) * len(rows)
    places = range(len(rows))
    with new_chart(7.2, 0.5 + 0.3 * len(rows)) as (figure, axes):
        axes.barh(places, values, 0.7, color=[COLOURS[min(place, 1)] for place in places])
        for place, value, half, label in zip(places, values, halves, labels):
            if half:
                axes.errorbar(value, place, xerr=half, color=rgb(INK), capsize=3, linewidth=1.2)
            axes.annotate(label, (value + half, place), (6, 0), textcoords="offset points", va="center_baseline")
        axes.set_title(title)
        axes.set_yticks(places, names)
        axes.tick_params("y", length=0)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
        axes.margins(x=0, y=0.02)
        axes.invert_yaxis()
    return figure


@dataclass(frozen=True)
class Line:
    """A named series of (x, y), both above 0."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(lines: Sequence[Line], x_label: str, y_label: str) -> Figure:
    """Lines with a mark at every point, both axes logarithmic, so that a straight line is a power law."""
    with new_chart(6.4, 3.2) as (figure, axes):
        for line, colour, marker in zip(lines, cycle(COLOURS), cycle("osD^")):
            axes.plot(*zip(*line.points), color=colour, marker=marker, markersize=5, linewidth=1.2, label=line.name)
            own = dict(line.points)
            under = any(y > own.get(x, y) for other in lines for x, y in other.points)
            place = 0, -13 if under else 5  # numbers stand away from a line above
            for x, y in line.points:
                axes.annotate(f"{y:.3g}", (x, y), place, textcoords="offset points", ha="center", fontsize=8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        places = sorted({x for line in lines for x, _ in line.points})
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.minorticks_off()
        axes.margins(y=0.2)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        grid_lines(axes)
        figure.legend(loc="outside upper left")
    return figure


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches without axes; what is drawn in this context has the style of all charts.

    Raises GtRError where matplotlib is missing.
    """
    matplotlib = _matplotlib()
    with matplotlib.rc_context(STYLE):
        yield matplotlib.figure.Figure((width, height), layout="constrained")


@contextmanager
def new_chart(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty chart: a :func:`new_figure` with axes."""
    with new_figure(width, height) as figure:
        yield figure, figure.add_subplot()


def grid_lines(axes: Axes, axis: str = "both") -> None:
    """Faint lines behind the data."""
    axes.grid(axis=axis, color=rgb(FAINT), linewidth=0.6, alpha=0.6)


def write_chart(path: str | os.PathLike, figure: Figure) -> None:
    """Write as .png, .svg or .pdf, so that no reader sees half a file. Raises GtRError when that fails."""
    check_chart(path)
    form, data = Path(path).suffix[1:].lower(), io.BytesIO()
    with _matplotlib().rc_context(STYLE):
        figure.savefig(data, format=form, dpi=DOTS, metadata=METADATA[form])
    replace_file(path, lambda beside: beside.write_bytes(data.getvalue()))


def check_chart(path: str | os.PathLike) -> None:
    """Raises GtRError where a chart cannot be drawn into this file: to be called before long work."""
    if Path(path).suffix[1:].lower() not in METADATA:
        raise GtRError(f"chart '{Path(path).name}': expected a name that ends in .png, .svg or .pdf")
    _matplotlib()


def _matplotlib():
    try:
        import matplotlib.figure
    except ImportError as error:
        raise GtRError("charts need matplotlib, which is not installed: pip install 'gtr-mar[eval]'") from error
    return matplotlib
