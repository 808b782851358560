"""``generate-many``: the same files whatever the number of workers, and a manifest of all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.jobs.generate_many import read_manifest
from gtr_tests.extras import needs, why_missing
from safetensors.torch import load_file

QUICK = ["--steps", "2,1,1", "--diffusion", "2,2,2", "--fts", "off", "--device", "cpu", "--manifest", "jsonl"]
SIX = ["--images", "6", "--shard", "2", "--batch", "2", "--classes", "3,1,2,0", "--seed", "7"]
needs_ray = needs("ray", "scale")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def single(model_options, elsewhere, tmp_path_factory) -> dict[str, bytes]:
    """Every file that one worker leaves."""
    folder = tmp_path_factory.mktemp("single")
    done = elsewhere("generate-many", *model_options, *QUICK, *SIX, "--workers", 1, "-o", folder)
    assert "6 of 6 images" in done.stderr
    return contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("engine, workers", [("local", 4), pytest.param("ray", 2, marks=needs_ray)])
def test_the_number_of_workers_changes_no_byte(engine, workers, model_options, single, elsewhere, tmp_path):
    who = ["--engine", engine, "--workers", workers]
    done = elsewhere("generate-many", *model_options, *QUICK, *SIX, *who, "-o", tmp_path)
    assert "6 of 6 images" in done.stderr
    assert contents(tmp_path) == single


@pytest.mark.slow
def test_the_manifest_has_a_row_per_image(single):
    rows = [json.loads(line) for line in single["manifest.jsonl"].splitlines()]
    assert [row["index"] for row in rows] == list(range(6)) and [row["seed"] for row in rows] == list(range(7, 13))
    assert [row["class"] for row in rows] == [3, 1, 2, 0, 3, 1] and {row["preset"] for row in rows} == {"custom"}
    assert len({row["sha256"] for row in rows}) == 6 and {row["file"] for row in rows} <= set(single)


@pytest.mark.slow
def test_only_what_is_missing_is_made(model_options, run, tmp_path):
    """After a stop, a damaged image, a deleted one, a damaged record, other settings, and more images."""
    arguments = ["generate-many", *model_options, *QUICK, *SIX, "-o", tmp_path]
    assert run(*arguments)["made"] == 6
    before = contents(tmp_path)
    assert run(*arguments)["made"] == 0
    (tmp_path / "000001.png").write_bytes(before["000001.png"][:-20])
    assert run(*arguments)["made"] == 2
    (tmp_path / "000002.png").unlink()
    (tmp_path / ".records" / "000004.json").write_bytes(b"[1, {")
    assert run(*arguments)["made"] == 4 and contents(tmp_path) == before
    assert run(*arguments, "--images", 7)["made"] == 1
    assert run(*arguments, "--images", 2, "--cfg", 2)["made"] == 2


@pytest.mark.slow
def test_a_terminal_sees_how_far_a_piece_is(model_options, on_terminal, tmp_path):
    seen = on_terminal("generate-many", *model_options, *QUICK, "--images", 4, "--batch", 2, "-o", tmp_path / "images")
    assert seen[0] == "reading mar.safetensors 0%"
    begun, ended = seen.index("0 of 4 images 0%"), seen.index("4 of 4 images 100%")
    assert ended - begun > 5


def test_shards_of_safetensors_hold_images_and_latents(model_options, run, tmp_path):
    facts = run("generate-many", *model_options, *QUICK, *SIX, "--images", 3, "--format", "safetensors", "-o", tmp_path)
    shards = [load_file(tmp_path / name) for name in ("000000.safetensors", "000002.safetensors")]
    assert [len(shard["images"]) for shard in shards] == [2, 1] and facts["made"] == 3
    assert shards[0]["images"].dtype == torch.uint8 and shards[0]["latents"].shape[0] == 2
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row"]) for row in rows] == [
        ("000000.safetensors", 0),
        ("000000.safetensors", 1),
        ("000002.safetensors", 0),
    ]


def test_a_parquet_manifest_has_the_same_rows(model_options, run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason=why_missing("pyarrow", "scale"))
    run("generate-many", *model_options, *QUICK, "--images", 2, "--batch", 2, "-o", tmp_path)
    run("generate-many", *model_options, *QUICK, "--images", 2, "--batch", 2, "-o", tmp_path, "--manifest", "parquet")
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "manifest.parquet").to_pylist() == rows


def test_the_newer_manifest_is_read(model_options, run, tmp_path):
    pytest.importorskip("pyarrow", reason=why_missing("pyarrow", "scale"))
    for count, kind in ((2, "jsonl"), (4, "parquet")):
        manifest = ["--manifest", kind, "--images", count, "--batch", 2, "-o", tmp_path]
        run("generate-many", *model_options, *QUICK, *manifest)
    assert len(read_manifest(tmp_path)) == 4


def test_prompts_take_turns(run, refused, text_options, prompt_file, tmp_path):
    arguments = ["generate-many", *text_options, "--size", "32x64", *QUICK]
    run(*arguments, "--prompt-embeds", prompt_file, "--images", 3, "-o", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [0, 1, 0] and {row["class"] for row in rows} == {None}
    assert "give its encoded prompts" in refused(*arguments, "-o", tmp_path / "none")


@pytest.mark.parametrize(
    "change, words",
    [
        (["--images", "0"], "expected at least 1 image"),
        (["--batch", "0"], "a batch from 1"),
        (["--workers", "0"], "expected 1 to"),
        (["--classes", "zebra"], "has no class 'zebra'"),
        (["--prompt-embeds", "x"], "leave out --prompt-embeds"),
        (["--vae", ""], "no VAE"),
        (["--engine", "ray", "--threads", "0"], "1 to 1024 threads"),
        (["--size", "256x256"], "use the model's own size (leave out --size)"),
        (["--seed", "0", "--temperature", "nan"], "temperature nan: expected 0 or more"),
        (["--device", "toaster"], "cannot be used here"),
    ],
)
def test_wrong_options_end_in_one_line(change, words, model_options, refused, tmp_path):
    assert words in refused("generate-many", *model_options, *QUICK, "-o", tmp_path / "out", *change)
    assert not list(tmp_path.iterdir())


def test_parquet_needs_pyarrow(model_options, refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    arguments = ["generate-many", *model_options, *QUICK, "--manifest", "parquet", "-o", tmp_path / "out"]
    assert "--manifest jsonl" in refused(*arguments) and not list(tmp_path.iterdir())
