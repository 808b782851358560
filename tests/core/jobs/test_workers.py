"""Many workers: the same files whatever their number, nothing twice, nothing lost when one dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.jobs.workers import Engine, run_tasks
from gtr_tests.extras import child_environment, needs
from gtr_tests.stand_ins import randomised, small_lightgen
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
VAE = ROOT / "tests" / "golden" / "vae_tiny_fp16.safetensors"
QUICK = ["--steps", "2,1,1", "--diffusion", "2,2,2", "--fts", "off", "--device", "cpu", "--manifest", "jsonl"]
SIX = ["--images", "6", "--shard", "2", "--batch", "2", "--classes", "3,1,2,0", "--seed", "7"]
needs_ray = needs("ray", "scale")
# The workers have to find the library as the program that starts them did: not by its folder, nor by PYTHONPATH.
GENERATE = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from gtr_core.cli import main; sys.exit(main())"
# Workers are other processes, that import what they do from a file: squares, written beside and renamed. The first to
# try task 2 is killed, task 3 kills everyone if asked to, task 4 cannot be done, the first to try task 5 hangs.
SQUARES = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from gtr_core.errors import GtRError
from gtr_core.files import replace_file
from gtr_core.jobs.workers import Engine, run_tasks

def make(folder, device):
    return partial(square, folder)

def square(folder, task):
    if task == 2 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 3 and (folder / "cursed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 4:
        raise GtRError("four is not for squares")
    if task == 5 and not (folder / "hung").exists():
        (folder / "hung").touch()
        time.sleep(600)
    replace_file(folder / f"{task}.txt", lambda beside: beside.write_text(str(task ** 2)))
    return task ** 2
"""
DRIVE = """
import sys
from functools import partial
from pathlib import Path
from gtr_core.errors import GtRError
from gtr_core.jobs.workers import Engine, run_tasks
import squares
if __name__ == "__main__":
    lines = []
    for tasks, cursed in (([0, 1, 2, 3], False), ([0, 4], False), ([1, 3], True), ([6, 7, 8, 0, 1, 5], False)):
        seen = []
        (Path("out") / "cursed").touch() if cursed else None
        try:
            results = run_tasks(Engine(sys.argv[1], 2), partial(squares.make, Path("out").resolve()), tasks,
                                lambda index, result: seen.append(index))
            lines.append(f"{results} {sorted(seen)}")
        except GtRError as error:
            lines.append(str(error))
    Path("lines.txt").write_text("\\n".join(lines))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a Unix signal")
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=needs_ray)])
def test_a_killed_worker_and_a_slow_one(engine: str, tmp_path: Path) -> None:
    """Their tasks are done by another, once; bad input and a task that kills everyone end in one line."""
    (tmp_path / "squares.py").write_text(SQUARES)
    (tmp_path / "drive.py").write_text(DRIVE)
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "drive.py", engine],
        cwd=tmp_path,
        env={**child_environment(tmp_path, ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert len(lines) == 4, lines
    assert lines[0] == "[0, 1, 4, 9] [0, 1, 2, 3]" and (tmp_path / "out" / "killed").exists()
    assert lines[1] == "four is not for squares" and "3 workers died at the same task" in lines[2]
    assert lines[3] == "[36, 49, 64, 0, 1, 25] [0, 1, 2, 3, 4, 5]" and (tmp_path / "out" / "hung").exists()
    assert {path.name for path in (tmp_path / "out").glob("*")} == {
        *(f"{task}.txt" for task in (0, 1, 2, 3, 5, 6, 7, 8)),
        "cursed",
        "killed",
        "hung",
    }


def test_engines_that_cannot_be(monkeypatch) -> None:
    for settings in ({"name": "slurm"}, {"workers": 0}, {"threads": 0}, {"workers": 10**6}):
        with pytest.raises(GtRError, match="expected"):
            Engine(**settings)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GtRError, match="pip install ray, or use --engine local"):
        run_tasks(Engine("ray"), lambda device: None, [1])


@pytest.fixture(scope="module")
def model(tiny_mar, tmp_path_factory) -> list[str]:
    file = tmp_path_factory.mktemp("model") / "mar.safetensors"
    save_file(tiny_mar.state_dict(), file, spec_metadata(tiny_mar.spec, "ema"))
    return ["--model", str(file), "--vae", str(VAE)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(capsys, *arguments) -> dict:
    """The verb in this process; its answer."""
    assert main(["generate-many", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def make_elsewhere(folder: Path, *arguments) -> None:
    """The verb in a process of its own, started in an empty folder; its files go to the folder's ``out``."""
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, "generate-many", *map(str, arguments), "-o", "out"],
        cwd=folder,
        env={**child_environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "6 of 6 pictures" in done.stderr, done.stderr[-2000:]


@pytest.fixture(scope="module")
def single(model, tmp_path_factory) -> dict[str, bytes]:
    """Every file that one worker leaves."""
    folder = tmp_path_factory.mktemp("single")
    make_elsewhere(folder, *model, *QUICK, *SIX, "--workers", 1)
    return contents(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine, workers",
    [("local", 2), ("local", 4), *(pytest.param("ray", count, marks=needs_ray) for count in (1, 2, 4))],
)
def test_the_number_of_workers_changes_no_byte(engine, workers, model, single, tmp_path):
    make_elsewhere(tmp_path, *model, *QUICK, *SIX, "--engine", engine, "--workers", workers)
    assert contents(tmp_path / "out") == single


@pytest.mark.slow
def test_the_manifest(single):
    rows = [json.loads(line) for line in single["manifest.jsonl"].splitlines()]
    assert [row["index"] for row in rows] == list(range(6)) and [row["seed"] for row in rows] == list(range(7, 13))
    assert [row["class"] for row in rows] == [3, 1, 2, 0, 3, 1] and {row["preset"] for row in rows} == {"custom"}
    assert len({row["sha256"] for row in rows}) == 6 and {row["file"] for row in rows} <= set(single)


def test_only_what_is_missing_is_made(model, capsys, tmp_path):
    """After a stop, a damaged picture, a deleted one, a damaged record, other settings, and more pictures."""
    arguments = [*model, *QUICK, *SIX, "-o", tmp_path]
    assert make(capsys, *arguments)["made"] == 6
    before = contents(tmp_path)
    assert make(capsys, *arguments)["made"] == 0
    (tmp_path / "000001.png").write_bytes(before["000001.png"][:-20])
    assert make(capsys, *arguments)["made"] == 2
    (tmp_path / "000002.png").unlink()
    (tmp_path / ".records" / "000004.json").write_bytes(b"[1, {")
    assert make(capsys, *arguments)["made"] == 4 and contents(tmp_path) == before
    assert make(capsys, *arguments, "--images", 7)["made"] == 1
    assert make(capsys, *arguments, "--images", 2, "--cfg", 2)["made"] == 2


def test_shards_of_safetensors(model, capsys, tmp_path):
    facts = make(capsys, *model, *QUICK, *SIX, "--images", 3, "--format", "safetensors", "-o", tmp_path)
    shards = [load_file(tmp_path / name) for name in ("000000.safetensors", "000002.safetensors")]
    assert [len(shard["pictures"]) for shard in shards] == [2, 1] and facts["made"] == 3
    assert shards[0]["pictures"].dtype == torch.uint8 and shards[0]["latents"].shape[0] == 2
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row"]) for row in rows] == [
        ("000000.safetensors", 0),
        ("000000.safetensors", 1),
        ("000002.safetensors", 0),
    ]


