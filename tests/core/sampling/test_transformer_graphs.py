"""The transformer on the buffers of a graph: the same numbers on the CPU without recording, recorded on a CUDA device;
what is recorded when, and what is left of it."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.device import Preparations, Runtime, UploadsOnce, upload
from gtr_pack.gtr_core.diffusion.cuda_graphs import Capture
from gtr_pack.gtr_core.models.mar import EmbeddedLabels
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling import transformer_graphs
from gtr_pack.gtr_core.sampling.acceleration import Prepared
from gtr_pack.gtr_core.sampling.transformer_graphs import StaticMemory, TransformerGraphs, structure_of, tensors_of
from gtr_tests.harmon import seeded_harmon
from gtr_tests.recorded import error
from gtr_tests.runs import run

STAGES = Schedule("stages", "gtr", (3, 2, 2), diffusion=(9, 5, 5), decoder_scope="stage")
METHOD = Method(STAGES, Guidance(2.5), FTS(0.2, 11))
LATER = replace(METHOD, guidance=Guidance(2.5, start=0.4))


@pytest.fixture
def with_graphs(monkeypatch):
    """A function that makes runs use a model's graphs from their first meeting on, without recording."""

    def install(model, **settings) -> TransformerGraphs:
        graphs = TransformerGraphs(model, **{"meetings": 0, **settings})
        monkeypatch.setattr(
            "gtr_pack.gtr_core.sampling.sampler.prepare", lambda *_: Prepared(model, transformer=graphs)
        )
        return graphs

    return install


def both_ways(model, method, conditions, with_graphs, **settings) -> TransformerGraphs:
    """Runs one after another, on the buffers and without; they must agree. The buffers' are given."""
    plain = [run(model, method, condition, **settings) for condition in conditions]
    graphs = with_graphs(model)
    for condition, expected in zip(conditions, plain):
        assert torch.equal(run(model, method, condition, **settings), expected)
    assert graphs.usable and graphs.graphs
    return graphs


@pytest.mark.parametrize("method", [METHOD, LATER, replace(METHOD, guidance=Guidance(1.0))])
@pytest.mark.parametrize("labels", [[[3], [4], [4]], [[3, 4, 5], [5, 5, 6], [3, 4, 5]]])
def test_mar_on_the_buffers_gives_the_same(labels, method, tiny_mar, with_graphs):
    """Conditions change from run to run, and with them what the buffers hold."""
    both_ways(tiny_mar, method, [torch.tensor(each) for each in labels], with_graphs)


def test_lightgen_on_the_buffers_gives_the_same(lightgen, golden, with_graphs):
    text = golden("lightgen_tiny_backbone")["text_in"]
    both_ways(lightgen, METHOD, [text, text.flip(0), text], with_graphs, grid=(8, 8))


def test_harmon_on_the_buffers_gives_the_same(with_graphs):
    """Prompts of the same lengths share graphs, whichever they are; here on a grid whose positions are resized."""
    harmon = seeded_harmon()
    prompts = [harmon.spec.random_condition(2), harmon.spec.random_condition(2).flip(0)]
    both_ways(harmon, METHOD, prompts, with_graphs, grid=(8, 4))


def test_a_negative_and_given_tokens_on_the_buffers(tiny_mar, with_graphs):
    unknown = np.zeros((8, 8), bool)
    unknown[1:6, 2:7] = True
    tokens = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
    for negative in (torch.tensor([1, 2]), torch.tensor([7, 0])):
        settings = {"negative": negative, "unknown": unknown, "tokens": tokens}
        both_ways(tiny_mar, METHOD, [torch.tensor([3, 8])], with_graphs, **settings)


def test_a_shape_is_recorded_when_it_is_met_again(tiny_mar, with_graphs):
    """For a single run would pay for all of them."""
    graphs = with_graphs(tiny_mar, meetings=1)
    run(tiny_mar, METHOD, torch.tensor([3]))
    assert not graphs.graphs
    run(tiny_mar, METHOD, torch.tensor([4]))
    assert len(graphs.graphs) == 7
    run(tiny_mar, METHOD, torch.tensor([4]))
    assert len(graphs.graphs) == 7


def test_work_that_keeps_the_device_busy_is_not_recorded(tiny_mar, with_graphs, monkeypatch):
    monkeypatch.setattr(transformer_graphs, "LARGEST_WORK", 0)
    graphs = with_graphs(tiny_mar)
    run(tiny_mar, METHOD, torch.tensor([3]))
    assert not graphs.graphs


def test_the_number_of_graphs_is_bounded(tiny_mar, with_graphs, monkeypatch):
    """Those that the last run used stay: a plan of more shapes must not record all of them again and again."""
    monkeypatch.setattr(transformer_graphs, "MOST_GRAPHS", 4)
    graphs = with_graphs(tiny_mar)
    run(tiny_mar, METHOD, torch.tensor([3]))
    first = dict(graphs.graphs)
    assert len(first) == 4
    run(tiny_mar, METHOD, torch.tensor([3]))
    assert graphs.graphs == first
    other = replace(METHOD, guidance=Guidance(1.0))
    for _ in range(3):
        run(tiny_mar, other, torch.tensor([3]))
    assert len(graphs.graphs) == 4 and not first.keys() & graphs.graphs.keys()


