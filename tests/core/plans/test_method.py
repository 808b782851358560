"""The recipe of a run as one value: what it refuses, and what names it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR

METHOD = Method(preset("gtr-full"), Guidance(3.0), FTS(), LazyMAR(), 0.9)


@pytest.mark.parametrize(
    "guidance", [dict(schedule="wavy"), dict(scale=float("nan")), dict(start=1.5), dict(start=float("nan"))]
)
def test_wrong_guidance_says_what_is_expected(guidance):
    with pytest.raises(GtRError, match="expected"):
        Guidance(**guidance)


@pytest.mark.parametrize("temperature", [-1.0, float("inf"), float("nan")])
def test_a_wrong_temperature_says_what_is_expected(temperature):
    with pytest.raises(GtRError, match="expected 0 or more"):
        Method(preset("origin"), temperature=temperature)


@pytest.mark.parametrize("revise", [-0.1, 0.6, float("nan")])
def test_a_wrong_revision_says_what_is_expected(revise):
    with pytest.raises(GtRError, match="expected a share of the tokens, 0 to 0.5"):
        Method(preset("origin"), revise=revise)


def test_linear_guidance_grows_with_the_decoded_part():
    assert [Guidance(3.0).at(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
    assert [Guidance(3.0, "constant").at(progress) for progress in (0.0, 0.5, 1.0)] == [3.0] * 3
    assert [Guidance(3.0, "constant", start=0.5).at(progress) for progress in (0.0, 0.5, 1.0)] == [1.0, 3.0, 3.0]


def test_a_plan_says_how_every_step_is_guided():
    method = Method(Schedule("x", "random", (4,)), Guidance(3.0, start=0.5))
    plan = make_plan(method, (8, 8), (0,))
    assert [step.scale for step in plan.steps] == [method.guidance.at(step.progress) for step in plan.steps]
    assert [step.branches for step in plan.steps] == [1 if step.progress < 0.5 else 2 for step in plan.steps]
    assert plan.method is method and plan.schedule is method.schedule


def test_a_name_is_not_a_setting():
    assert METHOD.name == "gtr-full" and METHOD.renamed("mine").name == "mine"
    assert METHOD.renamed("mine").settings() == METHOD.settings()


@pytest.mark.parametrize(
    "change",
    [
        dict(schedule=preset("gtr-paper")),
        dict(guidance=Guidance(2.0)),
        dict(fts=None),
        dict(fts=FTS(0.2)),
        dict(cache=None),
        dict(cache=LazyMAR(period=4)),
        dict(temperature=1.0),
        dict(revise=0.25),
    ],
    ids=lambda change: str(*change),
)
def test_everything_else_is(change):
    assert replace(METHOD, **change).settings() != METHOD.settings()
