"""An evaluation's files travel to workers as plain data, and every worker opens the same evaluation."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation.files import EvaluationFiles
from gtr_tests.evaluations import VAE, write_judge, write_model

ROOT = Path(__file__).resolve().parents[3]
# Spawned processes import what they do from files: this one drives them.
DRIVE = """
import sys
from functools import partial
from pathlib import Path
import torch
from gtr_core.evaluation.evaluate import Effort, Kept, evaluate
from gtr_core.evaluation.files import EvaluationFiles
from gtr_core.jobs.workers import WorkerPool
from gtr_core.plans.method import Guidance, Method
from gtr_core.plans.schedule import Schedule
from gtr_core.sampling.lazymar import LazyMAR
if __name__ == "__main__":
    files = EvaluationFiles(*map(Path, sys.argv[1:]))
    evaluation = files.open("cpu")
    methods = [Method(Schedule("random", "random", (3,), diffusion=(2, 2, 2))),
               Method(Schedule("lazy", "random", (3,), diffusion=(2, 2, 2)), Guidance(2.0), cache=LazyMAR())]
    seen = []
    alone = evaluate(evaluation, methods, (0, 1), 4, Effort(Kept(Path("alone")), 2, 2))
    kept, on_task = Kept(Path("two").resolve()), lambda task, done, total: seen.append(done)
    made = evaluate(evaluation, methods, (0, 1), 4, Effort(kept, 2, 2, WorkerPool(workers=2), files.open, on_task))
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8], seen
    assert list(alone) == list(made) == ["random", "lazy"]
    for name in alone:
        for one, two in zip(alone[name], made[name], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values()))
    print("THE SAME")
"""


@pytest.fixture(scope="module")
def files(tiny_mar, extractor, real, tmp_path_factory) -> EvaluationFiles:
    folder = tmp_path_factory.mktemp("files")
    write_model(folder, tiny_mar)
    write_judge(folder, extractor, real)
    return EvaluationFiles(folder / "mar.safetensors", VAE, folder / "judge.safetensors")


def test_what_opens_an_evaluation_can_be_sent_to_a_process(files):
    again = pickle.loads(pickle.dumps(files.open))
    assert again.__self__ == files and again.__func__ is EvaluationFiles.open


def test_every_opening_is_the_same_evaluation(files, evaluation):
    opened = files.open("cpu")
    assert opened.runtime == Runtime("cpu") and opened.identity == files.open("cpu").identity == evaluation.identity


def test_dtype_and_acceleration_reach_the_runtime(files):
    half = EvaluationFiles(files.model, files.vae, files.extractor, dtype=torch.bfloat16, accelerate=True)
    opened = half.open("cpu")
    assert opened.runtime == Runtime("cpu", torch.bfloat16, accelerate=True)
    assert opened.model.dtype == torch.bfloat16 and opened.identity != files.open("cpu").identity


def test_an_evaluation_for_other_devices_has_their_identity(files):
    opened = files.open("cpu")
    elsewhere = opened.for_device("cuda")
    assert elsewhere.identity == opened.identity.replace(" cpu", " cuda") != opened.identity
    assert opened.for_device("cpu").identity == opened.identity


def test_a_file_that_is_missing_is_named(files, tmp_path):
    with pytest.raises(GtRError, match="no file at .*nowhere"):
        EvaluationFiles(files.model, files.vae, tmp_path / "nowhere").open("cpu")


@pytest.mark.slow
def test_two_processes_measure_what_one_does(files, tmp_path):
    (tmp_path / "drive.py").write_text(DRIVE)
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    done = subprocess.run(
        [sys.executable, "drive.py", files.model, files.vae, files.extractor],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout == "THE SAME\n", done.stderr[-2000:]
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "two"))
    assert one == two and len(one) == 8
