"""Conversion: every value arrives, the source stays, and nothing is written unless all of it is good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core import files
from gtr_pack.gtr_core.checkpoints import convert as module
from gtr_pack.gtr_core.checkpoints import load_model
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, checked_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.demo import DEMO_MAR, DEMO_VAE
from gtr_pack.gtr_core.diffusion.head import HeadSpec
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.latents import LatentSpec
from gtr_pack.gtr_core.models.mar import MAR, MARSpec
from gtr_tests.stand_ins import randomised
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
# 4 x 8 tokens of 2 x 2 cells with 4 channels: nothing of that can be read off its shapes.
ODD = MARSpec(
    name="mar-64x1+1",
    grid=(4, 8),
    dim=64,
    heads=4,
    encoder_depth=1,
    decoder_depth=1,
    classes=3,
    buffer=8,
    head=HeadSpec(16, 64, 32, 1),
    latent=LatentSpec(channels=4, patch=2, stride=4),
    class_names=("ant", "bee", "cat"),
)


def test_conversion_keeps_the_head_in_float32_and_the_source(weights, training_checkpoint, tmp_path):
    source, target = tmp_path / "checkpoint-last.pth", tmp_path / "mar.safetensors"
    torch.save(training_checkpoint, source)
    before = source.read_bytes()
    result = convert(source, target, dtype="bfloat16", heads=4)
    assert result.weights == "ema"
    spec, tensors = checked_model(read_checkpoint(target))
    assert result.warning(spec) is None
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
        (good, "out.safetensors", dict(heads=0), "0 attention heads do not divide"),
        (large, "out.safetensors", dict(heads=4, dtype="float16"), "weights beyond float16"),
        (tmp_path / "none.pth", "good.safetensors", dict(overwrite=True), "no file at"),
        (good, "none/out.safetensors", {}, "no folder"),
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


@pytest.fixture
def odd(tmp_path) -> Path:
    """A model whose grid, patch and class names its file does not tell."""
    save_file(randomised(MAR(ODD), 1).state_dict(), tmp_path / "odd.safetensors")
    return tmp_path / "odd.safetensors"


def test_what_shapes_do_not_tell_is_told(odd, tmp_path):
    target = tmp_path / "out.safetensors"
    convert(odd, target, heads=4, grid=(4, 8), patch=2, vae_stride=4, latent="0.2325", class_names=ODD.class_names)
    assert load_model(target).spec == ODD


def test_the_command_line_tells_it_too(odd, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\ufeffant\r\n bee \n\ncat\n", encoding="utf-8")
    target = tmp_path / "out.safetensors"
    told = ["--heads", "4", "--grid", "4x8", "--patch", "2", "--vae-stride", "4", "--latent", "0.2325,0"]
    told += ["--class-names", str(names)]
    assert main(["convert", str(odd), str(target), *told, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["grid"], facts["classes"], facts["spec"]["latent"]["patch"]) == ([4, 8], 3, 2)
    assert load_model(target).spec == ODD
    assert main(["generate", "--model", str(target), "--vae", str(DEMO_VAE), "--class", "dog"]) == 2
    assert "such as 'ant', 'bee', 'cat'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "told, words",
    [
        ({}, "32 tokens are not a square grid: convert the file with --grid ROWSxCOLUMNS"),
        ({"grid": (4, 7)}, "4 x 7 needs 28 positions, found 32: convert the file with the right --grid"),
        (
            {"grid": (4, 8), "latent": "0.5", "patch": 3},
            "tokens have 16 values, which patches of 3 x 3 do not divide: correct --patch",
        ),
        ({"grid": (4, 8), "latent": "0.5", "patch": 65}, "--patch: a number above 64"),
        (
            {"grid": (4, 8), "latent": "0.5", "patch": 2, "vae_stride": -8},
            "--vae-stride: -8 is not a positive whole number",
        ),
        ({"grid": (4, 8), "patch": 2}, "say that the latents are not KL-16's: say what they are with --latent"),
        (
            {"grid": (4, 8), "latent": "kl-16", "patch": 2},
            "--latent kl-16: such tokens have 16 values, one latent cell",
        ),
        (
            {"grid": (4, 8), "latent": "kl16"},
            "--latent 'kl16': expected kl-16, detok, normalised, SCALE or SCALE,SHIFT",
        ),
        ({"grid": (4, 8), "latent": "0"}, "--latent '0': expected"),
        ({"grid": (4, 8), "latent": "1,2,3"}, "--latent '1,2,3': expected"),
        ({"grid": (4, 8), "latent": "nan"}, "--latent 'nan': expected"),
        ({"grid": (4, 8), "stats": "s.pkl"}, "is a model, and statistics belong into its VAE or tokenizer"),
        ({"grid": (4, 8), "latent": "0.5", "patch": 0}, "--patch: 0 is not a positive whole number"),
        ({"grid": (0, 8)}, "--grid: 0 is not a positive whole number"),
        ({"grid": (4, 8), "class_names": ["a"]}, "1 class names for 3 classes: convert the file with --class-names"),
        ({"grid": (4, 8), "class_names": ["a", "b", "c\nd"]}, "--class-names: a name is not one printable line"),
    ],
)
def test_what_does_not_fit_is_refused_with_advice_that_works(told, words, odd, tmp_path):
    with pytest.raises(GtRError, match=words):
        convert(odd, tmp_path / "out.safetensors", heads=4, **told)
    assert os.listdir(tmp_path) == [odd.name]


def test_what_a_file_says_may_be_corrected(odd, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert(odd, first, heads=4, grid=(8, 4))
    assert load_model(first).spec.grid == (8, 4)
    convert(first, second, grid=(4, 8), patch=2, vae_stride=4, latent="0.2325", class_names=ODD.class_names)
    assert load_model(second).spec == ODD


def test_what_a_kind_has_not_is_refused(golden_weights, tmp_path):
    with pytest.raises(GtRError, match="is a VAE, which has no heads: leave the option out"):
        convert(DEMO_VAE, tmp_path / "out.safetensors", heads=4)
    save_file(golden_weights("lightgen_tiny_fp16"), tmp_path / "lightgen.safetensors")
    with pytest.raises(GtRError, match="LightGen models have nothing that --class-names sets: leave it out"):
        convert(tmp_path / "lightgen.safetensors", tmp_path / "out.safetensors", heads=4, class_names=["a"])


@pytest.mark.parametrize(
    "options, words",
    [
        (["--grid", "4"], "--grid '4': expected ROWSxCOLUMNS"),
        (["--grid", "axb"], "expected ROWSxCOLUMNS"),
        (["--grid", "\u0664x8"], "expected ROWSxCOLUMNS"),
        (["--grid", "9" * 5000 + "x8"], "a number above 256"),
        (["--class-names", "none.txt"], "cannot be read"),
        (["--class-names", "latin.txt"], "expected a text in UTF-8"),
        (["--class-names", "empty.txt"], "one name per class and line, found none"),
        (["--class-names", "twice.txt"], "found 'bee' twice"),
        (["--weights", "best"], "weights 'best': expected ema, model"),
    ],
)
def test_options_that_nobody_can_use_end_in_one_line(options, words, odd, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in {"latin.txt": b"\xe9t\xe9", "empty.txt": b"\n \n", "twice.txt": b"bee\nant\nBee"}.items():
        (tmp_path / name).write_bytes(data)
    before = sorted(os.listdir(tmp_path))
    assert main(["convert", odd.name, "out.safetensors", "--heads", "4", *options]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and sorted(os.listdir(tmp_path)) == before


@pytest.mark.slow
def test_equal_conversions_are_equal_files(training_checkpoint, tmp_path):
    torch.save(training_checkpoint, tmp_path / "a.pth")
    shuffled = dict(reversed(training_checkpoint["model_ema"].items()))
    torch.save({"model_ema": shuffled}, tmp_path / "b.pth")
    found = set()
    for seed, source in enumerate(("a.pth", "b.pth")):
        target = tmp_path / f"{seed}.safetensors"
        words = ["convert", str(tmp_path / source), str(target), "--heads", "4", "--dtype", "bfloat16"]
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-m", "gtr_core", *words], cwd=ROOT, env=environment, check=True)
        found.add(target.read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"])
def test_written_tensors_are_those_of_the_format(dtype, tmp_path):
    """What is written is what the format's own library reads."""
    tensors = {
        "a": torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)),
        "b": torch.tensor(1).to(getattr(torch, dtype)),
        "empty": torch.zeros(0, 3).to(getattr(torch, dtype)),
        "turned \u00e9": torch.arange(6).reshape(2, 3).t().to(getattr(torch, dtype)),
    }
    files.write_tensors(tmp_path / "x.safetensors", tensors, {"z": "1", "a": "\u00e9"})
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, t in tensors.items():
        assert found[name].dtype == t.dtype and torch.equal(found[name], t)


