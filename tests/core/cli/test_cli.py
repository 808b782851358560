"""The command line: reports, files and one-line errors."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.demo import CLASS_NAMES, DEMO_MAR, DEMO_VAE
from gtr_pack.gtr_core.models.labels import imagenet_names
from gtr_pack.gtr_core.models.vae import KLVAE, VAESpec
from gtr_pack.gtr_core.plans.presets import PRESETS
from gtr_tests.extras import needs
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
FAST = ["--steps", "3,2,1", "--diffusion", "6,4,4", "--fts-steps", "6"]


def run(capsys, *arguments) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments) -> str:
    assert main(list(map(str, arguments))) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "gtr_core", "schedule", "--preset", "gtr-full", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["preset"] == "gtr-full"


@pytest.mark.parametrize("name", PRESETS)
def test_schedule(name, capsys, tmp_path):
    facts = run(capsys, "schedule", "--preset", name, "--grid", "12x16", "--png", tmp_path / "p.png")
    assert facts["grid"] == [12, 16] and set(facts["steps"][0]) == {"stage", "tokens", "diffusion_steps", "positions"}
    assert sorted(p for step in facts["steps"] for p in step["positions"]) == list(range(192))
    assert read_png(tmp_path / "p.png").std() > 10


def test_a_changed_preset(capsys):
    """Options that change a preset do so, and its name says so."""
    facts = run(capsys, "flops", "--model", "mar-b", "--preset", "gtr-paper", "--scope", "full")
    assert facts["preset"] == "gtr-paper (changed)" and facts["speedup"] < 2.6
    assert run(capsys, "schedule", "--preset", "gtr-full", "--diffusion", "9,5,5")["steps"][-1]["diffusion_steps"] == 5


def test_seeds_wrap_around(capsys):
    assert run(capsys, "schedule", "--seed", "-1") == run(capsys, "schedule", "--seed", 2**64 - 1)


def test_class_names_are_unambiguous():
    assert len({name.lower() for name in imagenet_names()}) == 1000


def test_info_of_the_demo_model(capsys):
    facts = run(capsys, "info", DEMO_MAR)
    assert (facts["family"], facts["grid"], facts["weights"]) == ("MAR", [16, 16], "ema")
    assert tuple(facts["spec"]["class_names"]) == CLASS_NAMES and "warning" not in facts
    assert run(capsys, "info", DEMO_VAE)["family"] == "KL VAE"


def test_the_demo_model_is_small():
    assert DEMO_MAR.stat().st_size + DEMO_VAE.stat().st_size <= 20e6
    assert all(torch.isfinite(t).all() for path in (DEMO_MAR, DEMO_VAE) for t in load_file(path).values())


def test_generate(capsys, tmp_path):
    facts = run(capsys, "generate", *FAST, "--class", "striped disk, 3", "--seed", 5, "-o", tmp_path / "a.png")
    assert facts["report"].startswith("custom on demo: 2 images, 6 AR steps") and "the origin needs" in facts["report"]
    assert facts["classes"] == [0, 3] and [Path(f).name for f in facts["files"]] == ["a_000.png", "a_001.png"]
    pictures = [read_png(Path(f)) for f in facts["files"]]
    assert pictures[0].shape == (128, 128, 3) and min(p.std() for p in pictures) > 5
    again = run(capsys, "generate", *FAST, "--class", "3", "--seed", 6, "-o", tmp_path / "b.png")
    difference = np.abs(read_png(Path(again["files"][0])).astype(int) - pictures[1].astype(int))
    assert difference.max() <= 1


def test_every_order_runs(capsys, tmp_path):
    for order in ("raster", "subsample", "halton", "random"):
        few = ("--steps", 3, "--diffusion", "5,5,5")
        facts = run(capsys, "generate", "--order", order, *few, "-o", tmp_path / "a.png")
        assert facts["report"].startswith(f"{order}-3 on demo: 1 image, 3 AR steps")


def test_lazymar_on_the_command_line(capsys, tmp_path):
    facts = run(
        capsys,
        "generate",
        "--order",
        "random",
        "--steps",
        8,
        "--diffusion",
        "9,9,9",
        "--cache",
        "lazymar",
        "-o",
        tmp_path / "a.png",
    )
    assert "LazyMAR: 6 of 8 AR steps computed in full" in facts["report"]
    facts = run(capsys, "flops", "--model", "mar-b", "--preset", "gtr-full", "--cache", "lazymar")
    assert facts["speedup"] > run(capsys, "flops", "--model", "mar-b", "--preset", "gtr-full")["speedup"]


@needs("matplotlib", "eval")
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_bench_draws_a_chart(suffix, capsys, tmp_path):
    words = ("--model", "demo", "--presets", "gtr-extreme", "--rounds", 1, "--acceleration", "off")
    run(capsys, "bench", *words, "--png", tmp_path / f"b.{suffix}")
    assert (tmp_path / f"b.{suffix}").stat().st_size > 1000


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def generate_with(stderr: io.StringIO, *arguments) -> str:
    """What a run writes on standard error."""
    with contextlib.redirect_stderr(stderr):
        assert main(["generate", *FAST, *map(str, arguments)]) == 0
    return stderr.getvalue()


def test_a_terminal_sees_a_progress_bar_that_is_full_in_the_end(tmp_path):
    text = generate_with(Terminal(), "-o", tmp_path / "a.png")
    last = text.rpartition("\r")[2]
    assert last.startswith("stage 3/3, step 6/6 100% |") and last.endswith("\n") and text.count("\n") == 1


def test_a_log_file_and_json_see_no_progress_bar(tmp_path):
    assert generate_with(io.StringIO(), "-o", tmp_path / "a.png") == ""
    assert generate_with(Terminal(), "--json", "-o", tmp_path / "a.png") == ""


def test_a_refusal_begins_a_line_of_its_own_below_the_progress_bar(tmp_path):
    with contextlib.redirect_stderr(Terminal()) as stderr:
        assert main(["generate", *FAST, "--temperature", "nan", "-o", str(tmp_path / "a.png")]) == 2
    assert stderr.getvalue().splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_bench(capsys):
    facts = run(
        capsys,
        "bench",
        "--model",
        "demo",
        "--presets",
        "step-8,gtr-extreme,reference",
        "--rounds",
        1,
        "--dtype",
        "auto",
        "--acceleration",
        "off",
    )
    first, second, _ = facts["rows"]
    assert first["preset"] == "step-8" and first["ratio"] == 1 and second["ar_steps"] == 13
    assert all(row["seconds_range"][0] <= row["seconds"] <= row["seconds_range"][1] for row in facts["rows"])
    assert second["head_evaluations"] < first["head_evaluations"] and first["peak_bytes"] > 0
    assert first["processor_ratio"] == 1 and first["processor_seconds"] > 0


def test_generate_repeats_classes_up_to_the_batch(capsys, tmp_path):
    facts = run(capsys, "generate", *FAST, "--class", "1,2", "--batch", 3, "--cfg", 1, "-o", tmp_path / "a.png")
    assert facts["classes"] == [1, 2, 1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["generate", "--class", "10"], "class 10 is out of range: demo has classes 0 to 9"),
        (["generate", "--class", "-1"], "out of range"),
        (["generate", "--class", "zebra"], "demo has no class 'zebra'"),
        (["generate", "--class", " , "], "no class given"),
        (["generate", "--class", "1,2", "--batch", "1"], "give --batch 2"),
        (["generate", "--model", DEMO_MAR], "give the model's VAE file with --vae"),
        (["generate", "--output", "x.jpg"], "ends in .png"),
        (["generate", "--model", "nowhere.safetensors", "--vae", "x"], "no file at nowhere.safetensors"),
        (["generate", "--cfg", "nan"], "expected a finite number"),
        (["generate", "--fts-fraction", "2"], "above 0 and at most 1"),
        (["generate", "--steps", "4,x"], "not a list of numbers"),
        (["schedule", "--grid", "16"], "expected rows x columns"),
        (["schedule", "--grid", "0x4"], "expected at least 1 x 1"),
        (["schedule", "--rates", "2.67,10.67,200"], "rate 200 of stage 3 does not fit"),
        (["schedule", "--steps", "1,1,1,1", "--grid", "1x8"], "empty subset"),
        (["schedule", "--grid", "100000x100000"], "at most 256 x 256"),
        (["schedule", "--steps", "1000000000"], "expected 1 to 65536"),
        (["generate", "--class", "+-5"], "demo has no class '+-5'"),
        (["generate", "--class", "9" * 5000], "demo has no class"),
        (["generate", "--batch", "0"], "expected at least 1"),
        (["generate", "--output", "none/x.png"], "no folder none"),
        (["generate", "--device", "toaster"], "cannot be used here"),
        (["info", "x" * 5000], "no file at"),
        (["bench", "--presets", ","], "nothing to measure"),
        (["bench", "--presets", "fast"], "gtr-lightgen-fast, lazymar, reference"),
        (["bench", "--model", "lightgen", "--size", "512x500"], "multiples of 16"),
        (["search", "--against", "fast"], "unknown preset 'fast'"),
        (["flops", "--model", "mar-x"], "no file at mar-x"),
        (["info", "nowhere"], "no file at nowhere"),
    ],
)
def test_wrong_input_ends_in_one_line(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_foreign_vae_is_refused(capsys, tmp_path):
    golden = ROOT / "tests" / "golden" / "vae_tiny_fp16.safetensors"
    assert "use the model's own VAE" in refused(capsys, "generate", "--vae", golden, "-o", tmp_path / "a.png")


def test_an_unwritable_picture(capsys, tmp_path):
    assert "cannot write" in refused(capsys, "schedule", "--png", tmp_path / "none" / "p.png")


def test_generate_from_encoded_prompts(capsys, tmp_path):
    """LightGen and an SD3-like VAE, both small: text states in, pictures of any size out."""
    from gtr_tests.stand_ins import randomised, small_lightgen

    spec = VAESpec(32, (1, 1, 1, 1), 1, 16, 16, quant=False)
    model = small_lightgen()
    save_file(model.state_dict(), tmp_path / "model.safetensors", spec_metadata(model.spec, "model"))
    save_file(randomised(KLVAE(spec), 1).state_dict(), tmp_path / "vae.safetensors")
    save_file({"prompt_embeds": torch.randn(2, 128, 64)}, tmp_path / "text.safetensors")
    arguments = [
        "generate",
        *FAST,
        "--model",
        tmp_path / "model.safetensors",
        "--vae",
        tmp_path / "vae.safetensors",
        "--size",
        "96x64",
        "-o",
        tmp_path / "a.png",
    ]
    facts = run(capsys, *arguments, "--prompt-embeds", tmp_path / "text.safetensors")
    assert [read_png(Path(file)).shape for file in facts["files"]] == [(64, 96, 3)] * 2
    assert "give its encoded prompts" in refused(capsys, *arguments)
    assert "expected a tensor 'prompt_embeds'" in refused(
        capsys, *arguments, "--prompt-embeds", tmp_path / "vae.safetensors"
    )
