"""What a run prepares for itself: the same numbers, an untouched model, and torch's own way where it cannot be had."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gtr_pack.gtr_core.device import Machine, Preparations, Runtime
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.noise import image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import Plan, make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling import acceleration
from gtr_pack.gtr_core.sampling.acceleration import prepare
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_pack.gtr_core.sampling.memory import activation_bytes, check_run
from gtr_pack.gtr_core.sampling.packed_linear import PackedLinear
from gtr_pack.gtr_core.sampling.recap import ReCAP
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_tests.fake_device import FakeDevice
from gtr_tests.packing import WIDE, linear_layers, needs_packing
from gtr_tests.recorded import error
from gtr_tests.runs import run
from torch import nn

STAGES = Schedule("stages", "gtr", (3, 2, 2), diffusion=(9, 5, 5), decoder_scope="stage")
METHOD = Method(STAGES, Guidance(2.5), FTS(0.2, 11))
LAZY = replace(METHOD, schedule=Schedule("lazy", "random", (8,), diffusion=(12, 12, 12)), cache=LazyMAR(2, 3))
ACCELERATED = Runtime(accelerate=True, machine=WIDE)


def plan_of(batch: int, method: Method = METHOD) -> Plan:
    return make_plan(method, (8, 8), image_seeds(3, batch))


@needs_packing
@pytest.mark.parametrize("method", [METHOD, LAZY], ids=["direct", "lazymar"])
def test_mar_with_packed_weights_gives_the_same(method, tiny_mar):
    labels = torch.tensor([3, 8])
    ours = run(tiny_mar, method, labels, runtime=ACCELERATED)
    plain = run(tiny_mar, method, labels)
    assert 0 < error(ours, plain) < 1e-3
    assert torch.equal(run(tiny_mar, method, labels, runtime=ACCELERATED), ours)
    assert linear_layers(tiny_mar) == {nn.Linear}


@needs_packing
def test_lightgen_with_packed_weights_gives_the_same(lightgen, golden):
    text = golden("lightgen_tiny_backbone")["text_in"]
    plain = run(lightgen, replace(METHOD, cache=Reference()), text, grid=(8, 8))
    assert error(run(lightgen, METHOD, text, grid=(8, 8), runtime=ACCELERATED), plain) < 1e-3


@needs_packing
def test_an_image_of_a_batch_is_the_image_alone_with_packed_weights(tiny_mar):
    labels = torch.tensor([3, 8, 3])
    together = run(tiny_mar, METHOD, labels, runtime=ACCELERATED)
    alone = run(tiny_mar, METHOD, labels[2:], image_seeds(5, 1), runtime=ACCELERATED)
    assert error(together[2:], alone) < 1e-3


@needs_packing
def test_packed_weights_go_with_their_run(tiny_mar, monkeypatch):
    alive = []

    def remember(*arguments):
        prepared = prepare(*arguments)
        alive.extend(weakref.ref(each) for each in prepared.model.modules() if isinstance(each, PackedLinear))
        return prepared

    monkeypatch.setattr("gtr_pack.gtr_core.sampling.sampler.prepare", remember)
    run(tiny_mar, METHOD, torch.tensor([3]), runtime=ACCELERATED)
    gc.collect()
    assert alive and [ref for ref in alive if ref() is not None] == []


@needs_packing
def test_what_is_kept_serves_the_next_run_of_the_same_weights(tiny_mar, lightgen, golden, monkeypatch):
    """Whatever the plan and the batch, as long as the same layers pay; one set is kept at most."""
    packs, pack, kept = [], acceleration.packed, Preparations()
    monkeypatch.setattr(acceleration, "packed", lambda module, *rest: packs.append(module) or pack(module, *rest))
    runtime = replace(ACCELERATED, preparations=kept)
    labels = torch.tensor([3, 8])
    alone = run(tiny_mar, METHOD, labels, runtime=ACCELERATED)
    packs.clear()
    assert torch.equal(run(tiny_mar, METHOD, labels, runtime=runtime), alone)
    assert torch.equal(run(tiny_mar, METHOD, labels, runtime=runtime), alone)
    run(tiny_mar, replace(METHOD, schedule=LAZY.schedule), torch.tensor([3]), runtime=runtime)
    assert packs == [tiny_mar] and kept.value.packed_bytes > 0
    prepare(tiny_mar, plan_of(2, LAZY), runtime)  # without the head in 16 bit, whose dtype it could not use
    first = weakref.ref(kept.value)
    run(lightgen, METHOD, golden("lightgen_tiny_backbone")["text_in"], grid=(8, 8), runtime=runtime)
    gc.collect()
    assert packs == [tiny_mar, tiny_mar, lightgen] and first() is None
    other = copy.deepcopy(tiny_mar)
    prepare(other, plan_of(2), runtime)
    other.decoder_embed.weight = nn.Parameter(other.decoder_embed.weight.clone(), requires_grad=False)
    prepare(other, plan_of(2), runtime)
    assert packs[3:] == [other, other]
    kept.clear()
    assert torch.equal(run(tiny_mar, METHOD, labels, runtime=runtime), alone)


@needs_packing
def test_what_an_earlier_run_left_makes_room_first(tiny_mar):
    kept, plan = Preparations(), plan_of(2)
    prepare(tiny_mar, plan, replace(ACCELERATED, preparations=kept))
    needed = activation_bytes(plan, tiny_mar.spec, ACCELERATED)
    check_run(
        plan, tiny_mar.spec, replace(ACCELERATED, machine=replace(WIDE, available_bytes=needed), preparations=kept)
    )
    assert kept.value is not None
    with pytest.raises(GtRError):
        scarce = replace(WIDE, available_bytes=needed - 1)
        check_run(plan, tiny_mar.spec, replace(ACCELERATED, machine=scarce, preparations=kept))
    assert kept.value is None


def test_nothing_that_is_quickly_made_is_kept(tiny_mar, monkeypatch, caplog):
    """The next run may have the room for packed weights that this one had not."""
    kept = Preparations()
    prepare(tiny_mar, plan_of(1), replace(ACCELERATED, machine=no_memory(monkeypatch), preparations=kept))
    assert kept.value is None


@pytest.mark.parametrize(
    "wide_vectors, dtype, found",
    [(True, torch.float32, {PackedLinear}), (False, torch.float32, {nn.Linear}), (True, torch.float16, {nn.Linear})],
)
@needs_packing
def test_weights_are_packed_where_it_pays(wide_vectors, dtype, found, tiny_mar, caplog):
    runtime = replace(ACCELERATED, dtype=dtype, machine=replace(WIDE, wide_vectors=wide_vectors))
    assert linear_layers(prepare(tiny_mar, plan_of(1), runtime).model) == found
    assert not caplog.records


@pytest.mark.parametrize(
    "runtime, method",
    [(Runtime(machine=WIDE), METHOD), (ACCELERATED, replace(METHOD, cache=Reference()))],
    ids=["not asked for", "reference"],
)
def test_nothing_is_prepared_for_a_run_that_shall_be_plain(runtime, method, tiny_mar):
    prepared = prepare(tiny_mar, plan_of(1, method), runtime)
    assert (prepared.model, prepared.low_precision, prepared.graphs) == (tiny_mar, None, None)


@needs_packing
def test_layers_with_little_to_do_stay_as_they_are(tiny_mar):
    largest = max(layer.weight.numel() for layer in tiny_mar.modules() if isinstance(layer, nn.Linear))
    runtime = replace(ACCELERATED, machine=replace(WIDE, smallest_packed=4 * largest))
    assert prepare(tiny_mar, plan_of(3), runtime).model is tiny_mar
    some = prepare(tiny_mar, plan_of(4), runtime).model
    assert linear_layers(some) == {nn.Linear, PackedLinear}
    sizes = {each.in_features * each.out_features for each in some.modules() if isinstance(each, PackedLinear)}
    assert sizes == {largest}


def no_memory(monkeypatch) -> Machine:
    return replace(WIDE, available_bytes=100_000)


def no_operation(monkeypatch) -> Machine:
    monkeypatch.setattr(torch, "ops", SimpleNamespace(mkldnn=SimpleNamespace()))
    return WIDE


def other_operation(monkeypatch) -> Machine:
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: x * 1.01)
    return WIDE


def failing_operation(monkeypatch) -> Machine:
    monkeypatch.setattr(acceleration, "packed", lambda *_: torch.empty(2**60))
    return WIDE


@needs_packing
@pytest.mark.parametrize(
    "fault, words",
    [
        (no_memory, "the 0.0 GiB left"),
        (no_operation, "_reorder_linear_weight"),
        (other_operation, "they differ from torch's by"),
        (failing_operation, ""),
    ],
)
def test_without_packed_weights_after_one_line(fault, words, tiny_mar, monkeypatch, caplog):
    runtime, plan = replace(ACCELERATED, machine=fault(monkeypatch)), plan_of(1)
    with caplog.at_level(logging.WARNING):
        prepared = prepare(tiny_mar, plan, runtime)
    assert prepared.model is tiny_mar
    (record,) = caplog.records
    assert record.getMessage().startswith("Weights are not packed for this run: ")
    assert words in record.getMessage() and "\n" not in record.getMessage()


@pytest.mark.parametrize(
    "dtype, units, cache, found",
    [
        (torch.bfloat16, True, None, torch.bfloat16),
        (torch.bfloat16, False, None, None),
        (torch.bfloat16, True, LazyMAR(), None),
        (torch.bfloat16, True, ReCAP(), torch.bfloat16),
        (torch.float32, True, None, None),
    ],
)
def test_a_head_in_16_bit_where_there_are_units_for_it(dtype, units, cache, found, tiny_mar):
    machine = Machine((*([torch.bfloat16] if units else []), torch.float32))
    plan = plan_of(1, replace(METHOD, cache=cache))
    low_precision = prepare(tiny_mar, plan, Runtime("cpu", dtype, True, machine)).low_precision
    assert (low_precision and low_precision.input_proj.weight.dtype) == found
    assert tiny_mar.head.input_proj.weight.dtype == torch.float32


@pytest.mark.parametrize("stays, kept, found", [(True, True, True), (False, True, False), (True, False, False)])
def test_graphs_of_a_transformer_that_stays_and_serves_other_runs(stays, kept, found, tiny_mar):
    """Where a host moves its weights, a graph would read what has taken their place."""
    machine = Machine((torch.bfloat16, torch.float32))
    preparations = Preparations() if kept else None
    runtime = Runtime("cuda", torch.bfloat16, True, machine, transformer_stays=stays, preparations=preparations)
    with FakeDevice("cuda"):
        prepared = prepare(copy.deepcopy(tiny_mar), plan_of(1), runtime)
    assert (prepared.transformer is not None) == found
    assert prepared.graphs is not None and prepared.exact_graphs is not None
    assert prepared.low_precision.joined is not None
    if kept:
        prepared_again = prepare(prepared.model, plan_of(1), replace(runtime, transformer_stays=not stays))
        assert prepared_again is not prepared
