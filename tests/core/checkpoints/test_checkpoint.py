"""Model files: published forms are read, everything else ends in one clear line."""

from __future__ import annotations

import re
import struct
from dataclasses import replace

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import checkpoint as module
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, checked_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.latents import NAMED
from gtr_pack.gtr_core.models.lightgen import LIGHTGEN
from gtr_pack.gtr_core.models.mar import mar_spec
from safetensors.torch import save_file


def test_a_safetensors_file_gives_back_what_was_saved(good, weights, spec):
    found, tensors = checked_model(read_checkpoint(good))
    assert found == spec
    assert all(torch.equal(tensors[name], t) for name, t in weights.items())


@pytest.mark.parametrize("legacy", [False, True])
def test_original_checkpoints_load_their_ema_weights(weights, spec, training_checkpoint, tmp_path, legacy):
    path = tmp_path / "checkpoint-last.pth"
    torch.save(training_checkpoint, path, _use_new_zipfile_serialization=not legacy)
    ema, raw = read_checkpoint(path), read_checkpoint(path, weights="model")
    assert (ema.weights, raw.weights) == ("ema", "model")
    assert ema.warning(spec) is None and "holds non-EMA" in raw.warning(spec)
    for name, t in weights.items():
        assert torch.equal(ema.tensors[name], t) and torch.equal(raw.tensors[name], t + 1)


def test_a_file_without_ema_says_so(weights, spec, tmp_path):
    torch.save({"model": weights}, tmp_path / "m.pth")
    assert "holds non-EMA" in read_checkpoint(tmp_path / "m.pth").warning(spec)
    save_file(weights, tmp_path / "flat.safetensors")
    assert "may hold non-EMA" in read_checkpoint(tmp_path / "flat.safetensors").warning(spec)


def test_what_raw_weights_cost_is_said_of_the_model_that_it_was_measured_on(spec, good):
    """Published numbers are MAR-B's: no other size and no other family gets them."""
    raw = replace(read_checkpoint(good), weights="model")
    assert "worse images (FID 5.6 instead of 2.3): convert" in raw.warning(mar_spec("mar-b"))
    assert "worse images: convert" in raw.warning(mar_spec("mar-l")) and "FID" not in raw.warning(spec)
    assert raw.warning(replace(mar_spec("mar-b"), latent=NAMED["detok"])) is None
    assert raw.warning(LIGHTGEN) is None


