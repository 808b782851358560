"""The search for a schedule: its candidates keep to the budget, its rounds keep the best."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gtr_pack.gtr_core.checkpoints import build_vae
from gtr_pack.gtr_core.costs import flops
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation import tables as quality
from gtr_pack.gtr_core.evaluation.classifier import Classifier, ClassifierSpec
from gtr_pack.gtr_core.evaluation.evaluate import Evaluation, evaluate
from gtr_pack.gtr_core.evaluation.features import ClassifierFeatures, ImageFeatures
from gtr_pack.gtr_core.evaluation.search import KEPT, Budget, Space, candidates, search
from gtr_pack.gtr_core.models.mar import mar_spec
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_tests.stand_ins import randomised

ROOT = Path(__file__).resolve().parents[3]
VAE = ROOT / "tests" / "golden" / "vae_tiny_fp16.safetensors"


def test_candidates_keep_to_the_budget():
    spec, space = mar_spec("mar-b"), Space(guidance=(Guidance(1.0), Guidance(3.0)))
    found = candidates(space, Budget(spec, 4.0), 12, seed=1)
    assert len({method.name for method in found}) == 12
    assert {method.guidance.scale for method in found} == {1.0, 3.0}
    assert len({method.schedule.stages for method in found}) > 2
    for method in found:
        tokens = [step.tokens for step in make_plan(method.schedule, spec.grid, (0,)).steps]
        assert all(after >= before - 1 for before, after in zip(tokens, tokens[1:]))  # even counts differ by one
        own = flops.count_schedule(method.schedule, spec, guided=method.guidance.enabled, fts=method.fts).total
        origin = flops.count_schedule(flops.origin_of(spec), spec, guided=method.guidance.enabled).total
        assert 4.0 <= origin / own <= 4.0 * 1.06
    assert found == candidates(space, Budget(spec, 4.0), 12, seed=1) != candidates(space, Budget(spec, 4.0), 12, seed=2)


def test_a_cost_out_of_reach_is_refused():
    with pytest.raises(GtRError, match="0 of 3 candidates found at 500 x: choose a target"):
        candidates(Space(), Budget(mar_spec("mar-b"), 500.0), 3, seed=0)


@pytest.mark.slow
def test_rounds_keep_the_best(tiny_mar, tmp_path):
    names = tuple(f"class {label}" for label in range(10))
    extractor = randomised(Classifier(ClassifierSpec(128, (8, 8, 16, 16), names, (), 6)), 1).eval()
    evaluation = Evaluation(tiny_mar, build_vae(VAE), ClassifierFeatures(extractor))
    methods = [Method(Schedule(f"{count} steps", "random", (count,), diffusion=(2, 2, 2))) for count in (1, 2, 3, 4, 5)]

    def measure(made: ImageFeatures, seed: int) -> quality.Figures:
        return {"frechet": float(made.features.sum())}

    first, last = search(evaluation, methods, (0, 1), 4, tmp_path, measure, batch=4)
    assert [len(first), len(last)] == [5, KEPT] and [first[0]["images"], last[0]["images"]] == [4, 8]
    for rows in (first, last):
        means = [row["figures"]["frechet"]["mean"] for row in rows]
        assert means == sorted(means)
    assert {row["method"] for row in last} == {row["method"] for row in first[:KEPT]}
    alone = evaluate(
        evaluation,
        [method for method in methods if method.name == last[0]["method"]],
        (0, 1),
        8,
        tmp_path / "again",
        batch=4,
    )[last[0]["method"]]
    assert last[0]["values"]["frechet"] == pytest.approx([measure(made, 0)["frechet"] for made in alone])


@pytest.mark.slow
def test_workers_find_the_same(tmp_path):
    """The verb on the demo model: two processes end with the winner and the figures of one."""
    command = [
        sys.executable,
        "-m",
        "gtr_core",
        "search",
        "--cost",
        "demo",
        "--target",
        "5",
        "--candidates",
        "2",
        "--images",
        "4",
        "--seeds",
        "1",
        "--batch",
        "4",
        "--device",
        "cpu",
        "--json",
        "--work",
    ]
    found = []
    for engine in ([], ["--workers", "2"]):
        done = subprocess.run(
            [*command, str(tmp_path / str(len(engine))), *engine],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout))
    for part in ("winner", "rounds", "rows"):
        assert found[0][part] == found[1][part]
