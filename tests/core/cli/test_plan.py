"""``schedule`` and ``flops``: reports and figures of plans."""

from __future__ import annotations

import numpy as np
import pytest
from gtr_pack.gtr_core.plans.presets import PRESETS
from PIL import Image


@pytest.mark.parametrize("name", PRESETS)
def test_a_schedule_is_reported_and_drawn(run, name, tmp_path):
    facts = run("schedule", "--preset", name, "--grid", "12x16", "--png", tmp_path / "p.png")
    assert facts["grid"] == [12, 16] and set(facts["steps"][0]) == {"stage", "tokens", "diffusion_steps", "positions"}
    assert sorted(p for step in facts["steps"] for p in step["positions"]) == list(range(192))
    assert np.array(Image.open(tmp_path / "p.png")).std() > 10


def test_a_changed_preset_is_named_so(run):
    """Options that change a preset do so, and its name says so."""
    facts = run("flops", "--model", "mar-b", "--preset", "gtr-paper", "--scope", "full")
    assert facts["preset"] == "gtr-paper (changed)" and facts["speedup"] < 2.6
    assert run("schedule", "--preset", "gtr-full", "--diffusion", "9,5,5")["steps"][-1]["diffusion_steps"] == 5


def test_seeds_wrap_around(run):
    assert run("schedule", "--seed", "-1") == run("schedule", "--seed", 2**64 - 1)


def test_flops_have_the_keys_that_scripts_read(run):
    facts = run("flops", "--model", "mar-h", "--preset", "gtr-paper")
    assert set(facts) == {"model", "preset", "tflops", "origin_total", "speedup"}
    assert list(facts["tflops"]) == ["encoder", "decoder", "head", "total"]
    assert run("flops", "--model", "mar-h", "--no-cfg")["tflops"]["total"] < facts["tflops"]["total"]
    assert run("flops", "--all")["rows"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["schedule", "--png", "none/p.png"], "no folder none: make it, or choose another"),
        (["schedule", "--grid", "16"], "expected rows x columns"),
        (["schedule", "--grid", "0x4"], "expected at least 1 x 1"),
        (["schedule", "--rates", "2.67,10.67,200"], "rate 200 of stage 3 does not fit"),
        (["schedule", "--steps", "1,1,1,1", "--grid", "1x8"], "empty subset"),
        (["schedule", "--grid", "100000x100000"], "at most 256 x 256"),
        (["schedule", "--steps", "1000000000"], "expected 1 to 65536"),
        (["schedule", "--order", "random", "--steps", "3,2"], "order 'random' has one stage, found 2"),
        (["schedule", "--diffusion", "5,5"], "expected"),
        (["flops", "--model", "mar-x"], "no file at mar-x"),
        (["flops", "--fts-fraction", "0"], "above 0 and at most 1"),
    ],
)
def test_wrong_settings_end_in_one_line(arguments, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments)
    assert not list(tmp_path.iterdir())
