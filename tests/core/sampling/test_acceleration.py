"""What a run prepares for itself: the same numbers, an untouched model, and torch's own way where it cannot be had."""

from __future__ import annotations

import gc
import logging
import weakref
from types import SimpleNamespace

import pytest
import torch
from gtr_pack.gtr_core import device as hardware
from gtr_pack.gtr_core.device import best_dtype, fast_dtypes
from gtr_pack.gtr_core.noise import SeededNoise, image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling import acceleration
from gtr_pack.gtr_core.sampling.acceleration import prepare
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_pack.gtr_core.sampling.packed_linear import PackedLinear, packed, packed_bytes, unavailable_reason
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.recorded import error
from torch import nn

CPU = torch.device("cpu")
STAGES = Schedule("stages", "gtr", (3, 2, 2), diffusion=(9, 5, 5), decoder_scope="stage")
LAZY = Schedule("lazy", "random", (8,), diffusion=(12, 12, 12))
TROUBLE = unavailable_reason(torch.float32)
needs_packing = pytest.mark.skipif(TROUBLE is not None, reason=f"layers cannot be packed here: {TROUBLE}")


@pytest.fixture
def wide(monkeypatch):
    """A processor on which packing pays, even of small layers, with units for bfloat16."""
    monkeypatch.setattr(acceleration, "SMALLEST", 0)
    monkeypatch.setattr(acceleration, "cpu_has_wide_vectors", lambda: True)
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: True)


def run(model, condition, schedule=STAGES, **settings):
    seeds = image_seeds(3, len(condition))
    return sample(
        model,
        make_plan(schedule, (8, 8), seeds),
        condition,
        SeededNoise(seeds, 16),
        **{"guidance": Guidance(2.5), "fts": FTS(0.2, 11)} | settings,
    )


def linear_layers(module: nn.Module) -> set[type]:
    return {type(each) for each in module.modules() if isinstance(each, (nn.Linear, PackedLinear))}


@needs_packing
@pytest.mark.parametrize("cache, schedule", [(None, STAGES), (LazyMAR(2, 3), LAZY)], ids=["direct", "lazymar"])
def test_mar_with_packed_weights(cache, schedule, tiny_mar, wide):
    labels = torch.tensor([3, 8])
    ours = run(tiny_mar, labels, schedule, cache=cache, accelerate=True)
    plain = run(tiny_mar, labels, schedule, cache=cache)
    assert 0 < error(ours, plain) < 1e-3
    assert torch.equal(run(tiny_mar, labels, schedule, cache=cache, accelerate=True), ours)
    assert linear_layers(tiny_mar) == {nn.Linear}


@needs_packing
def test_lightgen_with_packed_weights(lightgen, golden, wide):
    text = golden("lightgen_tiny_backbone")["text_in"]
    assert error(run(lightgen, text, accelerate=True), run(lightgen, text, cache=Reference())) < 1e-3


@needs_packing
def test_an_image_of_a_batch_is_the_image_alone_with_packed_weights(tiny_mar, wide):
    labels = torch.tensor([3, 8, 3])
    together = run(tiny_mar, labels, accelerate=True)
    plan = make_plan(STAGES, (8, 8), image_seeds(5, 1))
    alone = sample(
        tiny_mar,
        plan,
        labels[2:],
        SeededNoise(image_seeds(5, 1), 16),
        guidance=Guidance(2.5),
        fts=FTS(0.2, 11),
        accelerate=True,
    )
    assert error(together[2:], alone) < 1e-3


@needs_packing
def test_a_packed_model_shares_all_but_its_linear_layers(tiny_mar):
    twin = packed(tiny_mar, torch.bfloat16)
    assert linear_layers(twin) == {PackedLinear} and linear_layers(tiny_mar) == {nn.Linear}
    assert twin.mask_token is tiny_mar.mask_token and twin.encoder_norm.weight is tiny_mar.encoder_norm.weight
    assert twin.decoder_embed.weight.dtype == torch.bfloat16 and twin.head.input_proj.weight.dtype == torch.float32
    assert [name for name, _ in twin.named_modules()] == [name for name, _ in tiny_mar.named_modules()]
    layers = [layer for layer in tiny_mar.modules() if isinstance(layer, nn.Linear)]
    in_head = {layer for layer in tiny_mar.head.modules() if isinstance(layer, nn.Linear)}
    assert packed_bytes(tiny_mar, torch.bfloat16) == sum(
        layer.weight.numel() * (4 if layer in in_head else 2) for layer in layers
    )


@needs_packing
def test_packed_weights_go_with_their_run(tiny_mar, wide, monkeypatch):
    alive = []

    def remember(*arguments):
        prepared = prepare(*arguments, cached=False)
        alive.extend(weakref.ref(each) for each in prepared.model.modules() if isinstance(each, PackedLinear))
        return prepared

    monkeypatch.setattr("gtr_pack.gtr_core.sampling.sampler.prepare", lambda *arguments, cached: remember(*arguments))
    run(tiny_mar, torch.tensor([3]), accelerate=True)
    gc.collect()
    assert alive and [ref for ref in alive if ref() is not None] == []


