"""Conversion: every value arrives, the source stays, and nothing is written unless all of it is good."""

from __future__ import annotations

import os

import pytest
import torch
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, checked_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.errors import GtRError


def test_conversion_keeps_the_head_in_float32_and_the_source(weights, training_checkpoint, tmp_path):
    source, target = tmp_path / "checkpoint-last.pth", tmp_path / "mar.safetensors"
    torch.save(training_checkpoint, source)
    before = source.read_bytes()
    result = convert(source, target, dtype="bfloat16", heads=4)
    assert result.weights == "ema" and result.warning is None
    spec, tensors = checked_model(read_checkpoint(target))
    assert spec.heads == 4
    for name, t in tensors.items():
        head = name.startswith("diffloss.")
        assert t.dtype == (torch.float32 if head else torch.bfloat16)
        assert torch.equal(t, weights[name].to(t.dtype))
    assert source.read_bytes() == before and sorted(os.listdir(tmp_path)) == [source.name, target.name]
    assert target.stat().st_mode == source.stat().st_mode


def test_nothing_is_written_when_something_is_wrong(weights, good, tmp_path):
    broken = tmp_path / "broken.pth"
    torch.save({"model_ema": weights | {"z_proj.bias": torch.full((64,), float("nan"))}}, broken)
    large = tmp_path / "large.pth"
    torch.save({"model_ema": weights | {"z_proj.bias": torch.full((64,), 1e6)}}, large)
    for source, target, settings, words in (
        (broken, "out.safetensors", dict(heads=4), "NaN"),
        (good, "out.ckpt", {}, "ends in .safetensors"),
        (good, "good.safetensors", dict(overwrite=True), "choose another name"),
        (good, "out.safetensors", dict(heads=-4), "do not divide"),
        (large, "out.safetensors", dict(heads=4, dtype="float16"), "infinite"),
        (tmp_path / "none.pth", "good.safetensors", dict(overwrite=True), "no file at"),
        (good, "none/out.safetensors", {}, "cannot write"),
    ):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(GtRError, match=words):
            convert(source, tmp_path / target, **settings)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_is_not_overwritten_unasked(good, tmp_path):
    convert(good, tmp_path / "a.safetensors")
    with pytest.raises(GtRError, match="--overwrite"):
        convert(good, tmp_path / "a.safetensors")
    convert(good, tmp_path / "a.safetensors", overwrite=True)


def test_a_vae_is_converted(golden_weights, tmp_path):
    weights = golden_weights("vae_tiny_fp16")
    torch.save({"model": weights}, tmp_path / "kl16.ckpt")
    convert(tmp_path / "kl16.ckpt", tmp_path / "kl16.safetensors")
    _, tensors = checked_vae(read_checkpoint(tmp_path / "kl16.safetensors"))
    assert all(torch.equal(tensors[name], t) for name, t in weights.items())
