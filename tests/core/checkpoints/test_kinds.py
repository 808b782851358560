"""Shapes do not tell what a model's latents are: what tells is used, what is assumed is said, what is another model is
called by its name, and advice works."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model, load_vae
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, checked_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.diffusion.head import HeadSpec
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.latents import DETOK, KL, KL_NORMALISED, NAMED, LatentSpec
from gtr_pack.gtr_core.models.mar import MAR, MARSpec
from gtr_tests.models import seeded
from safetensors.torch import save_file
from torch import Tensor

FIXTURES = Path(__file__).resolve().parents[2] / "golden" / "detok_fixtures"
ASSUMED_KL, ASSUMED_DETOK = "latents assumed to be KL-16's", "latents assumed to be l-DeTok's"


def found(path: Path, heads: int = 4) -> MARSpec:
    return checked_model(read_checkpoint(path), heads=heads)[0]


def mar(values: int = 16, grid: tuple[int, int] = (8, 8)) -> dict[str, Tensor]:
    """Weights of a small MAR with so many values per token."""
    spec = MARSpec("small", grid, 32, 4, 1, 1, 3, 4, HeadSpec(values, 32, 32, 1), LatentSpec(channels=values))
    return seeded(MAR(spec)).state_dict()


def by_detok(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In the order in which l-DeTok's code builds a block."""

    def place(name: str) -> tuple[str, int]:
        block, dot, layer = name.partition("coder_blocks.0.")
        return (block, ["norm1", "norm2", "attn", "mlp"].index(layer.partition(".")[0])) if dot else ("", 0)

    return dict(sorted(tensors.items(), key=lambda item: place(item[0])))


# -- l-DeTok -----------------------------------------------------------------------------------------------------------


def test_what_detoks_own_saver_wrote_is_known(capsys):
    """The original training code's file: averaged weights, l-DeTok's latents, and both are said."""
    spec = found(FIXTURES / "detok_saver_mar.pth", heads=2)
    assert spec.latent == NAMED["detok"] and spec.assumptions[0].startswith(ASSUMED_DETOK)
    checkpoint = read_checkpoint(FIXTURES / "detok_saver_mar.pth")
    assert (checkpoint.weights, checkpoint.entry, checkpoint.traces.saver) == ("ema", "model_ema", "DeTok")


def test_the_order_of_names_tells_where_the_saver_left_nothing(tmp_path):
    """Flat and wrapped; the original code evaluates whatever such a file holds, so nothing is missed in it."""
    for name, content in (("flat", by_detok(mar())), ("model", {"model": by_detok(mar())})):
        torch.save(content, tmp_path / f"{name}.pth")
        checkpoint = read_checkpoint(tmp_path / f"{name}.pth")
        spec, _ = checked_model(checkpoint, heads=4)
        assert spec.latent.kind == DETOK and checkpoint.warning(spec) is None


def test_the_saver_tells_where_the_order_is_lost(tmp_path):
    content = {"model": dict(sorted(mar().items())), "loss_scaler": {"scale": 1.0}, "last_elapsed_time": 1.5}
    torch.save(content, tmp_path / "m.pth")
    assert found(tmp_path / "m.pth").latent.kind == DETOK


def test_a_safetensors_file_has_lost_both_and_says_what_is_assumed(tmp_path):
    save_file(by_detok(mar()), tmp_path / "m.safetensors")
    spec = found(tmp_path / "m.safetensors")
    assert spec.latent == NAMED["kl-16"] and spec.assumptions[0].startswith(ASSUMED_KL)
    assert "convert the file with --latent kl-16" in spec.assumptions[0]
    convert(tmp_path / "m.safetensors", tmp_path / "said.safetensors", heads=4, latent="kl-16")
    assert load_model(tmp_path / "said.safetensors").spec.assumptions == ()
    convert(tmp_path / "m.safetensors", tmp_path / "told.safetensors", heads=4, latent="detok")
    told = load_model(tmp_path / "told.safetensors").spec
    assert told.latent == NAMED["detok"] and told.assumptions == ()


