"""Workers: nothing is done twice, nothing is lost when one dies, and bad input ends in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.files import remove_all_abandoned
from gtr_pack.gtr_core.jobs.workers import WorkerPool, run_tasks
from gtr_tests.extras import child_environment, needs

ROOT = Path(__file__).resolve().parents[3]


needs_ray = needs("ray", "scale")
# Workers are other processes, that import what they do from a file: squares, written beside and renamed. The first to
# try task 2 is killed, task 3 kills everyone if asked to, task 4 cannot be done, the first to try task 5 hangs.
SQUARES = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from gtr_core.errors import GtRError
from gtr_core.files import replace_file
from gtr_core.jobs.workers import WorkerPool, run_tasks

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
from gtr_core.jobs.workers import WorkerPool, run_tasks
import squares
if __name__ == "__main__":
    if sys.argv[1] == "ray":
        import ray
        ray.init(num_cpus=2)  # once for the three: a cluster takes seconds to start
    lines = []
    for tasks, cursed in (([0, 1, 2, 3, 6, 7, 5], False), ([0, 4], False), ([1, 3], True)):
        seen = []
        (Path("out") / "cursed").touch() if cursed else None
        try:
            results = run_tasks(WorkerPool(sys.argv[1], 2), partial(squares.make, Path("out").resolve()), tasks,
                                lambda index, result: seen.append(index))
            lines.append(f"{results} {sorted(seen)}")
        except GtRError as error:
            lines.append(str(error))
    Path("lines.txt").write_text("\\n".join(lines))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a Unix signal")
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=needs_ray)])
def test_tasks_of_a_killed_worker_and_of_a_slow_one_are_done_by_another(engine: str, tmp_path: Path) -> None:
    """Once; bad input and a task that kills everyone end in one line."""
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
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert len(lines) == 3, lines
    assert lines[0] == "[0, 1, 4, 9, 36, 49, 25] [0, 1, 2, 3, 4, 5, 6]"
    assert (tmp_path / "out" / "killed").exists() and (tmp_path / "out" / "hung").exists()
    assert lines[1] == "four is not for squares" and "3 workers died at the same task" in lines[2]
    remove_all_abandoned(tmp_path / "out")  # a worker that was ended while it wrote has left its part
    assert {path.name for path in (tmp_path / "out").glob("*")} == {
        *(f"{task}.txt" for task in (0, 1, 2, 3, 5, 6, 7)),
        "cursed",
        "killed",
        "hung",
    }


def test_pools_that_cannot_be_are_refused(monkeypatch) -> None:
    for settings in ({"name": "slurm"}, {"workers": 0}, {"threads": 0}, {"workers": 10**6}):
        with pytest.raises(GtRError, match="expected"):
            WorkerPool(**settings)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GtRError, match="pip install ray, or use --engine local"):
        run_tasks(WorkerPool("ray"), lambda device: None, [1])


class FullCluster:
    """What Ray looks like where there is no room; it remembers how it was started."""

    def __init__(self):
        self.settings: dict = {}
        self.ended = False

    def is_initialized(self) -> bool:
        return False

    def init(self, **settings) -> None:
        self.settings = settings

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}

    def shutdown(self) -> None:
        self.ended = True


def test_a_cluster_without_room_is_refused_and_left(monkeypatch) -> None:
    """Its workers would have found this package where it is."""
    cluster = FullCluster()
    monkeypatch.setitem(sys.modules, "ray", cluster)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    with pytest.raises(GtRError, match="has 3 CPUs and 0 GPUs, a worker needs 4 and 0: lower --threads"):
        run_tasks(WorkerPool("ray", threads=4), lambda device: None, [1])
    paths = cluster.settings["runtime_env"]["env_vars"]["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(ROOT), "elsewhere"] and (Path(paths[0]) / "gtr_core" / "__init__.py").is_file()
    assert cluster.ended
