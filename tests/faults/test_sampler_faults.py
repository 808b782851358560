"""Memory that runs out at every allocation, interrupts at random moments: the run ends, and the next one is right."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.device import Machine, Runtime, is_out_of_memory
from gtr_pack.gtr_core.diffusion.head import HeadSpec
from gtr_pack.gtr_core.models.mar import MAR
from gtr_pack.gtr_core.noise import SeededNoise
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_pack.gtr_core.sampling.packed_linear import unavailable_reason
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.faults import Alarm, Fault
from gtr_tests.models import SMALL_MAR
from gtr_tests.stand_ins import randomised
from PIL import Image

SPEC = replace(
    SMALL_MAR, grid=(4, 4), dim=16, encoder_depth=1, decoder_depth=1, classes=3, buffer=2, head=HeadSpec(4, 16, 16, 1)
)
GTR = Method(Schedule("small", "gtr", (1, 1), diffusion=(2, 2, 1), decoder_scope="stage"), Guidance(2.0), FTS(0.3, 2))
LAZY = Method(Schedule("lazy", "random", (2,), diffusion=(3, 3, 3)), Guidance(2.0), cache=LazyMAR(1, 9, 0, 1, 2))
RUNS = pytest.mark.parametrize("method", [GTR, LAZY], ids=["gtr", "lazymar"])
CHECKED = 5  # every so many faults an undisturbed run follows
INTERRUPTS = 100  # of each kind of run


@pytest.fixture(scope="module")
def model() -> MAR:
    return randomised(MAR(SPEC), 1).eval()


def run_of(model: MAR, method: Method, runtime: Runtime = Runtime()) -> Callable[[], torch.Tensor]:
    """A run of two images: GtR with guidance and FTS, or LazyMAR."""

    def run() -> torch.Tensor:
        plan = make_plan(method, (4, 4), (1, 2))
        return sample(model, plan, torch.tensor([0, 2]), SeededNoise((1, 2), 4), runtime=runtime)

    return run


@RUNS
def test_memory_runs_out_at_every_allocation(model: MAR, method: Method) -> None:
    run = run_of(model, method)
    expected = run()
    with Fault() as whole:
        run()
    assert whole.count > 100
    for at in range(1, whole.count + 1):
        fault = Fault(at)
        with pytest.raises(torch.OutOfMemoryError) as caught, fault:
            run()
        assert is_out_of_memory(caught.value) and "\n" not in str(caught.value)
        del caught
        assert fault.alive == 0, f"{fault.alive} tensors outlive an error at allocation {at}"
        if at % CHECKED == 0 or at == whole.count:
            assert torch.equal(run(), expected), f"the run after an error at allocation {at} differs"
    print(f"memory ran out at each of {whole.count} allocations")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_runs_out_at_every_allocation_of_an_accelerated_run(model: MAR, dtype: torch.dtype) -> None:
    """Where packed weights find none the run goes on without them; everywhere else it ends."""
    reason = unavailable_reason(dtype)
    if reason is not None:
        pytest.skip(f"layers cannot be packed here: {reason}")
    machine = Machine((torch.bfloat16, torch.float32), wide_vectors=True, smallest_packed=0)
    own = copy.deepcopy(model).to(dtype)
    own.head.float()
    run = run_of(own, GTR, Runtime(dtype=dtype, accelerate=True, machine=machine))
    expected, plain, went_on = run(), run_of(own, GTR, Runtime(dtype=dtype, machine=machine))(), 0
    with Fault() as whole:
        run()
    for at in range(1, whole.count + 1):
        fault = Fault(at)
        try:
            with fault:
                out = run()
        except torch.OutOfMemoryError as caught:
            assert "\n" not in str(caught)
        else:
            went_on += 1
            assert dtype != torch.float32 or torch.equal(out, plain)
            del out
        assert fault.alive == 0, f"{fault.alive} tensors outlive an error at allocation {at}"
        assert at % CHECKED or torch.equal(run(), expected), f"the run after an error at allocation {at} differs"
    assert 0 < went_on < whole.count // 2
    print(f"memory ran out at each of {whole.count} allocations, {went_on} of them for packed weights")


@RUNS
def test_interrupts_at_random_moments_leave_nothing_behind(model: MAR, method: Method) -> None:
    """Half of them between two operations, half wherever the interpreter is when they come."""
    run, moments = run_of(model, method), random.Random(7)
    expected = run()
    with Fault() as whole:
        start = time.perf_counter()
        run()
        duration = time.perf_counter() - start
    caught = 0
    for number in range(INTERRUPTS):
        exact = number % 2
        fault = Fault(moments.randint(1, whole.count) if exact else None, KeyboardInterrupt)
        try:
            with fault, nullcontext() if exact else Alarm(moments.random() * duration):
                run()
        except KeyboardInterrupt:
            caught += 1
        assert fault.alive == 0
        assert number % CHECKED or torch.equal(run(), expected)
    assert caught >= INTERRUPTS // 2
    print(f"{caught} of {INTERRUPTS} runs were interrupted, the others had ended before")


def pixels(path: Path) -> bytes:
    """Without the report beside them, which tells seconds."""
    return Image.open(path).tobytes()


def test_the_command_line_says_that_memory_ran_out(capsys: pytest.CaptureFixture, tmp_path) -> None:
    arguments = [
        "generate",
        "--steps",
        "1,1,1",
        "--diffusion",
        "2,2,2",
        "--fts-steps",
        "2",
        "--json",
        "--acceleration",
        "off",
        "-o",
        str(tmp_path / "a.png"),
    ]
    assert main(arguments) == 0  # tables that are kept are made once
    with Fault() as whole:
        assert main(arguments) == 0
    before = pixels(tmp_path / "a.png")
    capsys.readouterr()
    for share in (0.1, 0.6, 0.9, 1.0):
        with Fault(int(whole.count * share)):
            assert main(arguments) == 2
        text = capsys.readouterr().err
        # While a file is read its reader may say so in its own words.
        assert text.startswith("error: out of memory" if share > 0.5 else "error: ") and text.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert main(arguments) == 0 and pixels(tmp_path / "a.png") == before


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error) and not is_out_of_memory(RuntimeError("shapes differ"))
