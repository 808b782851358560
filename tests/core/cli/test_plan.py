"""``schedule`` and ``flops``: reports and figures of plans."""

from __future__ import annotations

import numpy as np
import pytest
from gtr_pack.gtr_core.plans.presets import PRESETS
from gtr_tests.extras import needs
from PIL import Image


@pytest.mark.parametrize("name", PRESETS)
def test_a_schedule_is_reported_and_drawn(run, name, tmp_path):
    facts = run("schedule", "--preset", name, "--grid", "12x16", "--figure", tmp_path / "p.png")
    assert facts["grid"] == [12, 16] and set(facts["steps"][0]) == {"stage", "tokens", "diffusion_steps", "positions"}
    assert sorted(p for step in facts["steps"] for p in step["positions"]) == list(range(192))
    assert np.array(Image.open(tmp_path / "p.png")).std() > 10


def test_a_changed_preset_is_named_so(run):
    """Options that change a preset do so, and its name says so."""
    facts = run("flops", "--model", "mar-b", "--preset", "gtr-paper", "--scope", "full")
    assert facts["preset"] == "gtr-paper (changed)" and facts["speedup"] < 2.6
    assert run("schedule", "--preset", "gtr-full", "--diffusion", "9,5,5")["steps"][-1]["diffusion_steps"] == 5


@needs("matplotlib", "eval")
@pytest.mark.parametrize("suffix, start", [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_plan_is_drawn_as_shapes(suffix, start, run, tmp_path):
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        run("schedule", "--grid", "4x6", "--steps", "2,1,1", "--figure", file)
    first, second = (file.read_bytes() for file in files)
    assert first.startswith(start) and first == second


def test_options_beside_a_preset_change_that_preset(run):
    """Nothing of the preset but what the options say."""
    plain = run("schedule", "--preset", "gtr-best-6x")
    changed = run("schedule", "--preset", "gtr-best-6x", "--steps", "4,1,1,1,1")
    assert changed["preset"] == "gtr-best-6x (changed)" and len(changed["steps"]) == 8
    for facts in (plain, changed):
        assert [facts["steps"][k]["diffusion_steps"] for k in (0, -1)] == [75, 15]
    rates = run("schedule", "--preset", "gtr-full", "--rates", "8,8,64")
    assert rates["preset"] == "gtr-full (changed)" and [s["tokens"] for s in rates["steps"]][-2:] == [64, 64]


def test_without_a_preset_the_default_one_is_changed(run):
    assert run("schedule")["preset"] == "gtr-paper"
    custom, paper = run("schedule", "--steps", "24,6,2"), run("schedule", "--preset", "gtr-paper")
    assert custom.pop("preset") == "custom" and paper.pop("preset") == "gtr-paper" and custom == paper
    assert run("schedule", "--order", "raster", "--rates", "4")["preset"] == "custom"
    raster = run("schedule", "--order", "raster", "--steps", "12")
    assert raster["preset"] == "raster-12" and raster["steps"][0]["diffusion_steps"] == 100


def test_any_number_of_steps_is_a_preset(run):
    assert run("schedule", "--preset", "step-16") == run("schedule", "--order", "random", "--steps", "16") | {
        "preset": "step-16"
    }
    facts = run("schedule", "--preset", "step-256")
    assert facts["preset"] == "step-256" and len(facts["steps"]) == 256
    assert run("schedule", "--preset", "halton-9")["steps"][0]["positions"]


def test_a_preset_with_other_steps_per_stage_has_them_in_its_name(run):
    facts = run("schedule", "--preset", "gtr-full:15-3")
    assert facts["preset"] == "gtr-full:15-3" and [step["stage"] for step in facts["steps"]] == [1] * 15 + [2] * 3
    changed = run("schedule", "--preset", "gtr-full", "--steps", "15,3")
    assert changed["steps"] == facts["steps"]


def test_lazymar_by_name_has_its_cache(run):
    for name, without in (("lazymar", "origin"), ("lazymar:32", "step-32")):
        by_name, by_option = (
            run("flops", "--model", "mar-b", *options)["tflops"]
            for options in (["--preset", name], ["--preset", without, "--cache", "lazymar"])
        )
        assert by_name == by_option


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
        (["schedule", "--figure", "none/p.png"], "no folder none: make it, or choose another"),
        (["schedule", "--figure", "p.jpg"], "expected a name that ends in .png, .svg or .pdf"),
        (["schedule", "--preset", "fast"], "unknown preset 'fast': expected one of origin"),
        (["schedule", "--preset", "gtr-extrem"], "preset 'gtr-extrem': the nearest is gtr-extreme; expected one of"),
        (["schedule", "--preset", "stride-9"], "lazymar, step-N, halton-N"),
        (["schedule", "--preset", "step-0"], "expected 1 to 65536"),
        (["schedule", "--preset", "gtr-full:"], "such as gtr-full:15-3"),
        (["schedule", "--preset", "gtr-full:7-x"], "such as gtr-full:15-3"),
        (["schedule", "--preset", "gtr-paper", "--order", "raster"], "order 'raster' has one stage, found 3"),
        (["schedule", "--steps", "8,3,2", "--rates", "2,8,64"], "give exactly one of the two"),
        (["schedule", "--grid", "16"], "expected rows x columns"),
        (["schedule", "--grid", "0x4"], "expected at least 1 x 1"),
        (["schedule", "--rates", "2.67,10.67,200"], "rate 200 of stage 3 does not fit"),
        (["schedule", "--steps", "1,1,1,1", "--grid", "1x8", "--partition", "quincunx"], "empty subset"),
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
