"""What is needed is compared with what there is before it is asked for; messages stay one line."""

from __future__ import annotations

import tracemalloc

import pytest
from gtr_pack.gtr_core import device
from gtr_pack.gtr_core.checkpoints import load_model
from gtr_pack.gtr_core.demo import DEMO_MAR
from gtr_pack.gtr_core.device import Machine, Runtime, available_bytes, check_budget
from gtr_pack.gtr_core.errors import LONGEST, GtRError
from gtr_pack.gtr_core.models.lightgen import LIGHTGEN
from gtr_pack.gtr_core.models.shapes import LARGEST_SIDE, MOST_BLOCKS, count_blocks, shape_of
from gtr_pack.gtr_core.pipeline import generate_latents
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling import memory
from gtr_pack.gtr_core.sampling.memory import check_run


def test_what_is_needed_is_compared_with_what_there_is() -> None:
    check_budget(10, "it needs", 10)
    with pytest.raises(GtRError, match="it needs 2 GiB of memory, 1 GiB can be had"):
        check_budget(2**31, "it needs", 2**30)
    found = available_bytes()
    if found is None:
        pytest.skip("this system does not tell how much memory it has")
    assert 2**20 < found < 2**50
    with pytest.raises(GtRError, match="it needs"):
        check_budget(2**60, "it needs")


def test_a_system_that_tells_nothing_lets_everything_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: None)
    check_budget(2**60, "it needs")


@pytest.mark.parametrize(
    "schedule, grid, batch",
    [
        (Schedule("x", "gtr", (4096, 4096)), (256, 256), 2),
        (Schedule("x", "random", (65_536,)), (256, 256), 1),
        (preset("lightgen-origin"), (256, 256), 4096),
    ],
)
def test_plans_that_nobody_can_hold_are_refused(schedule: Schedule, grid: tuple[int, int], batch: int) -> None:
    assert needed_to_refuse("the plan's steps need", Method(schedule), grid, (1,) * batch) < 100 * 2**20


def test_a_grid_that_nobody_can_hold_is_refused() -> None:
    assert needed_to_refuse("at most 256 x 256", Method(preset("origin")), (50_000, 50_000), (1,)) < 2**20


def needed_to_refuse(words: str, *settings) -> int:
    """The most bytes in use at once while a plan with these settings is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(GtRError, match=words):
            make_plan(*settings)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_runs_that_nobody_can_hold_are_refused() -> None:
    """65,536 tokens in one step: the attention alone takes hundreds of GiB; on an accelerator the noise counts."""
    runtime, guidance = Runtime(), Guidance(2.0)
    vast = Method(Schedule("x", "random", (1,), diffusion=(1000,) * 3), guidance)
    plan = make_plan(vast, (256, 256), (1, 2, 3, 4))
    with pytest.raises(GtRError, match="4 x 65536 tokens need .* GiB"):
        check_run(plan, LIGHTGEN, runtime)
    noise = memory.noise_bytes(plan, LIGHTGEN)
    drawn = 4 * 65_536 * LIGHTGEN.head.channels * 1001 * 4
    assert 3 * drawn < noise < memory.activation_bytes(plan, LIGHTGEN, runtime)
    many = make_plan(Method(preset("gtr-paper"), guidance), (16, 16), (1,))
    check_run(many, LIGHTGEN, runtime)


def test_a_run_is_refused_before_it_begins() -> None:
    model, full = load_model(DEMO_MAR), Runtime(machine=Machine(available_bytes=1000))
    with pytest.raises(GtRError, match=f"2 x {model.spec.tokens} tokens need"):
        generate_latents(model, Method(preset("gtr-paper"), Guidance(2.0)), (0, 1), 5, runtime=full)


def test_sizes_that_no_model_has_are_refused() -> None:
    with pytest.raises(GtRError, match=f"expected at most {MOST_BLOCKS}"):
        count_blocks({f"x.{k}.y": (1,) for k in range(MOST_BLOCKS + 1)}, "x")
    for shape in ((LARGEST_SIDE + 1,), (0,), (-1,), (2**70,)):
        with pytest.raises(GtRError, match="dimensions from 1"):
            shape_of({"x": shape}, "x", 1)


def test_an_error_is_one_printable_line() -> None:
    text = str(GtRError("a\nb\x1b[31m\u2028\ud800 \u00e9\u4e2d"))
    assert text == "a\\nb\\x1b[31m\\u2028\\ud800 \u00e9\u4e2d"
    long = str(GtRError("begin " + "x" * 10**6 + " end"))
    assert len(long) <= LONGEST + 10 and long.startswith("begin x") and long.endswith("x end") and " ... " in long