@needs("pyarrow", "scale")
def test_a_parquet_manifest(model, capsys, tmp_path):
    from pyarrow import parquet

    make(capsys, *model, *QUICK, "--images", 2, "--batch", 2, "-o", tmp_path)
    make(capsys, *model, *QUICK, "--images", 2, "--batch", 2, "-o", tmp_path, "--manifest", "parquet")
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert parquet.read_table(tmp_path / "manifest.parquet").to_pylist() == rows


def test_prompts_take_turns(capsys, tmp_path):
    from gtr_pack.gtr_core.models.vae import KLVAE, VAESpec

    text = small_lightgen()
    save_file(text.state_dict(), tmp_path / "model.safetensors", spec_metadata(text.spec, "model"))
    vae = randomised(KLVAE(VAESpec(32, (1, 1, 1, 1), 1, 16, 16, quant=False)), 1)
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    save_file({"prompt_embeds": torch.randn(2, 128, 64)}, tmp_path / "text.safetensors")
    files = ["--model", tmp_path / "model.safetensors", "--vae", tmp_path / "vae.safetensors", "--size", "32x64"]
    make(
        capsys, *files, *QUICK, "--prompt-embeds", tmp_path / "text.safetensors", "--images", 3, "-o", tmp_path / "out"
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [0, 1, 0] and {row["class"] for row in rows} == {None}
    assert main(["generate-many", *map(str, files), *QUICK, "-o", str(tmp_path / "none")]) == 2
    assert "give its encoded prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        (["--images", "0"], "expected at least 1 picture"),
        (["--batch", "0"], "a batch from 1"),
        (["--workers", "0"], "expected 1 to"),
        (["--classes", "zebra"], "has no class 'zebra'"),
        (["--prompt-embeds", "x"], "leave out --prompt-embeds"),
        (["--vae", ""], "no VAE"),
    ],
)
def test_wrong_options_end_in_one_line(change, words, model, capsys, tmp_path):
    assert main(["generate-many", *model, *QUICK, "-o", str(tmp_path / "out"), *change]) == 2
    text = capsys.readouterr().err
    assert words in text and text.startswith("error: ") and text.count("\n") == 1 and not list(tmp_path.iterdir())


def test_parquet_needs_pyarrow(model, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["generate-many", *model, *QUICK, "--manifest", "parquet", "-o", str(tmp_path / "out")]) == 2
    assert "--manifest jsonl" in capsys.readouterr().err and not list(tmp_path.iterdir())