@pytest.mark.parametrize(
    "name",
    [
        "none/out.safetensors",
        "file/out.safetensors",
        "out.ckpt",
        "x" * 300 + ".safetensors",
        "c\udcff.safetensors",
        "there.safetensors",
        ".safetensors",
    ],
)
def test_the_place_is_checked_before_anything_is_read(name, good, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "there.safetensors").touch()
    monkeypatch.setattr(module, "read_checkpoint", lambda *_, **__: pytest.fail("the source was read"))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(GtRError, match="expected|no folder|cannot write|UTF-8|exists|is a folder"):
        convert(good, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == before


def test_weights_beyond_a_dtype_are_named_when_they_are_loaded(weights, spec, tmp_path):
    large = weights | {"z_proj.bias": torch.full((64,), 1e6)}
    torch.save({"model_ema": large}, tmp_path / "large.pth")
    convert(tmp_path / "large.pth", tmp_path / "large.safetensors", heads=4, dtype="bfloat16")
    load_model(tmp_path / "large.safetensors", dtype="bfloat16")
    with pytest.raises(GtRError, match=r"weights beyond float16 \('z_proj.bias' reaches 9.99e\+05, .*use bfloat16 or"):
        load_model(tmp_path / "large.safetensors", dtype="float16")


def test_weights_whose_sum_is_beyond_float32_are_finite(weights, tmp_path):
    torch.save({"model_ema": weights | {"z_proj.bias": torch.full((64,), 3e38)}}, tmp_path / "large.pth")
    checked_model(read_checkpoint(tmp_path / "large.pth"), heads=4)


def test_info_and_convert_say_which_entry_was_taken(training_checkpoint, tmp_path, capsys):
    torch.save(training_checkpoint, tmp_path / "x.pth")
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors"), "--heads", "4"]) == 0
    assert "weights: ema (entry 'model_ema')" in capsys.readouterr().out
    demo = {f"net.{name}": t for name, t in load_file(DEMO_MAR).items()}
    with safe_open(DEMO_MAR, "pt") as file:
        metadata = file.metadata()
    save_file(demo, tmp_path / "wrapped.safetensors", metadata)
    assert main(["info", str(tmp_path / "wrapped.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["family"], facts["entry"], facts["weights"]) == ("MAR", "net", "ema") and "entries" not in facts
    both = {f"model.{name}": t for name, t in load_file(DEMO_MAR).items()} | {
        f"model_ema.{name}": t for name, t in load_file(DEMO_MAR).items()
    }
    save_file(both, tmp_path / "both.safetensors", metadata)
    assert main(["info", str(tmp_path / "both.safetensors")]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["entry", "model_ema"] in lines and ["entries", "['model', 'model_ema']"] in lines
    assert ["weights", "ema"] in lines, "what docs/evaluate.md tells to look for"
    assert main(["info", str(DEMO_MAR), "--json"]) == 0
    assert "entry" not in json.loads(capsys.readouterr().out)
