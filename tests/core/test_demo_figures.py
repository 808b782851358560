"""The charts of the demo's pages, imported as their commands import them: from the repository's root."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from gtr_tests.extras import why_missing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    pytest.importorskip("matplotlib", reason=why_missing("matplotlib", "eval"))
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("demo.figures")
    finally:
        sys.path.remove(str(ROOT))


def test_a_curve_shows_every_series_on_a_logarithmic_axis(figures) -> None:
    series = {"one": [(1, 10.0), (2, 1.0)], "two": [(1, 0.1), (3, 0.01)]}
    (axes,) = figures.curve(series, x_label="images").axes
    assert {line.get_label(): list(map(tuple, line.get_xydata().tolist())) for line in axes.lines} == series
    assert axes.get_yscale() == "log" and axes.get_xlabel() == "images"
    assert len({line.get_color() for line in axes.lines}) == 2


@pytest.fixture
def groups(figures) -> dict:
    return {
        "a": [figures.Point(1, 5, 4, 7, "first"), figures.Point(2, 3, 3, 3, "second")],
        "b": [figures.Point(3, 1, 0, 2)],
    }


def intervals(axes) -> list:
    return [tuple(line[:, 1]) for errors in axes.collections for line in errors.get_segments()]


def test_points_have_their_intervals_and_both_axes_begin_at_zero(figures, groups) -> None:
    figure = figures.error_bars(groups, x_label="x", y_label="y", mark=figures.Mark("paper", 4.0))
    (axes,) = figure.axes
    assert intervals(axes) == [(4, 7), (3, 3), (0, 2)]
    assert {text.get_text(): text.xy for text in axes.texts if text.get_text()} == {"paper": (4.0, 1)}
    assert axes.get_xlim() == (0, pytest.approx(1.08 * 4)) and axes.get_ylim() == (0, pytest.approx(1.08 * 7))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_a_panel_shows_its_group_with_names_and_the_others_faintly(figures, groups) -> None:
    figure = figures.panels(groups, x_label="x", y_label="y", mark=figures.Mark("paper", 4.0))
    first, second = figure.axes
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["a", "b"]
    assert intervals(first) == [(4, 7), (3, 3)] and intervals(second) == [(0, 2)]
    assert [text.get_text() for text in first.texts] == ["first  1.00×\nsecond  2.00×"]
    assert all({1, 2, 3} <= {x for line in panel.lines for x in line.get_xdata()} for panel in figure.axes)
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()
