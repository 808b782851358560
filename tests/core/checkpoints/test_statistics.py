"""Latent statistics are read as data, whatever library wrote their numbers, and folded by `convert --stats`."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_vae
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.checkpoints.statistics import read_statistics
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.vae import KLVAE, VAESpec
from gtr_tests.models import seeded
from gtr_tests.recorded import error
from safetensors.torch import save_file

FIXTURES = Path(__file__).resolve().parents[2] / "golden" / "detok_fixtures"
KEY = "detok-BB-gamm3.0-m0.7"
WRITTEN = ["stats_torch_cpu.pkl", "stats_torch_cuda.pkl", "stats_numpy.pkl"]


class Attack:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit",)


def pickled(path: Path, content: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def table(mean: object, std: object, key: str = KEY) -> dict:
    return {key: {"single": (0.0, 1.0), "channel": (mean, std)}}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_original_writers_files_are_read(name, golden):
    """On a machine without CUDA, pickle itself cannot read the second one."""
    g = golden("detok_tokenizer")
    found = read_statistics(FIXTURES / name, 16, KEY)
    assert torch.equal(found.mean.float(), g["stats_mean"][:16])
    assert torch.equal(found.std.float(), g["stats_std"][:16])


MEAN, STD = np.linspace(-1, 1, 4, dtype=np.float32), np.full(4, 0.5, np.float32)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "make",
    [np.asarray, torch.from_numpy, np.ndarray.tolist, lambda a: a.astype(np.float64)],
    ids="np pt list f8".split(),
)
def test_every_way_to_write_them_is_read(make, protocol, tmp_path):
    path = pickled(tmp_path / "stats.pkl", table(make(MEAN), make(STD)), protocol)
    found = read_statistics(path, 4, "x")
    assert torch.equal(found.mean.float(), torch.from_numpy(MEAN)) and (found.std == 0.5).all()


def test_files_of_torch_save_and_safetensors_are_read(tmp_path):
    tensors = {"mean": torch.from_numpy(MEAN).view(1, 4, 1, 1), "std": torch.from_numpy(STD).view(1, 4, 1, 1)}
    torch.save(tensors, tmp_path / "new.pt")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "plain.safetensors")
    for name in ("new.pt", "old.pt", "plain.safetensors"):
        assert torch.equal(read_statistics(tmp_path / name, 4, "x").mean.float(), torch.from_numpy(MEAN))


def test_of_several_the_one_with_the_tokenizers_name_is_taken(tmp_path):
    content = table(MEAN, STD, "detok-BB") | table(MEAN + 1, STD, "detok-BB-gamm") | table(MEAN, STD, "vitok")
    path = pickled(tmp_path / "stats.pkl", content)
    for stem, key, added in (("detok-BB-tuned", None, 0), ("detok-BB-gamm-x", None, 1), ("a", "detok-BB-gamm", 1)):
        found = read_statistics(path, 4, stem, key)
        assert torch.equal(found.mean.float(), torch.from_numpy(MEAN + added))
    for key in (None, "b"):
        with pytest.raises(GtRError, match="statistics of 'detok-BB', .*: convert the tokenizer with --stats-key"):
            read_statistics(path, 4, "a", key)


@pytest.mark.parametrize(
    "content, words",
    [
        (table(MEAN, STD[:3]), "a std of 3 channels, the latents have 4"),
        (table(MEAN, STD * 0), "a deviation that is not above 0"),
        (table(MEAN * np.nan, STD), "infinite values"),
        (table(MEAN.astype(np.int32), STD), "not little-endian floating point"),
        (table(MEAN.astype(">f4"), STD), "not little-endian floating point"),
        (table(1.0, 2.0), "something else than numbers"),
        (table(Attack(), STD), "asks to run .*exec and was not executed"),
        ({KEY: {"channel": MEAN}}, "no mean and deviation per channel"),
        ({KEY: 1}, "it names no statistics"),
        ([1, 2], "it holds no table"),
        ("text", "it holds no table"),
    ],
)
def test_anything_else_ends_in_one_line(content, words, tmp_path):
    path = pickled(tmp_path / "stats.pkl", content)
    with pytest.raises(GtRError, match=f"^latent statistics: .*{words}") as caught:
        read_statistics(path, 4, "x")
    assert "\n" not in str(caught.value)


def test_damaged_large_and_missing_files_are_refused(tmp_path):
    whole = (FIXTURES / "stats_torch_cpu.pkl").read_bytes()
    for cut in range(20, len(whole), 97):
        (tmp_path / "cut.pkl").write_bytes(whole[:cut])
        with pytest.raises(GtRError, match="^latent statistics: "):
            read_statistics(tmp_path / "cut.pkl", 16, "x")
    for place in range(0, len(whole), 13):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        (tmp_path / "changed.pkl").write_bytes(changed)
        try:
            read_statistics(tmp_path / "changed.pkl", 16, "x")
        except GtRError as refusal:
            assert "latent statistics: " in str(refusal)
    (tmp_path / "large.pkl").write_bytes(whole + b"\0" * (1 << 20))
    with pytest.raises(GtRError, match="latent statistics: large.pkl has .* bytes, expected at most"):
        read_statistics(tmp_path / "large.pkl", 16, "x")
    with pytest.raises(GtRError, match="latent statistics: no file at"):
        read_statistics(tmp_path / "none.pkl", 16, "x")


# -- convert -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def raw(golden_weights, tmp_path) -> Path:
    path = tmp_path / f"{KEY}.pth"
    torch.save({"model_ema": golden_weights("detok_tokenizer_fp16")}, path)
    return path


@pytest.mark.parametrize("name", WRITTEN)
def test_a_converted_tokenizer_is_the_original_with_its_normalisation(name, raw, golden, tmp_path, capsys):
    g, target = golden("detok_tokenizer"), tmp_path / "tokenizer.safetensors"
    words = [str(raw), str(target), "--stats", str(FIXTURES / name), "--heads", "2", "--dtype", "float16", "--json"]
    assert main(["convert", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["family"], facts["latents"], "warning" in facts) == ("l-DeTok tokenizer", "l-DeTok", False)
    tokenizer = load_vae(target)
    assert tokenizer.spec.normalised and tokenizer.spec.heads == (2, 2)
    assert error(tokenizer.encode(g["image"]), g["latent"]) < 1e-5
    assert error(tokenizer.decode(g["latent_in"]), g["decoded_raw"]) < 1e-5
    dtypes = {name: t.dtype for name, t in read_checkpoint(target).tensors.items()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        "encoder.latent_head.weight",
        "encoder.latent_head.bias",
        "decoder.decoder_embed.weight",
        "decoder.decoder_embed.bias",
    }
    with pytest.raises(GtRError, match="holds statistics already: leave --stats out"):
        convert(target, tmp_path / "twice.safetensors", stats=FIXTURES / name)


def test_a_tokenizer_without_statistics_is_shown_and_not_used(raw, tmp_path, capsys):
    target = tmp_path / "raw.safetensors"
    convert(raw, target, heads=2)
    assert main(["info", str(target), "--json"]) == 0
    assert "convert it with --stats stats.pkl" in json.loads(capsys.readouterr().out)["warning"]
    with pytest.raises(GtRError, match="raw.safetensors: an l-DeTok tokenizer without the statistics of its latents"):
        load_vae(target)


def test_statistics_beside_a_tokenizer_are_used(raw, golden, tmp_path):
    """As both files are published."""
    g = golden("detok_tokenizer")
    convert(raw, tmp_path / f"{KEY}-tuned.safetensors", heads=2)
    (tmp_path / "stats.pkl").write_bytes((FIXTURES / WRITTEN[1]).read_bytes())
    assert error(load_vae(tmp_path / f"{KEY}-tuned.safetensors").encode(g["image"]), g["latent"]) < 1e-5
    pickled(tmp_path / "stats.pkl", table(MEAN, STD, "a") | table(MEAN, STD, "b"))
    with pytest.raises(GtRError, match="it holds the statistics of 'a', 'b'"):
        load_vae(tmp_path / f"{KEY}-tuned.safetensors")


def test_va_vae_takes_its_published_statistics(tmp_path):
    """A KL VAE of 32 channels; the numbers are those of its own file, in the form of that file."""
    published = json.loads((FIXTURES.parent / "vavae_stats.json").read_text())
    mean, std = (torch.tensor(published[name]).view(1, 32, 1, 1) for name in ("mean", "std"))
    torch.save({"mean": mean, "std": std}, tmp_path / "latents_stats.pt")
    vae = seeded(KLVAE(VAESpec(32, (1, 1), 1, 32, 32)))
    beside = {"loss.logvar": torch.zeros(1), "foundation_model.a": torch.zeros(2), "linear_proj.weight": torch.zeros(2)}
    torch.save({"state_dict": vae.state_dict() | beside}, tmp_path / "vavae.pt")
    convert(tmp_path / "vavae.pt", tmp_path / "vavae.safetensors", stats=tmp_path / "latents_stats.pt")
    folded = load_vae(tmp_path / "vavae.safetensors")
    assert (folded.spec.normalised, folded.spec.latents) == (True, "KL VAE, normalised")
    latent = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded.decode(latent), vae.decode(latent * std + mean), rtol=1e-3, atol=1e-3)


def test_settings_without_use_are_refused(raw, good, tmp_path):
    target = tmp_path / "out.safetensors"
    for source, told, words in (
        (good, {"stats": FIXTURES / WRITTEN[0]}, "is a model, and statistics belong into its VAE"),
        (raw, {"heads": 2, "stats_key": KEY}, "give the file with --stats"),
        (raw, {"heads": 2, "latent": "detok"}, "is a VAE, which has no latent: leave the option out"),
        (raw, {"heads": 2, "stats": FIXTURES / "lth14_saver_mar.pth"}, "it names no statistics"),
    ):
        with pytest.raises(GtRError, match=words):
            convert(source, target, **told)
        assert not target.exists()


def test_the_statistics_themselves_are_no_model(refusal):
    for name in WRITTEN:
        assert "holds latent statistics, not weights (give it to convert with --stats)" in refusal(FIXTURES / name)


def test_a_tokenizers_metadata_is_checked(golden_weights, tmp_path):
    weights = golden_weights("detok_tokenizer_fp16")
    for fields, words in (
        ('{"heads": [2, 2], "normalised": 1}', "1 is neither true nor false"),
        ('{"heads": 2}', "cannot be read"),
        ('{"heads": [2, 2], "groups": 32}', "does not fit a VAE of the kind l-DeTok tokenizer"),
        ('{"heads": [2, 5]}', "5 attention heads do not fit the width 48"),
    ):
        save_file(weights, tmp_path / "x.safetensors", {"gtr.spec": fields})
        with pytest.raises(GtRError, match=words):
            checked_vae(read_checkpoint(tmp_path / "x.safetensors"))
