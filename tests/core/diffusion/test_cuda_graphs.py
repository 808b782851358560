"""The step that a CUDA graph records, on the CPU without recording and on a CUDA device with it."""

from __future__ import annotations

import contextlib
import copy
import gc
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.diffusion import cuda_graphs
from gtr_pack.gtr_core.diffusion.cuda_graphs import (
    CHECKED_ROWS,
    MARGIN,
    TOLERANCE,
    Capture,
    SingleStepGraphs,
    StepGraphs,
    advance_counted,
    bucket,
    disagreement,
    fastest_step,
)
from gtr_pack.gtr_core.diffusion.loop import HeadLoop
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_tests.recorded import error
from gtr_tests.runs import in_turn, run, seeded_chains, seeded_z

STAGES = Schedule("stages", "gtr", (3, 2, 2), diffusion=(9, 5, 5), decoder_scope="stage")
METHOD = Method(STAGES, Guidance(2.5), FTS(0.2, 11))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_step_that_a_graph_records_equals_chains_in_turn(scale, tiny_mar):
    """On buffers filled up to a bucket, with a counter for the step; here without recording."""
    branches, chains = 1 if scale == 1 else 2, seeded_chains((3, 60), (12, 40), (125, 7))
    z, recorded, seen = seeded_z(140, branches), StepGraphs(tiny_mar.head), []
    ours = HeadLoop(tiny_mar.head, z, chains, scale).run(lambda j, total: seen.append(j), recorded)
    assert error(ours, in_turn(tiny_mar.head, z, chains, scale)) < 5e-5
    assert seen == list(range(1, 61))
    assert set(recorded.graphs) == {(4, branches), (16, branches), (160, branches)}


def test_the_sizes_that_graphs_are_recorded_for():
    """Doubling while a step costs the same for more rows, then in small steps, then none."""
    assert [bucket(n) for n in (1, 4, 5, 128, 129, 161, 1024, 1025)] == [4, 4, 8, 128, 160, 192, 1024, None]
    assert bucket(256, 256) == 256 and bucket(257, 256) is None


@pytest.mark.parametrize("joined", [False, True])
def test_the_step_that_a_graph_records_in_16_bit_stays_close(joined, first_step, demo_mar):
    low_precision = demo_mar.head.copied(torch.bfloat16, joined=joined)
    graphs, exact = StepGraphs(low_precision), SingleStepGraphs(demo_mar.head)
    ours = first_step(low_precision, graphs, exact)
    assert error(ours, first_step(low_precision)) < 1e-2
    assert graphs.graphs and exact.graphs


def test_the_first_steps_in_graphs_are_the_same(first_step, demo_mar):
    """Of the float32 head, which makes the modulations of a single step inside; few tokens are not filled up."""
    alone, exact = demo_mar.head.copied(torch.float32), SingleStepGraphs(demo_mar.head)
    ours = first_step(alone, None, exact)
    assert error(ours, first_step(alone)) < 1e-4 and exact.graphs


@pytest.mark.parametrize("change", [0.0, 0.1, float("nan")])
def test_kernels_that_differ_are_found_out(change, tiny_mar):
    """What decides whether Triton's step is used on a device."""

    def other(head, x, modulations, table, noise, scale, counter, branches):
        advance_counted(head, x, modulations, table, noise + change, scale, counter, branches)

    found = disagreement(tiny_mar.head, torch.zeros(CHECKED_ROWS, sum(tiny_mar.head.widths)), other, 2)
    assert found > TOLERANCE if change else found == 0


@pytest.mark.parametrize("difference, used", [(TOLERANCE / 2, True), (2 * TOLERANCE, False)])
def test_tritons_step_is_used_where_its_numbers_agree(difference, used, tiny_mar, monkeypatch, caplog):
    """With a stand-in for the kernels, and for a CUDA device: neither has to be here."""
    kernels = ModuleType("triton_kernels")
    kernels.advance, kernels.FAILURES = object(), (RuntimeError,)
    monkeypatch.setitem(sys.modules, f"{cuda_graphs.__package__}.triton_kernels", kernels)
    monkeypatch.setattr(sys.modules[cuda_graphs.__package__], "triton_kernels", kernels, raising=False)
    monkeypatch.setattr(cuda_graphs, "disagreement", lambda head, buffer, step, branches: difference)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    step = fastest_step(tiny_mar.head, SimpleNamespace(is_cuda=True, device="cuda"))
    assert step is (kernels.advance if used else advance_counted)
    assert len(caplog.records) == (0 if used else 1)