def test_shapes_met_once_are_not_remembered_for_ever(tiny_mar, with_graphs, monkeypatch):
    monkeypatch.setattr(transformer_graphs, "MOST_SHAPES", 3)
    graphs = with_graphs(tiny_mar, meetings=1)
    run(tiny_mar, METHOD, torch.tensor([3]))
    assert len(graphs.met) <= 3


def test_no_memory_of_a_run_outlives_it(tiny_mar, with_graphs, monkeypatch):
    memories, start = [], type(tiny_mar).start

    def remembered(self, *arguments):
        memory = start(self, *arguments)
        memories.extend([weakref.ref(memory), *map(weakref.ref, memory.rows)])
        return memory

    monkeypatch.setattr(type(tiny_mar), "start", remembered)
    graphs = with_graphs(tiny_mar)
    run(tiny_mar, METHOD, torch.tensor([3]))
    gc.collect()
    assert graphs.graphs and memories and not any(each() is not None for each in memories)
    graphs.clear()
    assert not graphs.memories


def test_a_failure_to_record_is_one_line_and_the_plain_numbers(tiny_mar, with_graphs, caplog):
    """(On a machine with CUDA the recording of an evaluation on the CPU fails as well.)"""
    plain = run(tiny_mar, METHOD, torch.tensor([3]))
    graphs = with_graphs(tiny_mar, capture=Capture())
    for _ in range(2):
        assert torch.equal(run(tiny_mar, METHOD, torch.tensor([3])), plain)
    assert not graphs.usable and not graphs.graphs
    (record,) = caplog.records
    assert record.getMessage().startswith("CUDA graphs of the transformer are off for this run: ")
    assert "\n" not in record.getMessage()


@dataclass(frozen=True, eq=False)
class Wrapped(EmbeddedLabels):
    """With something of no known kind."""

    beside: object = object()

    def first(self, branches):
        return Wrapped(self.rows[:branches])


class Unwatched(tuple):
    """Without weak references."""

    __slots__ = ()
    rows, branches = property(tuple), property(len)

    def first(self, branches):
        return Unwatched(self[:branches])

    def images(self, rows):
        return Unwatched(branch[rows] for branch in self)


@pytest.mark.parametrize("kind", [Wrapped, Unwatched])
def test_a_memory_of_anything_else_is_evaluated_plainly(kind, tiny_mar, with_graphs, monkeypatch):
    start = type(tiny_mar).start
    plain = run(tiny_mar, METHOD, torch.tensor([3]))
    monkeypatch.setattr(type(tiny_mar), "start", lambda *arguments: kind(start(*arguments).rows))
    graphs = with_graphs(tiny_mar)
    assert torch.equal(run(tiny_mar, METHOD, torch.tensor([3])), plain)
    assert graphs.usable and not graphs.graphs


def test_a_static_memory_has_the_structure_and_tensors_of_its_own(tiny_mar):
    memories = [tiny_mar.start((torch.tensor(labels), None)) for labels in ([3, 4], [5, 6])]
    static = StaticMemory(memories[0])
    assert structure_of(static.value) == structure_of(memories[0]) == structure_of(memories[1])
    assert structure_of(tiny_mar.start((torch.tensor([3]), None))) != structure_of(memories[0])
    places = [t.data_ptr() for t in tensors_of(static.value)]
    static.load(memories[1])
    assert [t.data_ptr() for t in tensors_of(static.value)] == places
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(static.value.rows, memories[1].rows))


def test_a_recording_uploads_a_constant_once_and_nothing_later():
    constant, once = torch.arange(3.0), UploadsOnce()
    with once:
        first = upload(constant, "meta")
        assert upload(constant, "meta") is first
    once.complete()
    with once:
        assert upload(constant, "meta") is first
        with pytest.raises(RuntimeError, match="something new"):
            upload(torch.arange(4.0), "meta")
    assert upload(constant, "meta") is not first


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("method", [METHOD, LATER], ids=["guided", "guided later"])
@pytest.mark.parametrize("batch", [1, 3])
def test_runs_with_recorded_evaluations_equal_plain_ones(batch, method, tiny_mar, caplog):
    """One after another with other labels, the first of which only meets the shapes; then all is freed."""
    model, plain, kept = copy.deepcopy(tiny_mar).cuda(), Runtime("cuda"), Preparations()
    fast = replace(plain, accelerate=True, preparations=kept)
    labels = [torch.tensor([3, 4, 5][:batch]), torch.tensor([7, 1, 1][:batch])]
    for these in [*labels, *labels]:
        ours = run(model, method, these, runtime=fast)
        assert error(ours, run(model, method, these, runtime=plain)) < 1e-3
    assert torch.equal(run(model, method, labels[1], runtime=fast), ours)
    assert not caplog.records and kept.value.transformer.graphs
    torch.cuda.synchronize()
    with_them = torch.cuda.memory_reserved()
    kept.clear()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < with_them
