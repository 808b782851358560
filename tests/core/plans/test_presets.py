"""Presets: every one covers every token, and none changes its meaning."""

from __future__ import annotations

import numpy as np
import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.plans.method import Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import PRESETS, preset
from gtr_tests.plans import assert_covers


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (12, 20), (64, 64)])
def test_presets_cover_every_token(name, grid):
    assert_covers(make_plan(Method(preset(name)), grid, (5, 6)), np.ones(grid, bool))


def test_presets_never_change_meaning():
    """Names are in shared workflows. A new meaning needs a new name."""
    assert {name: (s.order, s.steps, s.diffusion, s.decoder_scope) for name, s in PRESETS.items()} == {
        "origin": ("random", (64,), (100, 100, 100), "full"),
        "step-16": ("random", (16,), (100, 100, 100), "full"),
        "step-8": ("random", (8,), (100, 100, 100), "full"),
        "halton-16": ("halton", (16,), (100, 100, 100), "full"),
        "halton-8": ("halton", (8,), (100, 100, 100), "full"),
        "disa-24": ("random", (24,), (50, 5, 5), "full"),
        "disa-16": ("random", (16,), (50, 5, 5), "full"),
        "gtr-paper": ("gtr", (24, 6, 2), (50, 20, 20), "stage"),
        "gtr-full": ("gtr", (10, 6, 2), (50, 20, 20), "full"),
        "gtr-extreme": ("gtr", (8, 3, 2), (50, 20, 20), "stage"),
        "gtr-best-4x": ("gtr", (12, 1, 1, 2, 2), (25, 15, 25), "full"),
        "gtr-best-6x": ("gtr", (8, 2, 2, 3, 2), (75, 15, 15), "stage"),
        "lightgen-origin": ("random", (32,), (50, 50, 50), "full"),
        "gtr-lightgen": ("gtr", (10, 6, 4, 2), (50, 20, 20), "stage"),
        "gtr-lightgen-fast": ("gtr", (12, 4, 2, 2), (50, 20, 20), "stage"),
        "harmon-origin": ("random", (64,), (100, 100, 100), "full"),
        "gtr-harmon": ("gtr", (12, 6, 4, 2), (50, 20, 20), "stage"),
        "gtr-harmon-fast": ("gtr", (12, 4, 2, 2), (50, 20, 20), "stage"),
        "unipic-origin": ("random", (32,), (100, 100, 100), "full"),
        "gtr-unipic": ("gtr", (12, 6, 4, 3, 2), (50, 20, 20), "stage"),
        "gtr-unipic-fast": ("gtr", (8, 4, 3, 2, 1), (50, 20, 20), "stage"),
    }
    assert {(s.partition, s.phases, s.shift, s.rates) for s in PRESETS.values()} == {
        ("diagonal", "checkerboard", False, ())
    }
    assert {name: s.profile for name, s in PRESETS.items() if s.profile != "linear"} == {
        "disa-24": "disa-linear",
        "disa-16": "disa-linear",
    }
    assert {name: s.max_timestep for name, s in PRESETS.items() if s.max_timestep is not None} == {
        "disa-24": 950,
        "disa-16": 950,
    }


def test_an_unknown_name_names_those_that_there_are():
    with pytest.raises(GtRError, match="expected one of origin, .*gtr-paper.*, mine"):
        preset("fast", ("mine",))
