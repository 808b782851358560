"""``info`` and ``convert``."""

from __future__ import annotations

import pytest
from gtr_pack.gtr_core.checkpoints.checkpoint import read_checkpoint
from gtr_pack.gtr_core.demo import CLASS_NAMES, DEMO_JUDGE, DEMO_MAR, DEMO_VAE


def test_info_describes_the_demo_model(run):
    facts = run("info", DEMO_MAR)
    assert (facts["family"], facts["grid"], facts["weights"]) == ("MAR", [16, 16], "ema")
    assert tuple(facts["spec"]["class_names"]) == CLASS_NAMES and "warning" not in facts
    assert run("info", DEMO_VAE)["family"] == "KL VAE"


def test_info_describes_a_model_that_draws_from_text(run, text_options):
    facts = run("info", text_options[1])
    assert (facts["family"], facts["variant"], facts["weights"]) == ("LightGen", "small", "model")
    assert "classes" not in facts and "warning" not in facts


def test_convert_reports_what_it_wrote(run, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    facts = run("convert", DEMO_MAR, target, "--dtype", "bfloat16")
    assert facts["dtypes"] == ["bfloat16", "float32"] and facts == run("info", target)
    assert set(read_checkpoint(target).tensors) == set(read_checkpoint(DEMO_MAR).tensors)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["info", "nowhere"], "no file at nowhere"),
        (["info", "x" * 5000], "no file at"),
        (["info", DEMO_JUDGE], "not a model: expected a checkpoint of MAR, LightGen or Harmon"),
        (["convert", "nowhere", "out.safetensors"], "no file at nowhere"),
        (["convert", DEMO_MAR, "out.pth"], "expected a name that ends in .safetensors"),
        (["convert", DEMO_MAR, "none/out.safetensors"], "no folder"),
        (["convert", DEMO_MAR, DEMO_MAR], "exists: choose another name or give --overwrite"),
        (["convert", DEMO_MAR, DEMO_MAR, "--overwrite"], "exists: choose another name"),
        (["convert", DEMO_MAR, "out.safetensors", "--heads", "-4"], "do not divide"),
        (["convert", DEMO_MAR, "out.safetensors", "--heads", "7"], "do not divide"),
    ],
)
def test_wrong_files_end_in_one_line(arguments, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments)
    assert not list(tmp_path.iterdir())