def test_a_conversion_keeps_what_was_assumed_until_somebody_says_it(tmp_path, capsys):
    source = FIXTURES / "detok_saver_mar.pth"
    convert(source, tmp_path / "assumed.safetensors", heads=2)
    convert(source, tmp_path / "said.safetensors", heads=2, latent="detok")
    convert(tmp_path / "assumed.safetensors", tmp_path / "kl16.safetensors", latent="kl-16")
    for name, kind, warning in (("assumed", DETOK, ASSUMED_DETOK), ("said", DETOK, None), ("kl16", KL, None)):
        assert main(["info", str(tmp_path / f"{name}.safetensors"), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["latents"] == kind and facts.get("warning", "").startswith(warning or "")
        assert ("warning" in facts) == (warning is not None)


def test_the_report_of_a_run_says_what_was_assumed(tmp_path, golden_weights, capsys):
    """Of a run on the command line; ComfyUI's sampler shows the same report."""
    torch.save(by_detok(golden_weights("detok_mar_fp16")), tmp_path / "mar.pth")
    convert(tmp_path / "mar.pth", tmp_path / "mar.safetensors", heads=3)
    torch.save({"model_ema": golden_weights("detok_tokenizer_fp16")}, tmp_path / "tokenizer.pth")
    stats = FIXTURES / "stats_numpy.pkl"
    convert(tmp_path / "tokenizer.pth", tmp_path / "tokenizer.safetensors", heads=2, stats=stats)
    words = ["--model", str(tmp_path / "mar.safetensors"), "--vae", str(tmp_path / "tokenizer.safetensors")]
    words += ["--class", "3", "--preset", "step-8", "-o", str(tmp_path / "x.png"), "--json"]
    assert main(["generate", *words]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert f"note: {ASSUMED_DETOK}" in report.splitlines()[-1]
    assert main(["generate", *words, "--image", str(tmp_path / "x.png"), "--redraw", "denoise"]) == 0
    capsys.readouterr()
    assert main(["generate", *words, "--image", str(tmp_path / "x.png"), "--outpaint", "16,0,0,0"]) == 2
    assert "decoded at 128 x 128 pixels only: they cannot be extended" in capsys.readouterr().err


def test_a_tokenizers_training_checkpoint_is_read(tmp_path):
    """With the loss and the discriminator beside it."""
    checkpoint = read_checkpoint(FIXTURES / "detok_saver_tokenizer.pth")
    spec, tensors = checked_vae(checkpoint, heads=2)
    assert (checkpoint.weights, checkpoint.entry, len(tensors)) == ("ema", "model_ema", 37)
    assert (spec.variant, spec.pixels, spec.normalised) == ("detok-88", 32, False)
    with pytest.raises(GtRError, match="convert the file with --heads N"):
        load_vae(FIXTURES / "detok_saver_tokenizer.pth")


# -- KL-16 and other VAEs ----------------------------------------------------------------------------------------------


def test_what_the_original_mars_saver_wrote_is_read_as_kl16():
    spec = found(FIXTURES / "lth14_saver_mar.pth", heads=2)
    assert spec.latent == NAMED["kl-16"] and spec.assumptions[0].startswith(ASSUMED_KL)


def test_arguments_of_the_training_say_what_the_latents_are(tmp_path):
    arguments = argparse.Namespace(vae_embed_dim=16, vae_stride=16, patch_size=1, lr=1e-4)
    torch.save({"model_ema": mar(), "args": arguments}, tmp_path / "m.pth")
    assert found(tmp_path / "m.pth").assumptions == ()


def test_a_mar_on_stable_diffusions_vae_is_known_by_its_arguments(refusal, tmp_path):
    """Its tokens have 16 values as KL-16's do, of 4 channels in patches of 2 x 2."""
    arguments = argparse.Namespace(vae_embed_dim=4, vae_stride=8, patch_size=2)
    torch.save({"model_ema": mar(), "args": arguments}, tmp_path / "m.pth")
    words = refusal(tmp_path / "m.pth")
    assert "4 channels at 1/8 size in patches of 2 x 2" in words and "convert the file with --latent SCALE" in words
    convert(tmp_path / "m.pth", tmp_path / "m.safetensors", heads=4, latent="0.18215")
    latent = load_model(tmp_path / "m.safetensors").spec.latent
    assert latent == LatentSpec(channels=4, stride=8, patch=2, scale=0.18215)


def test_a_patch_contradicts_an_assumption(tmp_path):
    """Of a file that was converted on an assumption too."""
    save_file(mar(), tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "assumed.safetensors", heads=4)
    for name in ("m", "assumed"):
        with pytest.raises(GtRError, match="say that the latents are not KL-16's"):
            convert(tmp_path / f"{name}.safetensors", tmp_path / "out.safetensors", heads=4, patch=2, vae_stride=8)
    convert(tmp_path / "assumed.safetensors", tmp_path / "said.safetensors", patch=2, vae_stride=8, latent="0.5")
    convert(tmp_path / "said.safetensors", tmp_path / "again.safetensors", vae_stride=4)
    assert load_model(tmp_path / "again.safetensors").spec.latent == LatentSpec(4, stride=4, patch=2, scale=0.5)


@pytest.mark.parametrize("values", [4, 8, 32, 64])
def test_other_numbers_of_channels_ask_for_their_statistics(values, refusal, tmp_path):
    torch.save({"model_ema": mar(values)}, tmp_path / "m.pth")
    words = refusal(tmp_path / "m.pth")
    assert f"tokens have {values} values, where KL-16's have 16" in words and "--latent normalised" in words
    convert(tmp_path / "m.pth", tmp_path / "m.safetensors", heads=4, latent="normalised")
    spec = load_model(tmp_path / "m.safetensors").spec
    assert spec.latent == LatentSpec(channels=values, scale=1.0, kind=KL_NORMALISED) and spec.assumptions == ()


def test_latents_of_l_detok_have_16_channels(tmp_path):
    torch.save({"model_ema": by_detok(mar(32))}, tmp_path / "m.pth")
    with pytest.raises(GtRError, match="--latent detok: such tokens have 16 values.* these have 32"):
        convert(tmp_path / "m.pth", tmp_path / "m.safetensors", heads=4, latent="detok")


# -- Other models ------------------------------------------------------------------------------------------------------


def without_mar(prefix: str, names: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": torch.zeros(2, 2) for name in names.split()}


HIMAR = "cond_z_proj.weight cond_proj.weight encoder_task_emb.weight cond_diffloss.net.x_embedder.weight"
MAETOK = "encoder.latent_tokens encoder.model.norm.weight quant_conv.weight post_quant_conv.weight"
STRANGERS = {
    "Hi-MAR": (lambda: mar() | without_mar("", HIMAR), "it is a Hi-MAR model, which draws in two scales"),
    "MAETok": (lambda: without_mar("", f"{MAETOK} decoder.latent_pos_embed"), "it is a MAETok or SoftVQ tokenizer"),
    "MAR on MAETok": (
        lambda: mar(32, (8, 16)),
        "128 tokens of 32 values: a MAR on the latents of MAETok, which lie in one row",
    ),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_another_model_is_called_by_its_name(case, refusal, tmp_path):
    """Behind a trainer's wrappers too."""
    make, words = STRANGERS[case]
    tensors = make()
    save_file(tensors, tmp_path / "flat.safetensors")
    torch.save({"model": tensors, "model_ema": {f"module.{n}": t for n, t in tensors.items()}}, tmp_path / "both.pth")
    for name in ("flat.safetensors", "both.pth"):
        text = refusal(tmp_path / name)
        assert words in text and text.startswith(name)
        assert "--" not in text, "advice that cannot help"


def test_a_grid_of_128_tokens_can_be_told(tmp_path):
    torch.save(mar(32, (8, 16)), tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "m.safetensors", heads=4, grid=(8, 16), latent="0.5")
    assert load_model(tmp_path / "m.safetensors").spec.grid == (8, 16)


def test_old_metadata_without_a_kind_is_a_kl_vaes(tmp_path):
    weights = mar(4)
    spec = MARSpec("small", (8, 8), 32, 4, 1, 1, 3, 4, HeadSpec(4, 32, 32, 1), LatentSpec(channels=4, scale=0.7))
    metadata = spec_metadata(spec, "ema")
    fields = json.loads(metadata["gtr.spec"])
    for name in ("kind", "assumed"):
        del fields["latent"][name]
    save_file(weights, tmp_path / "m.safetensors", metadata | {"gtr.spec": json.dumps(fields)})
    assert load_model(tmp_path / "m.safetensors").spec == spec
    fields["latent"]["kind"] = "SD"
    save_file(weights, tmp_path / "n.safetensors", metadata | {"gtr.spec": json.dumps(fields)})
    with pytest.raises(GtRError, match="latents of an unknown kind, 'SD'"):
        load_model(tmp_path / "n.safetensors")