def test_a_published_file_known_to_be_non_ema_is_named(weights, tmp_path, monkeypatch):
    path = tmp_path / "mar-base.safetensors"
    save_file(weights, path)
    monkeypatch.setattr(module, "KNOWN_NOT_EMA", {path.stat().st_size: "mar-base.safetensors"})
    assert read_checkpoint(path).weights == "model"


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
def test_truncated_files_are_refused(kind, keep, weights, refusal, tmp_path):
    path = tmp_path / f"cut{kind}"
    save_file(weights, path) if kind == ".safetensors" else torch.save({"model": weights}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    assert "damaged or truncated" in refusal(path) or "not executed" in refusal(path)


def test_a_header_that_promises_terabytes_is_refused(refusal, tmp_path):
    path = tmp_path / "huge.safetensors"
    header = b'{"class_emb.weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "damaged or truncated" in refusal(path)


CHANGES = {
    "missing": (
        lambda t: t.pop("decoder_norm.bias"),
        "1 of the 100 tensors of .* are missing \\(first: 'decoder_norm.bias'",
    ),
    "missing block": (lambda t: [t.pop(k) for k in list(t) if k.startswith("encoder_blocks.0.mlp")], "4 of the 100"),
    "a block in between": (
        lambda t: [t.pop(k) for k in list(t) if k.startswith("encoder_blocks.0.")],
        "'encoder_blocks' has 1 blocks, but one is number 1",
    ),
    "all encoder blocks": (lambda t: [t.pop(k) for k in list(t) if k.startswith("encoder_blocks.")], "at least 1 each"),
    "a million blocks": (
        lambda t: t.update({"encoder_blocks.3000000.norm1.weight": torch.zeros(64)}),
        "is number 3000000",
    ),
    "half prefixed": (lambda t: t.update({"module.z_proj.bias": torch.zeros(64)}), "do not belong"),
    "surplus": (lambda t: t.update({"lora.up": torch.zeros(3)}), "1 tensors do not belong .*'lora.up'"),
    "shape": (
        lambda t: t.update({"z_proj.bias": torch.zeros(65)}),
        r"'z_proj.bias' has shape \(65,\), .* needs \(64,\)",
    ),
    "rank": (lambda t: t.update({"class_emb.weight": torch.zeros(10)}), "expected 2 dimensions"),
    "nan": (lambda t: t.update({"z_proj.bias": torch.full((64,), float("nan"))}), "'z_proj.bias' holds NaN"),
    "inf": (lambda t: t.update({"z_proj.bias": torch.full((64,), float("inf"))}), "'z_proj.bias' holds NaN or inf"),
    "integers": (lambda t: t.update({"z_proj.bias": torch.zeros(64, dtype=torch.int64)}), "expected floating point"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_tensors_that_do_not_fit_are_named(case, weights, refusal, tmp_path):
    change, words = CHANGES[case]
    tensors = dict(weights)
    change(tensors)
    save_file(tensors, tmp_path / "m.safetensors")
    assert re.search(words, refusal(tmp_path / "m.safetensors"))


def test_a_model_of_fewer_decoder_blocks_is_read_as_a_pruned_one(weights, spec, refusal, tmp_path):
    """It may as well have lost them, which is said; where the metadata states more blocks, they are missing."""
    pruned = {name: t for name, t in weights.items() if not name.startswith("decoder_blocks.1.")}
    save_file(pruned, tmp_path / "pruned.safetensors")
    found, _ = checked_model(read_checkpoint(tmp_path / "pruned.safetensors"), heads=4)
    assert found.depths == (2, 1, 3) and "2 encoder and 1 decoder blocks" in found.assumptions[-1]
    save_file(pruned, tmp_path / "cut.safetensors", metadata=spec_metadata(spec, "ema"))
    assert "the file is incomplete" in refusal(tmp_path / "cut.safetensors")


def test_another_architecture_is_refused(golden_weights, good, refusal, tmp_path):
    save_file(golden_weights("vae_tiny_fp16"), tmp_path / "vae.safetensors")
    assert "not a model: expected a checkpoint of MAR, LightGen or Harmon" in refusal(tmp_path / "vae.safetensors")
    assert "found KL VAE, which goes where a VAE does" in refusal(tmp_path / "vae.safetensors")
    with pytest.raises(GtRError, match="not a KL VAE .*found a MAR model; choose the model's VAE"):
        checked_vae(read_checkpoint(good))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "found 1 tensors ('a')" in refusal(tmp_path / "other.safetensors")


def test_prefixes_of_distributed_training_are_dropped(weights, tmp_path):
    save_file({f"module.module.{name}": t for name, t in weights.items()}, tmp_path / "m.safetensors")
    assert set(read_checkpoint(tmp_path / "m.safetensors").tensors) == set(weights)


@pytest.mark.parametrize(
    "content, words",
    [
        ([1, 2], "holds a list"),
        ({}, "holds a dict"),
        ({"a": 1}, "'a' is a int"),
        ({"model_ema": None}, "NoneType"),
        (torch.zeros(2), "holds a Tensor"),
    ],
)
def test_pickles_of_something_else_are_refused(content, words, refusal, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    assert words in refusal(tmp_path / "x.pth")


def test_a_width_without_known_heads_asks_for_them(weights, refusal, tmp_path):
    save_file(weights, tmp_path / "m.safetensors")
    assert "--heads N" in refusal(tmp_path / "m.safetensors", heads=None)


def test_a_missing_file_is_named(refusal, tmp_path):
    assert "no file at" in refusal(tmp_path / "nowhere.safetensors")
