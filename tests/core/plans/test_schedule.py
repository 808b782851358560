"""Schedules: counts in closed form and as recorded, diffusion steps after every profile, and what they refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.plans.schedule import Schedule, cosine_counts, diffusion_steps, even_counts


def test_even_counts_differ_by_one_at_most():
    for tokens in (5, 64, 97):
        for steps in range(1, tokens + 1):
            counts = even_counts(tokens, steps)
            assert sum(counts) == tokens and max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(order="gtr", steps=(24, 6, 2), rates=(1.0,)), "exactly one"),
        (dict(order="gtr"), "exactly one"),
        (dict(order="gtr", steps=(0, 1)), "expected 1 to 65536"),
        (dict(order="random", steps=(10**9,)), "expected 1 to 65536"),
        (dict(order="gtr", rates=(0.5, 2.0)), "at least 1"),
        (dict(order="gtr", rates=(float("nan"), 2.0)), "at least 1"),
        (dict(order="random", steps=(4, 4)), "one stage"),
        (dict(order="sideways", steps=(4,)), "expected one of gtr, random, raster"),
        (dict(order="gtr", steps=(4,), partition="hexagon"), "expected one of diagonal"),
        (dict(order="gtr", steps=(4,), decoder_scope="none"), "expected one of full"),
        (dict(order="gtr", steps=(4,), diffusion=(0, 20, 20)), "1 to 1000"),
    ],
)
def test_wrong_schedules_say_what_is_wrong(settings, words):
    with pytest.raises(GtRError, match=words) as caught:
        Schedule("x", **settings)
    assert "\n" not in str(caught.value)


def test_cosine_counts_are_upstreams(golden):
    g = golden("ar_schedule")
    names = [key for key in g if key.endswith("_npred")]
    assert names
    for name in names:
        tokens, steps = (int(part[1:]) for part in name.split("_")[:2])
        counts = cosine_counts(tokens, steps)
        assert counts == g[name].tolist()
        masked = np.maximum(tokens - np.cumsum(counts), 1)
        np.testing.assert_allclose((tokens - masked) / tokens, g[name.replace("npred", "cfgfrac")].numpy(), atol=1e-12)


def test_disas_profiles_are_upstreams(golden):
    g = golden("disa_tables")
    names = {"linear": "disa-linear", "cosine": "disa-cosine", "twostage": "disa-two-stage"}
    tables = [re.fullmatch(r"(linear|cosine|twostage)_50_5_iter(\d+)", name) for name in g]
    assert any(tables)
    for match in filter(None, tables):
        steps = int(match.group(2))
        schedule = Schedule("x", "random", (steps,), diffusion=(50, 5, 5), profile=names[match.group(1)])
        assert diffusion_steps(schedule, steps, 0) == g[match.group(0)].tolist()
