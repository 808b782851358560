"""The sheet that figures are drawn on, and palettes that colour-blind people can read."""

from __future__ import annotations

import numpy as np
import pytest
from gtr_pack.gtr_core.drawing.canvas import (
    KNOWN,
    LINE,
    OKABE_ITO,
    PAPER,
    STAGE_COLOURS,
    TEXT,
    VIRIDIS,
    Sheet,
    text_width,
    viridis,
)

# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as people without one kind of cone see it.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colours: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB (n, 3), D65."""
    xyz = (
        np.clip(colours, 0, 1)
        @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
        / [0.9505, 1, 1.089]
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def linear(colours: np.ndarray) -> np.ndarray:
    c = np.asarray(colours) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_of_stages_differ_for_colour_blind_people(kind: str) -> None:
    """At least 15 apart in L*a*b*, white and the grey of known tokens included; 2.3 is just noticeable."""
    for count in (3, 4):
        seen = lab(linear(np.vstack([STAGE_COLOURS[:count], KNOWN])) @ np.array(BLINDNESS[kind]).T)
        apart = np.sqrt(((seen[:, None] - seen[None]) ** 2).sum(-1))
        assert apart[~np.eye(len(seen), dtype=bool)].min() > 15


def test_the_palette_is_that_of_okabe_and_ito() -> None:
    published = {"0072b2", "e69f00", "009e73", "cc79a7", "d55e00", "56b4e9", "000000", "f0e442"}
    assert published - {bytes(colour.astype(np.uint8)).hex() for colour in OKABE_ITO} == {"f0e442"}


def test_the_scale_rises_in_lightness() -> None:
    lightness = lab(linear(viridis(np.linspace(0, 1, 60))))[:, 0]
    assert (np.diff(lightness) > 0.5).all()
    assert np.array_equal(viridis(np.array([0.0, 1.0])), VIRIDIS[[0, -1]])


def inked(sheet: Sheet) -> np.ndarray:
    """Where something was drawn."""
    return (sheet.pixels() != PAPER).any(-1)


def test_text_has_smooth_edges_and_stays_within_its_width_and_its_line() -> None:
    for text in ("AR step", "gtr-paper, 10%", "Qgjpqy()|"):
        sheet = Sheet(240, 3 * LINE)
        sheet.text(20, LINE, text)
        rows, columns = np.nonzero(inked(sheet))
        assert LINE <= rows.min() and rows.max() < 2 * LINE
        assert 20 <= columns.min() and columns.max() <= 20 + text_width(text)
        assert len(np.unique(sheet.pixels()[..., 0])) > 20


def test_text_is_aligned_at_its_beginning_its_middle_or_its_end() -> None:
    spans = {}
    for align in ("left", "middle", "right"):
        sheet = Sheet(400, LINE)
        sheet.text(200, 0, "diffusion steps", align=align)
        columns = np.flatnonzero(inked(sheet).any(0))
        spans[align] = columns.min(), columns.max()
    width = text_width("diffusion steps")
    assert spans["left"][0] - 200 in range(3) and 200 - spans["right"][1] in range(3)
    assert spans["left"][0] - spans["middle"][0] == width // 2
    assert spans["left"][0] - spans["right"][0] == width


def test_larger_letters_are_larger() -> None:
    assert text_width("gtr", 2 * TEXT) == pytest.approx(2 * text_width("gtr"), abs=2)


@pytest.mark.parametrize("left, top", [(-30, 5), (70, 5), (5, -10), (5, 35), (500, 500)])
def test_what_leaves_the_sheet_is_cut_off(left: int, top: int) -> None:
    sheet = Sheet(80, 40)
    sheet.text(left, top, "a line that leaves the sheet")
    sheet.paste(left, top, np.zeros((60, 60, 3), np.uint8))
    assert sheet.pixels().shape == (40, 80, 3)


def test_nothing_is_drawn_for_no_text_and_no_size() -> None:
    sheet = Sheet(40, 40)
    sheet.text(5, 5, "")
    sheet.rectangle(5, 5, 0, 10, (0, 0, 0))
    sheet.frame(5, 5, 10, 0)
    assert not inked(sheet).any()


def test_a_rectangle_has_the_size_that_was_asked_for() -> None:
    sheet = Sheet(40, 40)
    sheet.rectangle(3, 7, 10, 5, (1, 2, 3))
    expected = np.zeros((40, 40), bool)
    expected[7:12, 3:13] = True
    assert np.array_equal(inked(sheet), expected) and tuple(sheet.pixels()[7, 3]) == (1, 2, 3)


def test_the_colour_bar_runs_from_the_darkest_to_the_lightest_colour() -> None:
    sheet = Sheet(200, LINE)
    sheet.colour_bar(0, 0, 200, "1", "32")
    row = sheet.pixels()[5, text_width("1") + 8 : 200 - text_width("32") - 8]
    assert tuple(row[0]) == tuple(VIRIDIS[0]) and tuple(row[-1]) == tuple(VIRIDIS[-1])
    assert (np.diff(lab(linear(row))[:, 0]) >= 0).all()
