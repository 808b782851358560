"""Attention as products: its numbers, in parts and at once, and its error beside that of a transformer in 16 bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model
from gtr_pack.gtr_core.demo import DEMO_MAR
from gtr_pack.gtr_core.device import Machine, Runtime
from gtr_pack.gtr_core.models import Model, build
from gtr_pack.gtr_core.models.layers import Attention, sdpa
from gtr_pack.gtr_core.noise import SeededNoise
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.sampling import attention
from gtr_pack.gtr_core.sampling.acceleration import prepare
from gtr_pack.gtr_core.sampling.attention import product_attention
from gtr_pack.gtr_core.sampling.sampler import sample, upload_positions
from gtr_tests.packing import WIDE, needs_packing


def seeded_qkv(rows: int, keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(3, 5, n, 16, generator=generator).to(dtype) for n in (rows, keys, keys)]


@pytest.mark.parametrize("rows, keys", [(7, 7), (3, 40), (1, 1)])
def test_attention_is_torchs(rows, keys):
    """In float32 up to rounding; in bfloat16 up to that of scores and weights."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        qkv = seeded_qkv(rows, keys, dtype)
        found, expected = product_attention(*qkv), sdpa(*(t.float() for t in qkv))
        assert found.dtype == dtype and (found.float() - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("scores", [1, 2 * 7 * 9 * 2, 5 * 7 * 9 * 2])
def test_heads_in_parts_are_those_at_once(scores, monkeypatch):
    qkv = seeded_qkv(7, 9, torch.bfloat16)
    together = product_attention(*qkv)
    monkeypatch.setattr(attention, "SCORE_BYTES", scores)
    assert torch.equal(product_attention(*qkv), together)


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(DEMO_MAR)


def in_16_bit(model: Model, attention: Attention) -> Model:
    copy = build(model.spec, dtype=torch.bfloat16, attention=attention)
    copy.load_state_dict(model.state_dict())
    return copy.requires_grad_(False)


@pytest.mark.parametrize("index", [1, *(pytest.param(late, marks=pytest.mark.slow) for late in (5, 17))])
def test_the_error_stays_that_of_the_transformer_in_16_bit(index, demo):
    """Of what a trained model makes of its own tokens, against float32. Independent errors add as squares: what the
    products add is less than what the transformer has with torch's attention, which is exacter still with AMX."""
    seeds, labels = tuple(range(8)), torch.arange(8)
    plan, states = make_plan(Method(preset("gtr-full"), Guidance(3.0)), demo.spec.grid, seeds), []

    def remember(progress) -> None:
        if progress.step == index and not progress.diffusion_step:
            states.append(progress.tokens.clone())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(demo, plan, labels, SeededNoise(seeds, demo.spec.head.channels), callback=remember)
    positions = upload_positions(plan, "cpu")[index]

    def conditioning(model: Model, dtype: torch.dtype) -> torch.Tensor:
        memory = model.start((labels, None), dtype=dtype)
        return torch.stack(model(states[0].to(dtype), positions, memory, model.spec.grid)).float()

    exact = conditioning(demo, torch.float32)
    torchs, products = (
        (conditioning(in_16_bit(demo, each), torch.bfloat16) - exact).norm() / exact.norm()
        for each in (sdpa, product_attention)
    )
    print(f"torch's {torchs:.5f}, products {products:.5f}")
    assert 1e-3 < products
    assert products**2 - torchs**2 < torchs**2


@needs_packing
def test_it_replaces_torchs_own_in_16_bit_without_amx_only(demo):
    def found(model: Model) -> set:
        return {each.attention for each in model.modules() if hasattr(each, "attention")}

    def prepared(model: Model, dtype: torch.dtype, machine: Machine = WIDE) -> Model:
        plan = make_plan(Method(preset("gtr-full"), Guidance(3.0)), model.spec.grid, (0,))
        return prepare(model, plan, Runtime(dtype=dtype, accelerate=True, machine=machine)).model

    assert found(prepared(demo, torch.bfloat16)) == {product_attention}
    assert found(prepared(demo, torch.float32)) == found(demo) == {sdpa}
    assert found(prepared(demo, torch.bfloat16, replace(WIDE, matrix_units=True))) == {sdpa}
    hosts = in_16_bit(demo, lambda q, k, v: sdpa(q, k, v))
    assert found(prepared(hosts, torch.bfloat16)) == found(hosts)
