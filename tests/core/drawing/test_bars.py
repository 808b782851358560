"""Charts: bars with intervals, in every format, and what is said where they cannot be drawn."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.drawing.bars import COLOURS, bar_chart, check_chart, new_chart, write_chart
from gtr_pack.gtr_core.errors import GtRError
from gtr_tests.extras import why_missing
from PIL import Image

ROWS = [("origin", 4.0, "4.00 s"), ("step-16", 2.0, "2.00 s"), ("gtr-full", 1.0, "1.00 s")]
STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture
def drawn():
    pytest.importorskip("matplotlib", reason=why_missing("matplotlib", "eval"))
    return bar_chart(ROWS, "seconds", [0.5, 0.0, 0.25])


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_bars_have_their_values_names_and_labels_from_top_to_bottom(drawn) -> None:
    (axes,) = drawn.axes
    assert [bar.get_width() for bar in axes.patches] == [4.0, 2.0, 1.0]
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [COLOURS[0], COLOURS[1], COLOURS[1]]
    assert [label.get_text() for label in axes.get_yticklabels()] == [name for name, _, _ in ROWS]
    assert [text.get_text() for text in axes.texts] == [label for _, _, label in ROWS]
    assert axes.get_title(loc="left") == "seconds" and axes.yaxis_inverted()


def test_intervals_are_drawn_where_they_have_a_width(drawn) -> None:
    (axes,) = drawn.axes
    ends = [tuple(line[:, 0]) for errors in axes.collections for line in errors.get_segments()]
    assert ends == [(3.5, 4.5), (0.75, 1.25)]
    assert [text.xy[0] for text in axes.texts] == [4.5, 2.0, 1.25]


@pytest.mark.parametrize("suffix", STARTS)
def test_equal_charts_are_equal_files_in_every_format(drawn, suffix: str, tmp_path: Path) -> None:
    one, two = tmp_path / f"one.{suffix}", tmp_path / f"two.{suffix.upper()}"
    write_chart(one, drawn)
    write_chart(two, bar_chart(ROWS, "seconds", [0.5, 0.0, 0.25]))
    data = one.read_bytes()
    assert data.startswith(STARTS[suffix]) and data == two.read_bytes()
    assert not any(word in data for word in (b"Date>", b"CreationDate", b"Matplotlib v", b"Software"))
    assert {path.name for path in tmp_path.iterdir()} == {one.name, two.name}


def test_a_chart_is_ink_on_white(drawn, tmp_path: Path) -> None:
    write_chart(tmp_path / "a.png", drawn)
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).convert("RGB"))
    assert (pixels[:3] == 255).all() and (pixels[-3:] == 255).all() and pixels.std() > 20


def test_the_users_own_style_is_left_as_it_is() -> None:
    matplotlib = pytest.importorskip("matplotlib", reason=why_missing("matplotlib", "eval"))
    before = dict(matplotlib.rcParams)
    with new_chart(2, 2):
        assert dict(matplotlib.rcParams) != before
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.txt"])
def test_other_formats_are_refused_before_any_work(name: str) -> None:
    with pytest.raises(GtRError, match=f"chart '{name}': expected a name that ends in .png, .svg or .pdf"):
        check_chart(name)


@pytest.mark.parametrize("verb", ["bench", "eval"])
def test_without_matplotlib_one_line_says_so_before_any_work(
    verb: str, no_matplotlib, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([verb, "--figure", "a.png"]) == 2
    text = capsys.readouterr().err
    assert text == "error: charts need matplotlib, which is not installed: pip install 'gtr-mar[eval]'\n"
    assert not list(tmp_path.iterdir())
