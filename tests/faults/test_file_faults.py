"""Processes killed while they write, full disks, folders that cannot be written: no half file under a file's name."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.demo import DEMO_JUDGE, DEMO_MAR, DEMO_REFERENCE, DEMO_VAE
from gtr_pack.gtr_core.diffusion.head import HeadSpec
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.mar import MAR
from gtr_tests.stand_ins import randomised
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
# A command line that tells where it is and then stands still, to be killed there.
STOPPED = """
import io, os, sys, time
from gtr_core import cli, files
def stand(*_):
    print("here", flush=True)
    time.sleep(600)
def half(file, tensors, metadata, on_written):
    whole = io.BytesIO()
    write(whole, tensors, metadata, on_written)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    stand()
write = files._write_tensors
if sys.argv[1] == "half":
    files._write_tensors = half
else:
    os.replace = stand
sys.exit(cli.main(sys.argv[2:]))
"""
# A command line that may write so many bytes into a file, as on a full disk.
FULL = """
import resource, sys
from gtr_core.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""
# An evaluation that stands still when half of its second result is written.
HALF_EVALUATED = """
import os, sys, time
from gtr_core.cli import main
targets = []
def replace(source, target):
    targets.append(target)
    if len(targets) == 2:
        os.truncate(source, os.path.getsize(source) // 2)
        print("here", flush=True)
        time.sleep(600)
    rename(source, target)
rename, os.replace = os.replace, replace
sys.exit(main(sys.argv[1:]))
"""
EVALUATION = ["--presets", "gtr-extreme", "--images", "4", "--seeds", "2", "--batch", "4", "--device", "cpu", "--json"]
FAST = ["generate", "--steps", "1,1,1", "--diffusion", "2,2,2", "--fts-steps", "2", "--json"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("where", ["half", "renaming"])
def test_a_conversion_that_is_killed_leaves_no_half_file(where: str, tmp_path: Path) -> None:
    """The input is untouched, the output is not there; what is left beside it goes with the next conversion, but not
    while its process lives."""
    before, target = digest(DEMO_MAR), tmp_path / "out.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, where, "convert", str(DEMO_MAR), str(target)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "here\n"
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".out.safetensors.") and left.suffix == ".part"
        aged = left.stat().st_mtime - 60
        os.utime(left, (aged, aged))
        convert(DEMO_MAR, target)
        assert sorted(tmp_path.iterdir()) == sorted([left, target])
        target.unlink()
    finally:
        process.kill()
        process.communicate()
    assert digest(DEMO_MAR) == before and not target.exists()
    assert list(tmp_path.iterdir()) == [left]
    strangers = [tmp_path / name for name in (".out.safetensors.part", ".other.safetensors.1-2.part", "out.part")]
    for stranger in strangers:
        stranger.touch()
    convert(DEMO_MAR, target)
    assert checked_model(read_checkpoint(target))[0] == checked_model(read_checkpoint(DEMO_MAR))[0]
    assert sorted(tmp_path.iterdir()) == sorted([*strangers, target])


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The verb with a small random model that fits the demo's VAE and judge."""
    demo = checked_model(read_checkpoint(DEMO_MAR))[0]
    spec = replace(
        demo,
        name="small",
        dim=32,
        heads=2,
        encoder_depth=1,
        decoder_depth=1,
        buffer=4,
        head=HeadSpec(demo.head.channels, 32, 32, 1),
    )
    file = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_file(randomised(MAR(spec), 1).state_dict(), file, spec_metadata(spec, "model"))
    return [
        "eval",
        "--model",
        str(file),
        "--vae",
        str(DEMO_VAE),
        "--extractor",
        str(DEMO_JUDGE),
        "--reference",
        str(DEMO_REFERENCE),
        *EVALUATION,
        "--work",
    ]


def evaluated(arguments: list[str], work: Path, capsys: pytest.CaptureFixture) -> tuple[list, dict[str, bytes], int]:
    """The figures of an evaluation, its stored results, and how many of them were made."""
    capsys.readouterr()
    assert main([*arguments, str(work)]) == 0
    said = capsys.readouterr()
    return json.loads(said.out)["rows"], results(work), said.err.count("\n")


def results(work: Path) -> dict[str, bytes]:
    """Every file of a result in the work folder, and each can be read."""
    found = sorted(work.glob("*.safetensors"))
    assert all(load_file(path) for path in found)
    return {path.name: path.read_bytes() for path in found}


@pytest.mark.parametrize("program", [["-m", "gtr_core"], ["-c", HALF_EVALUATED]], ids=["computing", "writing"])
def test_an_evaluation_that_is_killed_goes_on(
    program: list[str], evaluation: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What was stored is whole and is not made again; the rest follows, and all is as without the kill."""
    work = tmp_path / "work"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, *program, *evaluation, str(work)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr.readline().startswith("1 of 2 pieces (gtr-extreme, seed 0")
        assert "-m" in program or process.stdout.readline() == "here\n"
    finally:
        process.kill()
        process.communicate()
    stored, half = results(work), list(work.glob("*.part"))
    assert len(stored) == 1 and len(half) == ("-c" in program)
    (kept,) = (work / name for name in stored)
    made_at = kept.stat().st_mtime_ns
    for part in half:
        os.utime(part, (0, 0))
    rows, files, made = evaluated(evaluation, work, capsys)
    assert made == 1 and kept.stat().st_mtime_ns == made_at and not list(work.glob("*.part"))
    assert (rows, files, 2) == evaluated(evaluation, tmp_path / "undisturbed", capsys)


@pytest.mark.skipif(os.name == "nt", reason="limits of a process's file size are a Unix feature")
@pytest.mark.parametrize("verb", ["convert", "generate", "schedule"])
def test_a_full_disk_ends_in_one_line_and_no_file(verb: str, tmp_path: Path) -> None:
    """One line, no file and nothing beside it; a file of that name from before is as it was."""
    arguments = {
        "convert": ["convert", str(DEMO_MAR), "out.safetensors", "--overwrite"],
        "generate": [*FAST, "-o", "out.png"],
        "schedule": ["schedule", "--figure", "out.png"],
    }[verb]
    old = tmp_path / ("out.safetensors" if verb == "convert" else "out.png")
    old.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, "300", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [old.name] and old.read_bytes() == b"old"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As root nothing is read-only but what the system makes: /proc then."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")
    if not folder.is_dir():
        pytest.skip("this user may write everywhere")
    with pytest.raises(GtRError, match="cannot write"):
        convert(DEMO_MAR, folder / "out.safetensors")
    for arguments in ([*FAST, "-o", str(folder / "a.png")], ["schedule", "--figure", str(folder / "a.png")]):
        assert main(arguments) == 2
        text = capsys.readouterr().err
        assert "cannot write" in text and text.count("\n") == 1
    assert not (folder / "a.png").exists()


def test_no_folder_at_all_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for target in (
        tmp_path / "none" / "x.safetensors",
        tmp_path / "file" / "x.safetensors",
        tmp_path / ("x" * 300 + ".safetensors"),
    ):
        with pytest.raises(GtRError, match="cannot write|no folder"):
            convert(DEMO_MAR, target)
    assert os.listdir(tmp_path) == ["file"]
