"""Prompts on the command line: a model that reads them as they are written, in every verb."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from gtr_pack import gtr_core as gtr
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.demo import DEMO_MAR, DEMO_VAE
from gtr_tests.evaluations import VAE
from gtr_tests.harmon import SPOKEN, seeded_harmon, write_tokenizer
from PIL import Image
from safetensors.torch import save_file

FAST = ["--steps", "2,1", "--diffusion", "4,3,3", "--fts-steps", "4", "--acceleration", "off"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("harmon")
    save_file(seeded_harmon(SPOKEN).state_dict(), folder / "spoken.safetensors", spec_metadata(SPOKEN, "model"))
    (folder / "prompts.txt").write_text("a cat\n\n two cats \n", encoding="utf-8")
    return {
        "model": folder / "spoken.safetensors",
        "tokenizer": write_tokenizer(folder),
        "list": folder / "prompts.txt",
    }


@pytest.fixture(scope="module")
def settings(files) -> list:
    return ["--model", files["model"], "--vae", VAE, "--tokenizer", files["tokenizer"]]


def pictures(facts: dict) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in facts["files"]]


def test_generate_draws_prompts_as_the_library_does(run, settings, files, tmp_path):
    prompts = ["--prompt", "a cat", "--prompt", "two cats"]
    facts = run("generate", *FAST, *settings, *prompts, "--seed", 6, "-o", tmp_path / "out.png")
    assert facts["report"].startswith("custom on spoken: 2 images") and "classes" not in facts
    model, vae = gtr.load_model(files["model"]), gtr.load_vae(VAE)
    texts = model.spec.encode_prompts(["a cat", "two cats"], gtr.load_tokenizer(files["tokenizer"]))
    schedule = gtr.Schedule("custom", "gtr", (2, 1), diffusion=(4, 3, 3), decoder_scope="stage")
    method = gtr.Method(schedule, gtr.Guidance(3.0), gtr.FTS(0.1, 4))
    images = gtr.generate(model, vae, texts=texts, method=method, seed=6)
    for ours, theirs in zip(images, pictures(facts), strict=True):
        assert ours.shape == theirs.shape == (128, 128, 3) and np.abs(ours.astype(int) - theirs).mean() < 1
    listed = run("generate", *FAST, *settings, "--prompts", files["list"], "--seed", 6, "-o", tmp_path / "list.png")
    assert all(np.array_equal(one, two) for one, two in zip(pictures(facts), pictures(listed), strict=True))
    wide = run("generate", *FAST, *settings, "--prompt", "cat", "--size", "96x160", "-o", tmp_path / "wide.png")
    assert pictures(wide)[0].shape == (160, 96, 3)


def test_generate_continues_a_given_image(run, settings, tmp_path):
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(image)
    Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 48)).save(mask)
    given = ["--prompt", "cat", "--image", image, "--mask", mask]
    assert len(run("generate", *FAST, *settings, *given, "-o", tmp_path / "out.png")["files"]) == 1


def test_generate_changes_a_picture(run, refused, settings, tmp_path):
    picture, given = tmp_path / "picture.png", []
    for colour in (20, 200):
        Image.fromarray(np.full((64, 96, 3), colour, np.uint8)).save(picture)
        edit = ["generate", *FAST, *settings, "--prompt", "a cat", "--edit", picture, "-o", tmp_path / "out.png"]
        given += pictures(run(*edit, "--size", "96x64"))
    assert given[0].shape == (64, 96, 3) and (given[0] != given[1]).any()
    assert "the picture is 96 x 64 pixels: give --size 96x64, or scale it to 128 x 128" in refused(*edit)
    line = refused("generate", *FAST, "--model", DEMO_MAR, "--vae", DEMO_VAE, "--edit", picture)
    assert "does not change pictures as a prompt says" in line


def test_generate_many_takes_prompts_in_turn(run, settings, files, tmp_path):
    many = ["--prompts", files["list"], "--images", 3, "--manifest", "jsonl", "-o", tmp_path / "many"]
    facts = run("generate-many", *FAST, *settings, *many)
    rows = [json.loads(line) for line in Path(facts["manifest"]).read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [0, 1, 0] and {row["class"] for row in rows} == {None}
    assert run("generate-many", *FAST, *settings, *many)["made"] == 0
    files["list"].with_name("other.txt").write_text("a dog\ntwo cats\n")
    many[1] = files["list"].with_name("other.txt")
    assert run("generate-many", *FAST, *settings, *many)["made"] == 3


@pytest.mark.slow
def test_info_bench_and_flops_know_it(run, files):
    facts = run("info", files["model"])
    assert (facts["family"], facts["variant"], facts["image"]) == ("Harmon", "spoken", [128, 128])
    facts = run("bench", "--model", files["model"], "--presets", "reference,step-8", "--rounds", 1)
    assert [row["ar_steps"] for row in facts["rows"]] == [32, 8]
    facts = run("flops", "--model", "harmon-1.5b", "--preset", "gtr-harmon")
    assert set(facts["tflops"]) == {"encoder", "llm", "decoder", "head", "total"} and facts["speedup"] > 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "spoken draws from prompts: give them with --prompt TEXT or --prompts FILE"),
        (["--prompt", "x" * 2000], "tokens.*at most 1024"),
        (["--prompts", "MISSING"], "--prompts .*cannot be read"),
        (["--prompts", "EMPTY"], "expected one prompt per line, found none"),
        (["--prompt", "cat", "--prompt-embeds", "x"], "nothing else"),
        (["--prompt", "cat", "--tokenizer", ""], "needs Qwen2.5's tokenizer"),
        (["--prompt", "cat", "--tokenizer", "MISSING"], "no tokenizer at"),
    ],
)
def test_wrong_prompts_end_in_one_line(arguments, words, refused, settings, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    places = {"MISSING": tmp_path / "missing", "EMPTY": tmp_path / "empty.txt"}
    given = [places.get(word, word) for word in arguments]
    line = refused("generate", *FAST, *settings, *given, "-o", tmp_path / "out.png")
    assert re.search(words, line), line


def test_a_prompt_longer_than_those_of_the_training_is_said(settings, tmp_path, capsys):
    from gtr_pack.gtr_core.cli import main

    assert main([*map(str, ["generate", *FAST, *settings, "--prompt", "x" * 200, "-o", tmp_path / "out.png"])]) == 0
    assert "spoken was trained with at most 128" in capsys.readouterr().err


def test_a_prompt_for_a_model_of_classes_is_refused(refused, tmp_path):
    line = refused("generate", *FAST, "--model", DEMO_MAR, "--vae", DEMO_VAE, "--prompt", "cat")
    assert "takes no prompt as it is written" in line
