"""Linear layers with packed weights: what they share, what they take, and where they cannot be had."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from gtr_pack.gtr_core.sampling.packed_linear import PackedLinear, packed, packed_bytes, unavailable_reason
from gtr_tests.packing import linear_layers, needs_packing
from torch import nn


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
def test_layers_below_a_size_are_not_packed(tiny_mar):
    layers = [layer for layer in tiny_mar.modules() if isinstance(layer, nn.Linear)]
    largest = max(layer.weight.numel() for layer in layers)
    count = sum(layer.weight.numel() == largest for layer in layers)
    assert packed_bytes(tiny_mar, torch.float32, largest) == 4 * largest * count
    twins = [each for each in packed(tiny_mar, torch.float32, largest).modules() if isinstance(each, PackedLinear)]
    assert len(twins) == count and {each.in_features * each.out_features for each in twins} == {largest}


def test_why_layers_cannot_be_packed_is_one_line(monkeypatch):
    monkeypatch.setattr(torch, "ops", SimpleNamespace(mkldnn=SimpleNamespace()))
    reason = unavailable_reason(torch.float32)
    assert "_reorder_linear_weight" in reason and "\n" not in reason


@needs_packing
def test_other_numbers_are_a_reason(monkeypatch):
    monkeypatch.setattr(PackedLinear, "forward", lambda self, x: x * 1.01)
    assert unavailable_reason(torch.float32).startswith("they differ from torch's by")
