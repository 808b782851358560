"""Model files: published forms are read, everything else ends in one clear line and nothing is executed."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import checkpoint as module
from gtr_pack.gtr_core.checkpoints.checkpoint import load_model, load_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.checkpoints.metadata import SPEC_KEY, read_spec, spec_metadata
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.latents import LatentSpec
from gtr_pack.gtr_core.models.mar import infer_mar_spec
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def weights(golden_weights):
    return golden_weights("mar_tiny_fp16")


@pytest.fixture(scope="module")
def spec(weights):
    return infer_mar_spec({name: tuple(t.shape) for name, t in weights.items()}, heads=4)


@pytest.fixture
def good(weights, spec, tmp_path) -> Path:
    save_file(weights, tmp_path / "good.safetensors", metadata=spec_metadata(spec, "ema"))
    return tmp_path / "good.safetensors"


def one_line(caught) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def refusal(path, **settings) -> str:
    with pytest.raises(GtRError) as caught:
        load_model(read_checkpoint(path, **settings), heads=4)
    return one_line(caught)


def test_safetensors_round_trip(good, weights, spec):
    found, tensors = load_model(read_checkpoint(good))
    assert found == spec
    assert all(torch.equal(tensors[name], t) for name, t in weights.items())


def test_metadata_carries_what_shapes_do_not_give(spec, weights):
    from dataclasses import replace

    rich = replace(
        spec,
        name="x",
        latent=LatentSpec(16, 4, 1, 0.5, 0.1, ((0.1, 0.2, 0.3),) * 17),
        diffusion=DiffusionSpec(beta_cap=0.2, max_timestep=950),
        class_names=tuple("abcdefghij"),
    )
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    assert read_spec(shapes, spec_metadata(rich, "ema")) == rich


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read|unknown fields"),
        ('{"surprise": 1}', "unknown fields"),
        ('{"heads": 5}', "do not divide"),
        ('{"heads": -4}', "positive whole number"),
        ('{"heads": 4, "grid": [4, 4]}', "needs 16 positions"),
        ('{"heads": 4, "latent": {"channels": 16, "stride": 4, "patch": 1, "scale": 0, "shift": 0}}', "scale is 0"),
        ('{"heads": 4, "diffusion": {"base_steps": 1000, "beta_cap": 2}}', "out of range"),
        ('{"heads": 4, "norm_eps": NaN}', "finite"),
        ('{"heads": 4, "norm_eps": -1}', "not above 0"),
        ('{"heads": 4, "norm_eps": 1' + "0" * 400 + "}", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"heads": 4, "name": "a\\nb"}', "one printable line"),
        ('{"heads": 4, "class_names": ["a"]}', "1 class names for 10"),
        ('{"heads": 4, "depths": [2, 3, 3]}', "blocks are missing"),
        ('{"heads": 4, "text_length": 7}', "does not fit"),
    ],
)
def test_wrong_metadata(text, words, weights, tmp_path):
    save_file(weights, tmp_path / "m.safetensors", metadata={SPEC_KEY: text})
    with pytest.raises(GtRError, match=words) as caught:
        load_model(read_checkpoint(tmp_path / "m.safetensors"))
    one_line(caught)


def training_checkpoint(weights) -> dict:
    """What the published training code saves."""
    raw = {f"module.{name}": t + 1 for name, t in weights.items()}
    return {"model": raw, "model_ema": weights, "epoch": 7, "args": argparse.Namespace(model="mar", lr=1e-4)}


@pytest.mark.parametrize("legacy", [False, True])
def test_original_checkpoints_load_their_ema_weights(weights, tmp_path, legacy):
    path = tmp_path / "checkpoint-last.pth"
    torch.save(training_checkpoint(weights), path, _use_new_zipfile_serialization=not legacy)
    ema, raw = read_checkpoint(path), read_checkpoint(path, weights="model")
    assert (ema.weights, raw.weights) == ("ema", "model")
    assert ema.warning is None and "holds non-EMA" in raw.warning
    for name, t in weights.items():
        assert torch.equal(ema.tensors[name], t) and torch.equal(raw.tensors[name], t + 1)


def test_a_file_without_ema_says_so(weights, tmp_path):
    torch.save({"model": weights}, tmp_path / "m.pth")
    assert "holds non-EMA" in read_checkpoint(tmp_path / "m.pth").warning
    save_file(weights, tmp_path / "flat.safetensors")
    assert "may hold non-EMA" in read_checkpoint(tmp_path / "flat.safetensors").warning


def test_a_published_file_known_to_be_non_ema_is_named(weights, tmp_path, monkeypatch):
    path = tmp_path / "mar-base.safetensors"
    save_file(weights, path)
    monkeypatch.setattr(module, "KNOWN_NOT_EMA", {path.stat().st_size: "mar-base.safetensors"})
    assert read_checkpoint(path).weights == "model"


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pt", ".bin"])
def test_foreign_objects_are_never_executed(suffix, weights, tmp_path):
    target = tmp_path / "executed"
    for name, save in (("zip", torch.save), ("raw", lambda obj, path: path.write_bytes(pickle.dumps(obj)))):
        path = tmp_path / f"{name}{suffix}"
        save({"model": weights, "args": Payload(target)} if name == "zip" else {"args": Payload(target)}, path)
        assert "not executed" in refusal(path) or "not a readable" in refusal(path)
    assert not target.exists()


def test_renaming_a_pickle_to_safetensors_does_not_help(tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"args": Payload(tmp_path / "executed")}, path)
    assert "not a readable safetensors file" in refusal(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
def test_truncated_files(kind, keep, weights, tmp_path):
    path = tmp_path / f"cut{kind}"
    save_file(weights, path) if kind == ".safetensors" else torch.save({"model": weights}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 or keep == 0 else keep * len(data))])
    assert "damaged or truncated" in refusal(path) or "not executed" in refusal(path)


def test_a_header_that_promises_terabytes(tmp_path):
    path = tmp_path / "huge.safetensors"
    header = b'{"class_emb.weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "damaged or truncated" in refusal(path)


def changed(weights, change) -> dict:
    tensors = dict(weights)
    change(tensors)
    return tensors


CHANGES = {
    "missing": (
        lambda t: t.pop("decoder_norm.bias"),
        "1 of the 100 tensors of .* are missing \\(first: 'decoder_norm.bias'",
    ),
    "missing block": (lambda t: [t.pop(k) for k in list(t) if k.startswith("encoder_blocks.0.mlp")], "4 of the 100"),
    "last decoder block": (
        lambda t: [t.pop(k) for k in list(t) if k.startswith("decoder_blocks.1.")],
        "2 encoder and 1 decoder blocks",
    ),
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
def test_tensors_that_do_not_fit(case, weights, tmp_path):
    change, words = CHANGES[case]
    save_file(changed(weights, change), tmp_path / "m.safetensors")
    with pytest.raises(GtRError, match=words) as caught:
        load_model(read_checkpoint(tmp_path / "m.safetensors"), heads=4)
    one_line(caught)


def test_another_architecture(golden_weights, good, tmp_path):
    save_file(golden_weights("vae_tiny_fp16"), tmp_path / "vae.safetensors")
    assert "not a MAR checkpoint" in refusal(tmp_path / "vae.safetensors")
    with pytest.raises(GtRError, match="not a KL VAE"):
        load_vae(read_checkpoint(good))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "found 1 tensors ('a')" in refusal(tmp_path / "other.safetensors")


def test_lost_last_blocks_are_noticed_by_the_metadata(weights, spec, tmp_path):
    """Such a file still looks like a model, of fewer blocks."""
    for prefix in ("diffloss.net.res_blocks.2.", "encoder_blocks.1."):
        kept = {name: t for name, t in weights.items() if not name.startswith(prefix)}
        save_file(kept, tmp_path / "m.safetensors", metadata=spec_metadata(spec, "ema"))
        assert "blocks are missing" in refusal(tmp_path / "m.safetensors")


def test_prefixes_of_distributed_training_are_dropped(weights, tmp_path):
    save_file({f"module.module.{name}": t for name, t in weights.items()}, tmp_path / "m.safetensors")
    assert set(read_checkpoint(tmp_path / "m.safetensors").tensors) == set(weights)


@pytest.mark.parametrize("odd", [torch.zeros(64, device="meta"), torch.zeros(64).to_sparse()], ids=["meta", "sparse"])
def test_weights_that_are_not_plain(odd, weights, tmp_path):
    torch.save({**weights, "z_proj.bias": odd}, tmp_path / "m.pth")
    assert "was not executed (it wants torch._utils._rebuild_" in refusal(tmp_path / "m.pth")


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
def test_pickles_of_something_else(content, words, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    assert words in refusal(tmp_path / "x.pth")


def test_a_width_without_known_heads(weights, tmp_path):
    save_file(weights, tmp_path / "m.safetensors")
    with pytest.raises(GtRError, match="--heads N"):
        load_model(read_checkpoint(tmp_path / "m.safetensors"))


def test_a_missing_file(tmp_path):
    assert "no file at" in refusal(tmp_path / "nowhere.safetensors")


def test_convert(weights, tmp_path):
    source, target = tmp_path / "checkpoint-last.pth", tmp_path / "mar.safetensors"
    torch.save(training_checkpoint(weights), source)
    before = source.read_bytes()
    result = convert(source, target, dtype="bfloat16", heads=4)
    assert result.weights == "ema" and result.warning is None
    spec, tensors = load_model(read_checkpoint(target))
    assert spec.heads == 4
    for name, t in tensors.items():
        head = name.startswith("diffloss.")
        assert t.dtype == (torch.float32 if head else torch.bfloat16)
        assert torch.equal(t, weights[name].to(t.dtype))
    assert source.read_bytes() == before and sorted(os.listdir(tmp_path)) == [source.name, target.name]
    assert target.stat().st_mode == source.stat().st_mode


def test_convert_writes_nothing_when_something_is_wrong(weights, good, tmp_path):
    broken = tmp_path / "broken.pth"
    torch.save({"model_ema": changed(weights, CHANGES["nan"][0])}, broken)
    large = tmp_path / "large.pth"
    torch.save({"model_ema": changed(weights, lambda t: t.update({"z_proj.bias": torch.full((64,), 1e6)}))}, large)
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


def test_convert_does_not_overwrite_unasked(good, tmp_path):
    convert(good, tmp_path / "a.safetensors")
    with pytest.raises(GtRError, match="--overwrite"):
        convert(good, tmp_path / "a.safetensors")
    convert(good, tmp_path / "a.safetensors", overwrite=True)


def test_convert_vae(golden_weights, tmp_path):
    weights = golden_weights("vae_tiny_fp16")
    torch.save({"model": weights}, tmp_path / "kl16.ckpt")
    convert(tmp_path / "kl16.ckpt", tmp_path / "kl16.safetensors")
    _, tensors = load_vae(read_checkpoint(tmp_path / "kl16.safetensors"))
    assert all(torch.equal(tensors[name], t) for name, t in weights.items())
