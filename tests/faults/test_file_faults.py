"""Processes killed while they write, full disks, folders that cannot be written: no half file under a file's name."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gtr_pack.gtr_core.checkpoint import convert, load_model, read_checkpoint
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.demo import DEMO_MAR
from gtr_pack.gtr_core.errors import GtRError

ROOT = Path(__file__).resolve().parents[2]
# A command line that tells where it is and then stands still, to be killed there.
STOPPED = """
import sys, time
from pathlib import Path
from gtr_core import checkpoint, cli, png
def stand(*_):
    print("here", flush=True)
    time.sleep(600)
def half(tensors, path, metadata=None):
    save(tensors, path, metadata)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:len(data) // 2])
    stand()
save = checkpoint.save_file
if sys.argv[1] == "half":
    checkpoint.save_file = half
else:
    checkpoint.os.replace = stand
sys.exit(cli.main(sys.argv[2:]))
"""
# A command line that may write so many bytes into a file, as on a full disk.
FULL = """
import resource, sys
from gtr_core.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""
FAST = ["generate", "--steps", "1,1,1", "--diffusion", "2,2,2", "--fts-steps", "2", "--json"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("where", ["half", "renaming"])
def test_a_conversion_that_is_killed(where: str, tmp_path: Path) -> None:
    """The input is untouched, the output is not there; what is left beside it does not disturb the next one."""
    before, target = digest(DEMO_MAR), tmp_path / "out.safetensors"
    process = subprocess.Popen([sys.executable, "-c", STOPPED, where, "convert", str(DEMO_MAR), str(target)], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "here\n"
    finally:
        process.kill()
        process.communicate()
    assert digest(DEMO_MAR) == before and not target.exists()
    left = list(tmp_path.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".out.safetensors.") and left[0].suffix == ".part"
    convert(DEMO_MAR, target)
    assert load_model(read_checkpoint(target))[0] == load_model(read_checkpoint(DEMO_MAR))[0]
    assert sorted(tmp_path.iterdir()) == sorted([*left, target])


@pytest.mark.skipif(os.name == "nt", reason="limits of a process's file size are a Unix feature")
@pytest.mark.parametrize("verb", ["convert", "generate", "schedule"])
def test_a_full_disk(verb: str, tmp_path: Path) -> None:
    """One line, no file and nothing beside it; a file of that name from before is as it was."""
    arguments = {"convert": ["convert", str(DEMO_MAR), "out.safetensors", "--overwrite"],
                 "generate": [*FAST, "-o", "out.png"], "schedule": ["schedule", "--png", "out.png"]}[verb]
    old = tmp_path / ("out.safetensors" if verb == "convert" else "out.png")
    old.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, "300", *arguments], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [old.name] and old.read_bytes() == b"old"


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As root nothing is read-only but what the system makes: /proc then."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")
    if not folder.is_dir():
        pytest.skip("this user may write everywhere")
    with pytest.raises(GtRError, match="cannot write"):
        convert(DEMO_MAR, folder / "out.safetensors")
    for arguments in ([*FAST, "-o", str(folder / "a.png")], ["schedule", "--png", str(folder / "a.png")]):
        assert main(arguments) == 2
        text = capsys.readouterr().err
        assert "cannot write" in text and text.count("\n") == 1
    assert not (folder / "a.png").exists()


def test_no_folder_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for target in (tmp_path / "none" / "x.safetensors", tmp_path / "file" / "x.safetensors",
                   tmp_path / ("x" * 300 + ".safetensors")):
        with pytest.raises(GtRError, match="cannot write"):
            convert(DEMO_MAR, target)
    assert os.listdir(tmp_path) == ["file"]
