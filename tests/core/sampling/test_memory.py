"""The estimate of activations against the storages that a run really holds at once, on the meta device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from gtr_pack.gtr_core import device as hardware
from gtr_pack.gtr_core.device import Machine, Runtime
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import build
from gtr_pack.gtr_core.models.lightgen import LIGHTGEN
from gtr_pack.gtr_core.models.mar import mar_spec
from gtr_pack.gtr_core.noise import image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.memory import activation_bytes, check_run, images_at_once, images_that_fit
from gtr_pack.gtr_core.sampling.recap import ReCAP
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.peak import Peak
from gtr_tests.runs import MetaNoise

SCHEDULES = [
    Schedule("gtr", "gtr", (2, 1, 1), diffusion=(3, 2, 2)),
    Schedule("stage", "gtr", (2, 1, 1), diffusion=(3, 2, 2), decoder_scope="stage"),
    Schedule("random", "random", (3,), diffusion=(3, 3, 3)),
]
# Its chains take several chunks of modulations.
LONG = Schedule("long", "random", (6,), diffusion=(9, 9, 9))
SPECS = {
    "mar-b": replace(mar_spec("mar-b"), encoder_depth=2, decoder_depth=2),
    "mar-h": replace(mar_spec("mar-h"), encoder_depth=2, decoder_depth=2),
    "lightgen": replace(LIGHTGEN, encoder_depth=2, decoder_depth=2, aligner_depth=1),
}


@dataclass(frozen=True)
class OfShapes(Runtime):
    """A processor of which only the shapes are computed."""

    device: str = "meta"
    type = "cpu"


def few_images(spec, images: int) -> Machine:
    """A machine that takes so many images at once, in both branches of guidance, or more where they are shorter."""
    return Machine(part_bytes=images * 2 * (spec.buffer + spec.tokens) * spec.dim * spec.mlp_ratio * 4)


def peak_and_estimate(name: str, schedule: Schedule, batch: int, at_once: int) -> tuple[int, int]:
    """Bytes that a run holds at most, and those that are estimated."""
    spec, seeds = SPECS[name], image_seeds(0, batch)
    runtime = OfShapes(machine=few_images(spec, at_once))
    assert images_at_once(spec, spec.tokens, 2, runtime) == at_once
    plan = make_plan(Method(schedule, Guidance(3.0), FTS(0.1, 4)), spec.grid, seeds)
    model = build(spec, device="meta").requires_grad_(False)
    condition = spec.random_condition(batch)
    with Peak(model) as peak:
        sample(model, plan, condition, MetaNoise(seeds, spec.head.channels), runtime=runtime)
    estimate = activation_bytes(plan, spec, runtime)
    print(f"{name} {schedule.name} {batch}: {peak.most / 2**20:.1f} MiB, estimate {estimate / 2**20:.1f} MiB")
    return peak.most, estimate


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("batch, at_once", [(1, 100), (12, 3)])
def test_an_upper_estimate_that_is_not_far_off(name, schedule, batch, at_once):
    """Whether the transformer takes all images at once, or as on a processor a few."""
    most, estimate = peak_and_estimate(name, schedule, batch, at_once)
    assert most <= estimate <= 5 * most


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mar-b", "mar-h"])
def test_a_chunk_of_modulations_is_gone_before_the_next_is_made(name):
    """In a batch of one they weigh most."""
    most, estimate = peak_and_estimate(name, LONG, 1, 100)
    assert most <= estimate <= 5 * most


@pytest.mark.slow
@pytest.mark.parametrize("keep_buffer", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("name", ["mar-b", "lightgen"])
def test_what_a_cache_keeps_is_in_the_estimate(name, schedule, keep_buffer):
    """ReCAP's keys and values are counted on top of what the same run without it holds."""
    spec, seeds, runtime = SPECS[name], image_seeds(0, 2), OfShapes(machine=few_images(SPECS[name], 100))
    deep = replace(spec, encoder_depth=6, decoder_depth=6)
    method = Method(schedule, Guidance(3.0), cache=ReCAP(0, 1, keep_buffer))
    plan = make_plan(method, deep.grid, seeds)
    model = build(deep, device="meta").requires_grad_(False)
    with Peak(model) as peak:
        sample(model, plan, deep.random_condition(2), MetaNoise(seeds, deep.head.channels), runtime=runtime)
    estimate = activation_bytes(plan, deep, runtime)
    assert peak.most <= estimate <= 5 * peak.most
    without = activation_bytes(replace(plan, method=replace(method, cache=None)), deep, runtime)
    assert estimate - without >= method.cache.kept_bytes(plan, deep, 4) >= 0


def test_as_many_images_as_fit_a_budget():
    spec, runtime = SPECS["mar-b"], Runtime("cuda")
    plan = make_plan(Method(SCHEDULES[0], Guidance(3.0)), spec.grid, image_seeds(0, 10))
    parts = [activation_bytes(replace(plan, batch=batch), spec, runtime) for batch in range(1, 11)]
    slopes = {after - before for before, after in zip(parts, parts[1:])}
    assert len(slopes) == 1 and min(slopes) > 0
    budgets = (0, parts[3], parts[3] - 1, 10 * parts[9])
    assert [images_that_fit(budget, plan, spec, runtime) for budget in budgets] == [1, 4, 3, 10]


def test_a_run_that_main_memory_cannot_hold_is_refused(monkeypatch):
    spec = SPECS["mar-b"]
    plan = make_plan(Method(SCHEDULES[0], Guidance(3.0)), spec.grid, image_seeds(0, 3))
    needed = activation_bytes(plan, spec, Runtime())
    check_run(plan, spec, Runtime(machine=Machine(available_bytes=needed)))
    with pytest.raises(GtRError, match="3 x 256 tokens need .* make the batch"):
        check_run(plan, spec, Runtime(machine=Machine(available_bytes=needed - 1)))
    # Of an accelerator's run main memory holds the noise alone; and a system that does not tell is believed.
    check_run(plan, spec, Runtime("cuda", machine=Machine(available_bytes=needed // 2)))
    monkeypatch.setattr(hardware, "available_bytes", lambda: 0)
    check_run(plan, spec, Runtime(machine=Machine(available_bytes=None)))
