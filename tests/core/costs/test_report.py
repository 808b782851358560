"""The report of a run, line by line."""

from __future__ import annotations

import re

import numpy as np
from gtr_pack.gtr_core.costs.flops import count_evaluations, count_plan, origin_of
from gtr_pack.gtr_core.costs.report import progress_text, run_report
from gtr_pack.gtr_core.models.mar import mar_spec
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR

SPEC = mar_spec("mar-b")


def report_of(method: Method, **settings) -> list[str]:
    plan = make_plan(method, (16, 16), (0, 1), unknown=settings.get("unknown"))
    return run_report(plan, SPEC, [0.5] * len(plan.steps), **settings).splitlines()


def test_a_line_per_stage_and_totals_against_the_origin():
    method = Method(preset("gtr-full"), Guidance(3.0), FTS())
    head, *stages, total = report_of(method)
    assert head == "gtr-full on mar-b: 2 images, 18 AR steps, 9.00 s"
    assert [re.match(r"stage (\d) \((\w+)\): (\d+) AR steps, (\d+) tokens", line).groups() for line in stages] == [
        ("1", "generation", "10", "64"),
        ("2", "generation", "6", "64"),
        ("3", "reconstruction", "2", "128"),
    ]
    plan, origin = (make_plan(each, (16, 16), (0,)) for each in (method, origin_of(SPEC)))
    evaluations = [sum(count_evaluations(each, step, SPEC) for step in each.steps) for each in (plan, origin)]
    ratio = count_plan(origin, SPEC).total / count_plan(plan, SPEC).total
    assert total.startswith(f"total {evaluations[0]} head evaluations, ")
    assert f"the origin needs {evaluations[1]} and " in total and total.endswith(f"({ratio:.2f}×)")


def test_one_step_is_no_plural():
    head, stage, _ = report_of(Method(Schedule("step-1", "random", (1,)), Guidance(3.0)))
    assert "1 AR step, " in head and "1 AR step, " in stage


def test_a_single_stage_of_gtr_is_named():
    line = "a single stage reconstructs nothing: GtR has at least two, such as 24, 6, 2 AR steps"
    assert line in report_of(Method(Schedule("custom", "gtr", (8,))))
    assert line not in report_of(Method(preset("gtr-full"))) + report_of(Method(preset("origin")))


def test_what_does_not_show_is_said():
    lines = report_of(Method(preset("origin"), Guidance(3.0), FTS(), LazyMAR()), peak_bytes=3 * 2**20)
    assert "FTS has no effect: the schedule has no reconstruction stage" in lines
    assert lines[-3] == "LazyMAR: 12 of 64 AR steps computed in full" and lines[-1] == "peak memory 3 MiB"


def test_the_origin_of_a_masked_run_has_the_same_mask():
    unknown = np.zeros((16, 16), bool)
    unknown[:4] = True
    *_, total = report_of(Method(preset("origin"), Guidance(3.0)), unknown=unknown)
    assert total.endswith("(1.00×)")


def test_a_run_without_steps_has_a_head_line_only():
    (line,) = report_of(Method(preset("origin")), unknown=np.zeros((16, 16), bool))
    assert line == "origin on mar-b: 2 images, 0 AR steps, 0.00 s"


def test_progress_counts_what_a_stage_does():
    plan = make_plan(Method(preset("gtr-full")), (16, 16), (0,))
    assert progress_text(plan, 10) == "generation 11/16" and progress_text(plan, 17) == "reconstruction 2/2"
    assert progress_text(plan, 16, 2, 3) == "window 2/3, reconstruction 1/2"
    revised = make_plan(Method(preset("gtr-full"), revise=0.25), (16, 16), (0,))
    assert progress_text(revised, 17) == "reconstruction 2/2" and progress_text(revised, 18) == "revision 1/1"


def test_a_revision_has_a_line_of_its_own():
    once, revised = (report_of(Method(preset("gtr-full"), Guidance(3.0), revise=share)) for share in (0.0, 0.25))
    assert [line.rpartition(", ")[0] for line in revised[1:4]] == [line.rpartition(", ")[0] for line in once[1:4]]
    assert revised[4].startswith("revision: 1 AR step, 64 tokens, ") and len(revised) == len(once) + 1
