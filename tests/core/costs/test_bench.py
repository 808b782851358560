"""Bench: what a row says, and that all cases run in turn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gtr_pack.gtr_core.costs import bench as benches
from gtr_pack.gtr_core.costs.bench import WARM_UPS, BenchCase, Seconds, Setting, bench, markdown, medians, random_model
from gtr_pack.gtr_core.costs.flops import count_evaluations, count_plan
from gtr_pack.gtr_core.models.lightgen import LIGHTGEN
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.memory import activation_bytes
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_tests.models import SMALL_MAR

FAST = Method(Schedule("fast", "gtr", (2, 1, 1), diffusion=(3, 2, 2)), Guidance(2.0))
SLOW = Method(Schedule("slow", "random", (4,), diffusion=(4, 4, 4)), Guidance(2.0), cache=Reference())


def test_cases_run_in_turn_and_are_compared_with_the_first():
    models = {dtype: random_model(SMALL_MAR, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16)}
    cases = [BenchCase("slow", SLOW), BenchCase("fast", FAST), BenchCase("fast@bfloat16", FAST, torch.bfloat16)]
    setting, order = Setting(batch=2, accelerate=False), []
    result = bench(models, cases, setting, rounds=2, on_run=lambda name, index: order.append((index, name)))
    assert order == [(index, case.name) for index in (0, 1) for case in cases]
    assert (result["model"], result["grid"], result["batch"], result["rounds"]) == ("small", [6, 6], 2, 2)
    for row, case in zip(result["rows"], cases, strict=True):
        plan = make_plan(case.method, (6, 6), (0, 1))
        assert (row["preset"], row["dtype"]) == (case.name, str(case.dtype).removeprefix("torch."))
        assert row["ar_steps"] == len(plan.steps)
        assert row["head_evaluations"] == sum(count_evaluations(plan, step, SMALL_MAR) for step in plan.steps)
        assert row["tflops"] == count_plan(plan, SMALL_MAR).total / 1e12
        assert row["peak_bytes"] == activation_bytes(plan, SMALL_MAR, setting.runtime(case.dtype))
        assert not row["peak_measured"] and row["seconds_range"][0] <= row["seconds"] <= row["seconds_range"][1]
    assert result["rows"][0]["ratio"] == 1
    lines = markdown(result).splitlines()
    assert len(lines) == 2 + len(cases) and all("(estimate)" in line for line in lines[2:])


@pytest.mark.parametrize("device, runs", [("cpu", 2), ("cuda", 2 + WARM_UPS)])
def test_what_a_run_prepares_serves_the_next_round(device, runs, monkeypatch):
    """With a stand-in for the runs: on CUDA some more of every case, and no two ways of evaluating share."""
    seen = []
    monkeypatch.setattr(
        benches, "_run", lambda model, plan, runtime: seen.append((plan.method, runtime)) or Seconds(1.0, 1.0)
    )
    monkeypatch.setattr(benches, "_peak_bytes", lambda plan, spec, runtime: 1)
    monkeypatch.setattr(benches, "describe_machine", lambda device: {})
    cases = [BenchCase("slow", SLOW), BenchCase("fast", FAST), BenchCase("fast@bfloat16", FAST, torch.bfloat16)]
    cases.append(BenchCase("guided", replace(FAST, guidance=Guidance(3.0))))
    models = {dtype: random_model(SMALL_MAR, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16)}
    rounds = []
    bench(models, cases, Setting(device=device), rounds=2, on_run=lambda name, index: rounds.append(index))
    assert len(rounds) == 2 * len(cases) and len(seen) == runs * len(cases)
    kept = [runtime.preparations for _, runtime in seen]
    assert set(kept[: -2 * len(cases)]) <= set(kept[-len(cases) :])
    assert kept[-len(cases) :] == kept[-2 * len(cases) : -len(cases)] and kept[-1] is kept[-3]
    assert len({id(each) for each in kept}) == 3 and None not in kept


def test_medians_of_both_clocks():
    times = [Seconds(1.0, 5.0), Seconds(3.0, 4.0), Seconds(2.0, 9.0)]
    assert medians(times) == Seconds(2.0, 5.0)


def test_a_random_model_is_the_same_every_time():
    first, again = (random_model(SMALL_MAR, "cpu", torch.float32).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("spec", [SMALL_MAR, LIGHTGEN], ids=lambda spec: spec.name)
def test_conditions_for_a_benchmark_are_the_models(spec):
    condition = spec.random_condition(3)
    spec.check_condition(condition)
    assert len(condition) == 3
