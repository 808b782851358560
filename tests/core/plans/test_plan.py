"""Plans: every unknown token exactly once, no known one, and what a step says of itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.noise import image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.partition import stage_of_tokens
from gtr_pack.gtr_core.plans.plan import Plan, TokenGroup, make_plan, token_groups
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_tests.plans import assert_covers

GRIDS = [(16, 16), (8, 8), (32, 32), (7, 13), (24, 9), (3, 5)]


@pytest.mark.parametrize("scope", ["full", "stage"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_plan_of_a_mask_decodes_it_and_nothing_else(grid, scope):
    generator = np.random.default_rng(3)
    for share in (0.0, 0.02, 0.3, 0.9, 1.0):
        unknown = generator.random(grid) < share
        for schedule in (Schedule("a", "gtr", (2, 1, 1), decoder_scope=scope), Schedule("b", "random", (8,))):
            assert_covers(make_plan(Method(schedule), grid, (1, 2), unknown=unknown), unknown)


@pytest.mark.parametrize("name", ["gtr-paper", "gtr-full", "origin", "halton-8", "step-1"])
def test_a_revision_draws_the_first_tokens_again(name):
    """What comes before is the plan without it; it knows all that it does not draw, and is guided as the last step."""
    schedule = Schedule(name, "random", (1,)) if name == "step-1" else preset(name)
    method, seeds = Method(schedule, Guidance(3.0), FTS(), revise=0.25), (4, 5)
    once, revised = (make_plan(replace(method, revise=share), (16, 16), seeds) for share in (0.0, 0.25))
    assert_same_steps(revised.without_revision(), once)
    step = revised.steps[-1]
    assert step.revision and not step.reconstruction and step.index == len(once.steps)
    assert step.scale == once.steps[-1].scale and step.diffusion_steps == schedule.diffusion[2]
    assert step.groups == (TokenGroup(64, schedule.diffusion[2]),) and not step.context.size
    for image in range(2):
        # Of one AR step the tokens have no order of their own: the first 64 are those of whole steps and a part of one.
        early = [set(s.targets[image]) for s in once.steps if s.known.shape[1] + s.tokens <= 64]
        begun = [set(s.targets[image]) for s in once.steps if s.known.shape[1] < 64]
        again = set(step.targets[image])
        assert set().union(*early) <= again <= set().union(*begun) and len(again) == 64
        assert again.isdisjoint(step.known[image]) and len(step.known[image]) == 192


def test_what_a_mask_keeps_counts_as_drawn():
    """With a quarter known, the first tokens of the rest were drawn with as many known as those behind a revision."""
    method = Method(preset("gtr-full"), revise=0.25)
    for rows, count in ((16, 64), (14, 32), (12, 0), (4, 0), (0, 0)):
        unknown = np.arange(16)[:, None].repeat(16, 1) < rows
        plan = make_plan(method, (16, 16), (0,), unknown=unknown)
        assert sum(step.tokens for step in plan.steps if step.revision) == count
        assert_covers(plan.without_revision(), unknown)
        for step in plan.steps:
            assert unknown.ravel()[step.targets].all()


def assert_same_steps(ours: Plan, theirs: Plan) -> None:
    for one, other in zip(ours.steps, theirs.steps, strict=True):
        for name, value in vars(one).items():
            assert np.array_equal(value, getattr(other, name)), name


def test_a_mask_keeps_the_rates():
    unknown = np.zeros((16, 16), bool)
    unknown[:8] = True
    plan = make_plan(Method(preset("gtr-paper")), (16, 16), (0,), unknown=unknown)
    assert [sum(s.stage == k for s in plan.steps) for k in (1, 2, 3)] == [12, 3, 1]


def test_the_stage_scope_hides_later_stages():
    plan = make_plan(Method(preset("gtr-paper")), (16, 16), (0,))
    stage = stage_of_tokens((16, 16), 3, "diagonal").ravel()
    for step in plan.steps:
        assert stage[step.context].max(initial=0) <= step.stage
        assert step.known.shape[1] + step.tokens + step.context.shape[1] == (stage <= step.stage).sum()
    full = make_plan(Method(preset("gtr-full")), (16, 16), (0,))
    assert {step.known.shape[1] + step.tokens + step.context.shape[1] for step in full.steps} == {256}


def test_rates_and_steps_agree():
    by_rate = make_plan(Method(Schedule("r", "gtr", rates=(2.67, 10.67, 64))), (16, 16), (0,))
    by_step = make_plan(Method(Schedule("s", "gtr", (24, 6, 2))), (16, 16), (0,))
    assert [s.tokens for s in by_rate.steps] == [s.tokens for s in by_step.steps]
    for ours, theirs in zip(by_rate.steps, by_step.steps):
        assert np.array_equal(ours.targets, theirs.targets)


def test_diffusion_steps_fall_linearly_and_stay():
    steps = [s.diffusion_steps for s in make_plan(Method(preset("gtr-full")), (16, 16), (0,)).steps]
    assert steps == [50 - 2 * k for k in range(16)] + [20, 20]
    assert {s.diffusion_steps for s in make_plan(Method(preset("origin")), (16, 16), (0,)).steps} == {100}


def test_more_steps_than_tokens_leave_no_empty_step():
    plan = make_plan(Method(Schedule("long", "random", (300,))), (16, 16), (0,))
    assert min(step.tokens for step in plan.steps) == 1 and len(plan.steps) < 300


@pytest.mark.parametrize(
    "schedule, words",
    [
        (Schedule("x", "gtr", rates=(2.0, 2.0, 200.0)), "rate 200 of stage 3 does not fit: the stage has 128 tokens"),
        (Schedule("x", "gtr", (65, 1, 1)), "65 AR steps do not fit stage 1: it has 64 tokens"),
        (Schedule("x", "gtr", (1,) * 12), "use at most"),
    ],
)
def test_settings_that_do_not_fit_the_grid_are_refused(schedule, words):
    with pytest.raises(GtRError, match=words):
        make_plan(Method(schedule), (16, 16), (0,))


def test_an_empty_batch_and_a_wrong_mask_are_refused():
    with pytest.raises(GtRError, match="empty batch"):
        make_plan(Method(preset("origin")), (16, 16), ())
    with pytest.raises(GtRError, match="one value per token"):
        make_plan(Method(preset("origin")), (16, 16), (0,), unknown=np.ones((8, 8), bool))


def test_a_part_of_a_plan_is_the_plan_of_its_images():
    method = Method(Schedule("stage", "gtr", (2, 1, 1), diffusion=(3, 2, 2), decoder_scope="stage"))
    plan = make_plan(method, (16, 16), image_seeds(5, 5))
    alone = make_plan(method, (16, 16), image_seeds(5, 5)[3:])
    part = plan.part(slice(3, 8))
    assert part.batch == 2 and [s.targets.tolist() for s in part.steps] == [s.targets.tolist() for s in alone.steps]


@pytest.mark.parametrize(
    "fts, groups",
    [
        (None, [TokenGroup(10, 20)]),
        (FTS(0.1, 50), [TokenGroup(1, 50, detail=True), TokenGroup(9, 20)]),
        (FTS(0.3, 5), [TokenGroup(7, 20), TokenGroup(3, 5, detail=True)]),
        (FTS(0.3, 50, "all"), [TokenGroup(10, 50, detail=True)]),
    ],
    ids=["off", "more steps", "fewer steps", "all"],
)
def test_the_groups_of_a_step_have_most_steps_first(fts, groups):
    assert list(token_groups(10, 20, fts)) == groups


def test_fts_is_for_reconstruction_steps_only():
    plan = make_plan(Method(preset("gtr-full"), fts=FTS()), (16, 16), (0,))
    assert [step.index for step in plan.steps] == list(range(len(plan.steps)))
    for step in plan.steps:
        assert sum(group.tokens for group in step.groups) == step.tokens
        assert any(group.detail for group in step.groups) == step.reconstruction