@pytest.mark.parametrize(
    "wide_vectors, dtype, found",
    [(True, torch.float32, {PackedLinear}), (False, torch.float32, {nn.Linear}), (True, torch.float16, {nn.Linear})],
)
@needs_packing
def test_where_packing_pays(wide_vectors, dtype, found, tiny_mar, monkeypatch, caplog):
    monkeypatch.setattr(acceleration, "cpu_has_wide_vectors", lambda: wide_vectors)
    monkeypatch.setattr(acceleration, "SMALLEST", 0)
    assert linear_layers(prepare(tiny_mar, CPU, dtype, 1, 0).model) == found
    assert not caplog.records


@needs_packing
def test_layers_with_little_to_do_stay_as_they_are(tiny_mar, monkeypatch):
    monkeypatch.setattr(acceleration, "cpu_has_wide_vectors", lambda: True)
    sizes = sorted({layer.weight.numel() for layer in tiny_mar.modules() if isinstance(layer, nn.Linear)})
    monkeypatch.setattr(acceleration, "SMALLEST", 4 * sizes[-1])
    assert prepare(tiny_mar, CPU, torch.float32, 3, 0).model is tiny_mar
    some = prepare(tiny_mar, CPU, torch.float32, 4, 0).model
    assert linear_layers(some) == {nn.Linear, PackedLinear}
    assert {each.in_features * each.out_features for each in some.modules() if isinstance(each, PackedLinear)} == {
        sizes[-1]
    }
    largest = [each for each in tiny_mar.modules() if isinstance(each, nn.Linear) and each.weight.numel() == sizes[-1]]
    assert packed_bytes(tiny_mar, torch.float32, sizes[-1]) == 4 * sizes[-1] * len(largest)


def no_memory(monkeypatch):
    monkeypatch.setattr(acceleration, "available_bytes", lambda: 100_000)


def no_operation(monkeypatch):
    monkeypatch.setattr(torch, "ops", SimpleNamespace(mkldnn=SimpleNamespace()))


def other_operation(monkeypatch):
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: x * 1.01)


def failing_operation(monkeypatch):
    monkeypatch.setattr(acceleration, "packed", lambda *_: torch.empty(2**60))


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
def test_without_packed_weights_after_one_line(fault, words, tiny_mar, wide, monkeypatch, caplog):
    fault(monkeypatch)
    with caplog.at_level(logging.WARNING):
        prepared = prepare(tiny_mar, CPU, torch.float32, 1, 0)
    assert prepared.model is tiny_mar
    (record,) = caplog.records
    assert record.getMessage().startswith("Weights are not packed for this run: ")
    assert words in record.getMessage() and "\n" not in record.getMessage()


@pytest.mark.parametrize(
    "dtype, units, cached, found",
    [
        (torch.bfloat16, True, False, torch.bfloat16),
        (torch.bfloat16, False, False, None),
        (torch.bfloat16, True, True, None),
        (torch.float32, True, False, None),
    ],
)
def test_a_head_in_16_bit_where_there_are_units_for_it(dtype, units, cached, found, tiny_mar, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_has_bfloat16", lambda: units)
    monkeypatch.setattr(acceleration, "cpu_has_wide_vectors", lambda: False)
    low_precision = prepare(tiny_mar, CPU, dtype, 1, 0, cached=cached).low_precision
    assert (low_precision and low_precision.input_proj.weight.dtype) == found
    assert tiny_mar.head.input_proj.weight.dtype == torch.float32


@pytest.mark.parametrize("device, dtype", [("mps", torch.float32), ("xpu", torch.float32), ("meta", torch.float32)])
def test_float32_where_nothing_faster_is_known(device, dtype):
    assert best_dtype(device) == dtype


@pytest.mark.parametrize(
    "capabilities, dtypes",
    [
        ({"avx2": True}, (torch.float32,)),
        ({}, (torch.float32,)),
        ({"avx512_bf16": True}, (torch.bfloat16, torch.float32)),
        ({"avx512_bf16": False, "amx_tile": True}, (torch.bfloat16, torch.float32)),
    ],
)
def test_bfloat16_on_processors_with_units_for_it(capabilities, dtypes, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fast_dtypes("cpu") == dtypes


@pytest.mark.parametrize(
    "generation, dtypes",
    [
        (9, (torch.bfloat16, torch.float16, torch.float32)),
        (8, (torch.bfloat16, torch.float16, torch.float32)),
        (7, (torch.float16, torch.float32)),
        (6, (torch.float32,)),
    ],
)
def test_16_bit_on_cuda_devices_with_units_for_it(generation, dtypes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    assert fast_dtypes("cuda") == dtypes
