"""Partitions, schedules and plans: counts in closed form, and every token exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.plans.partition import PARTITIONS, stage_of_tokens
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import PRESETS, preset
from gtr_pack.gtr_core.plans.schedule import Schedule, even_counts
from gtr_tests.plans import assert_covers

GRIDS = [(16, 16), (8, 8), (32, 32), (7, 13), (24, 9), (3, 5)]


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize(
    "grid, stages, sizes",
    [
        ((16, 16), 3, [64, 64, 128]),
        ((32, 32), 4, [128, 128, 256, 512]),
        ((16, 16), 1, [256]),
        ((16, 16), 2, [128, 128]),
    ],
)
def test_subset_sizes(partition, grid, stages, sizes):
    stage = stage_of_tokens(grid, stages, partition)
    assert [int((stage == k).sum()) for k in range(1, stages + 1)] == sizes


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_reconstruction_stage_is_the_odd_colour(partition):
    i, j = np.indices((16, 16))
    assert np.array_equal(stage_of_tokens((16, 16), 3, partition) == 3, (i + j) % 2 == 1)


def test_quincunx_keeps_tokens_as_far_apart_as_possible():
    """Smallest squared distance inside S_1: 4 for rows of the checkerboard, 2 where tokens touch at corners."""

    def smallest(partition):
        points = np.argwhere(stage_of_tokens((16, 16), 3, partition) == 1)
        squared = ((points[:, None] - points[None]) ** 2).sum(-1)
        return squared[squared > 0].min()

    assert (smallest("quincunx"), smallest("diagonal")) == (4, 2)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 9)])
def test_empty_subsets_are_refused(grid, partition):
    with pytest.raises(GtRError, match="empty subset.*use at most"):
        stage_of_tokens(grid, 6, partition)


def test_every_grid_takes_the_stages_that_leave_no_subset_empty():
    for height in range(1, 9):
        for width in range(1, 9):
            for stages in (1, 2, 3, 4):
                for partition in PARTITIONS:
                    try:
                        stage = stage_of_tokens((height, width), stages, partition)
                    except GtRError:
                        continue
                    assert set(np.unique(stage)) == set(range(1, stages + 1))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (12, 20)])
def test_presets_cover_every_token(name, grid):
    assert_covers(make_plan(preset(name), grid, (5, 6)), np.ones(grid, bool))


@pytest.mark.parametrize("scope", ["full", "stage"])
@pytest.mark.parametrize("grid", GRIDS)
def test_plans_restricted_to_a_mask(grid, scope):
    generator = np.random.default_rng(3)
    for share in (0.0, 0.02, 0.3, 0.9, 1.0):
        unknown = generator.random(grid) < share
        for schedule in (Schedule("a", "gtr", (2, 1, 1), decoder_scope=scope), Schedule("b", "random", (8,))):
            assert_covers(make_plan(schedule, grid, (1, 2), unknown=unknown), unknown)


def test_a_mask_keeps_the_rates():
    unknown = np.zeros((16, 16), bool)
    unknown[:8] = True
    plan = make_plan(preset("gtr-paper"), (16, 16), (0,), unknown=unknown)
    assert [sum(s.stage == k for s in plan.steps) for k in (1, 2, 3)] == [12, 3, 1]


def test_the_stage_scope_hides_later_stages():
    plan = make_plan(preset("gtr-paper"), (16, 16), (0,))
    stage = stage_of_tokens((16, 16), 3, "quincunx").ravel()
    for step in plan.steps:
        assert stage[step.context].max(initial=0) <= step.stage
        assert step.known.shape[1] + step.tokens + step.context.shape[1] == (stage <= step.stage).sum()
    full = make_plan(preset("gtr-full"), (16, 16), (0,))
    assert {step.known.shape[1] + step.tokens + step.context.shape[1] for step in full.steps} == {256}


def test_rates_and_steps_agree():
    by_rate = make_plan(Schedule("r", "gtr", rates=(2.67, 10.67, 64)), (16, 16), (0,))
    by_step = make_plan(Schedule("s", "gtr", (24, 6, 2)), (16, 16), (0,))
    assert [s.tokens for s in by_rate.steps] == [s.tokens for s in by_step.steps]
    for ours, theirs in zip(by_rate.steps, by_step.steps):
        assert np.array_equal(ours.positions, theirs.positions)


def test_diffusion_steps_fall_linearly_and_stay():
    steps = [s.diffusion_steps for s in make_plan(preset("gtr-full"), (16, 16), (0,)).steps]
    assert steps == [50 - 2 * k for k in range(16)] + [20, 20]
    assert {s.diffusion_steps for s in make_plan(preset("origin"), (16, 16), (0,)).steps} == {100}


def test_even_counts():
    for tokens in (5, 64, 97):
        for steps in range(1, tokens + 1):
            counts = even_counts(tokens, steps)
            assert sum(counts) == tokens and max(counts) - min(counts) <= 1


def test_more_steps_than_tokens_leave_no_empty_step():
    plan = make_plan(Schedule("long", "random", (300,)), (16, 16), (0,))
    assert min(step.tokens for step in plan.steps) == 1 and len(plan.steps) < 300


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
        (dict(order="gtr", steps=(4,), partition="hexagon"), "expected one of quincunx"),
        (dict(order="gtr", steps=(4,), decoder_scope="none"), "expected one of full"),
        (dict(order="gtr", steps=(4,), diffusion=(0, 20, 20)), "1 to 1000"),
    ],
)
def test_wrong_schedules_say_what_is_wrong(settings, words):
    with pytest.raises(GtRError, match=words) as caught:
        Schedule("x", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "schedule, words",
    [
        (Schedule("x", "gtr", rates=(2.0, 2.0, 200.0)), "rate 200 of stage 3 does not fit: the stage has 128 tokens"),
        (Schedule("x", "gtr", (65, 1, 1)), "65 AR steps do not fit stage 1: it has 64 tokens"),
        (Schedule("x", "gtr", (1,) * 12), "use at most"),
    ],
)
def test_settings_that_do_not_fit_the_grid(schedule, words):
    with pytest.raises(GtRError, match=words):
        make_plan(schedule, (16, 16), (0,))


def test_empty_batch_and_wrong_mask():
    with pytest.raises(GtRError, match="empty batch"):
        make_plan(preset("origin"), (16, 16), ())
    with pytest.raises(GtRError, match="one value per token"):
        make_plan(preset("origin"), (16, 16), (0,), unknown=np.ones((8, 8), bool))


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
    }
    assert {name: s.partition for name, s in PRESETS.items() if s.partition != "quincunx"} == {
        "gtr-best-4x": "diagonal",
        "gtr-best-6x": "diagonal",
    }
    assert {name: s.max_timestep for name, s in PRESETS.items() if s.max_timestep is not None} == {
        "disa-24": 950,
        "disa-16": 950,
    }