def test_a_failure_to_record_is_one_line_and_no_more(tiny_mar, caplog):
    """The run goes on without graphs. (On a machine with CUDA the recording of a step on the CPU fails as well.)"""
    z, chains, failing = seeded_z(4, 1), seeded_chains((4, 5)), StepGraphs(tiny_mar.head, Capture())
    for _ in range(2):
        ours = HeadLoop(tiny_mar.head, z, chains, 1.0).run(lambda j, total: None, failing)
    plain = HeadLoop(tiny_mar.head, z, chains, 1.0).run(lambda j, total: None)
    assert torch.equal(ours, plain) and not failing.usable
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert caplog.records[0].getMessage().startswith("CUDA graphs are off for this run: ")


@dataclass
class StandIn:
    """What a recording asks of CUDA, without it: every call is noted, ``free`` bytes of memory are left."""

    free: int
    calls: list[str] = field(default_factory=list)

    def install(self, monkeypatch) -> StandIn:
        stand_in, stream = self, SimpleNamespace(wait_stream=lambda other: None)

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                stand_in.calls.append(f"begin {pool} {capture_error_mode} {gc.isenabled()}")

            def capture_end(self):
                stand_in.calls.append("end")

            def replay(self):
                """The steps of a recording run once, when they are recorded; here that is enough."""

        for name, value in {
            "CUDAGraph": Graph,
            "Stream": lambda device: stand_in.calls.append("stream") or stream,
            "current_stream": lambda device: stream,
            "stream": lambda given: contextlib.nullcontext(),
            "graph_pool_handle": lambda: stand_in.calls.append("pool") or "shared",
            "mem_get_info": lambda device: (stand_in.free, 2**40),
            "empty_cache": lambda: stand_in.calls.append("emptied"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        cuda_graphs.capture_stream.cache_clear()
        return self


@pytest.fixture
def no_stream_left():
    """A stand-in's stream does not stay."""
    yield
    cuda_graphs.capture_stream.cache_clear()


@pytest.mark.usefixtures("no_stream_left")
def test_recordings_share_pool_and_stream_and_hold_the_collector(tiny_mar, monkeypatch):
    """Of all graphs of a run, and the stream of all runs; other threads may use the device meanwhile."""
    cuda = StandIn(MARGIN).install(monkeypatch)
    for _ in range(2):
        graphs = StepGraphs(tiny_mar.head, Capture())
        for tokens in (3, 12, 4):
            assert graphs.find(tokens, 2, torch.zeros(1)) is graphs.graphs[4 if tokens < 9 else 16, 2]
    recorded = ["begin shared thread_local False", "end"]
    assert cuda.calls == ["stream", "pool", *recorded, *recorded, "pool", *recorded, *recorded]
    assert gc.isenabled()


@pytest.mark.usefixtures("no_stream_left")
def test_nothing_is_recorded_without_a_margin_of_memory(tiny_mar, monkeypatch, caplog):
    """A recording that fails for want of memory leaves torch's allocator unusable."""
    cuda = StandIn(MARGIN // 2).install(monkeypatch)
    graphs = StepGraphs(tiny_mar.head, Capture())
    assert graphs.find(3, 2, torch.zeros(1)) is None and graphs.buffer is None
    assert cuda.calls == ["stream", "pool", "emptied"]
    assert [record.getMessage() for record in caplog.records] == [
        "CUDA graphs are off for this run: 128 MiB of the device's memory are free, 256 are needed"
    ]


@pytest.mark.usefixtures("no_stream_left")
def test_a_step_that_makes_its_modulations_needs_room_for_them(tiny_mar, monkeypatch, caplog):
    """In the graphs' own memory, which is new."""
    needed = 2 * 160 * sum(tiny_mar.head.widths) * 4
    for short in (0, 1):
        StandIn(MARGIN + needed - short).install(monkeypatch)
        graphs = SingleStepGraphs(tiny_mar.head, Capture())
        assert (graphs.find(150, 2, torch.zeros(1)) is None) == bool(short)
    assert len(caplog.records) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("labels", [[3], [3, 4, 5]])
def test_a_run_with_graphs_equals_one_without_and_the_reference(labels, tiny_mar, caplog):
    """Recorded and replayed, on the device."""
    model, labels = copy.deepcopy(tiny_mar).cuda(), torch.tensor(labels)
    plain = Runtime("cuda")
    accelerated = replace(plain, accelerate=True)
    with_graphs = run(model, METHOD, labels, runtime=accelerated)
    assert not caplog.records
    assert torch.equal(run(model, METHOD, labels, runtime=accelerated), with_graphs)
    assert error(with_graphs, run(model, METHOD, labels, runtime=plain)) < 1e-3
    assert error(with_graphs, run(model, replace(METHOD, cache=Reference()), labels, runtime=plain)) < 1e-3
