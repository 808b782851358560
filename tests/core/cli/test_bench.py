"""``bench``: what was measured, and the figure of it."""

from __future__ import annotations

import numpy as np
import pytest
from gtr_tests.extras import needs
from PIL import Image


@needs("matplotlib", "eval")
@pytest.mark.slow
def test_bench_compares_presets_with_the_first(run, tmp_path):
    presets = ["--presets", "step-8,gtr-extreme,reference", "--rounds", 1]
    how = ["--dtype", "auto", "--acceleration", "off"]
    facts = run("bench", "--figure", tmp_path / "b.png", "--model", "demo", *presets, *how)
    first, second, _ = facts["rows"]
    assert first["preset"] == "step-8" and first["ratio"] == 1 and second["ar_steps"] == 13
    assert all(row["seconds_range"][0] <= row["seconds"] <= row["seconds_range"][1] for row in facts["rows"])
    assert np.array(Image.open(tmp_path / "b.png")).std() > 10
    assert second["head_evaluations"] < first["head_evaluations"] and first["peak_bytes"] > 0
    assert first["processor_ratio"] == 1 and first["processor_seconds"] > 0


@pytest.mark.slow
@needs("matplotlib", "eval")
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_bench_draws_a_chart(suffix, run, tmp_path):
    words = ("--model", "demo", "--presets", "gtr-extreme", "--rounds", 1, "--acceleration", "off")
    run("bench", *words, "--figure", tmp_path / f"b.{suffix}")
    assert (tmp_path / f"b.{suffix}").stat().st_size > 1000


@pytest.mark.slow
def test_a_preset_can_have_a_dtype_of_its_own(run):
    facts = run("bench", "--model", "demo", "--presets", "gtr-extreme,gtr-extreme@bfloat16", "--rounds", 1)
    assert [row["dtype"] for row in facts["rows"]] == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    "change, words",
    [
        (["--presets", ","], "nothing to measure"),
        (["--presets", "fast"], "gtr-unipic-fast, lazymar, reference"),
        (["--presets", "origin@float8"], "'origin@float8': expected one of float32, float16, bfloat16"),
        (["--rounds", "0"], "nothing to measure"),
        (["--batch", "0"], "nothing to measure"),
        (["--batch", "5000"], "a batch of 1 to 4096"),
        (["--model", "lightgen", "--size", "512x500"], "multiples of 16"),
        (["--model", "nowhere"], "no file at nowhere"),
        (["--cfg", "inf"], "guidance scale inf: expected"),
        (["--figure", "none/b.png"], "no folder none"),
        (["--device", "toaster"], "cannot be used here"),
    ],
)
def test_wrong_options_end_in_one_line(change, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("bench", *change)
    assert not list(tmp_path.iterdir())
