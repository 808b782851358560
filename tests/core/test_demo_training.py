"""The demo's training and experiments, imported as their commands import them: from the repository's root."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "demo.models",
    "demo.observations",
    "demo.pool",
    "demo.quality_page",
    "demo.runs",
    "demo.train_mar",
    "gtr_core.models.latents",
)


@pytest.fixture(scope="module")
def demo() -> SimpleNamespace:
    sys.path.insert(0, str(ROOT))
    try:
        found = {name.rpartition(".")[2]: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(ROOT))
    return SimpleNamespace(**found)


def test_training_resumes_bitwise(demo, tmp_path):
    """Four steps at once, and twice two, end in the same weights."""
    generator = torch.Generator().manual_seed(0)
    pool = demo.pool.Pool(
        torch.randn(8, 4, 32, 32, generator=generator), torch.full((8, 4, 32, 32), -4.0), torch.arange(8)
    )
    spec = demo.models.demo_mar_spec(demo.latents.LatentSpec(channels=4, stride=4, patch=2, scale=1.0))
    plan = demo.train_mar.MARPlan(batch=2, targets=8, steps=4, decay=2, log_every=1, save_every=2)
    for folder, counts in ((tmp_path / "once", (4,)), (tmp_path / "twice", (2, 4))):
        for count in counts:
            # The rate decays towards the planned end, so a run is stopped by a plan of fewer steps and as much decay.
            demo.train_mar.train_mar(folder, spec, pool, torch.device("cpu"), replace(plan, steps=count, decay=1))
    once, twice = (demo.runs.load(tmp_path / name / "mar.pt") for name in ("once", "twice"))
    assert once["step"] == twice["step"] == 4
    assert all(torch.equal(once["ema"][name], twice["ema"][name]) for name in once["ema"])
    assert [row["step"] for row in demo.runs.read_log(tmp_path / "twice" / "mar.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("origin, passed", [(0.4, True), (0.6, False)])
def test_the_gate_is_five_times_the_floor(demo, origin, passed):
    def row(name: str, value: float, difference: float) -> dict:
        figure = {"mean": value, "half": 0.01, "n": 3}
        return {
            "method": name,
            "figures": {"frechet": figure, "accuracy": {"mean": 0.97, "half": 0.01, "n": 3}},
            "difference": {"frechet": {"mean": difference, "half": 0.1, "n": 3, "clear": True}},
        }

    gate = {
        "rows": [row("origin", origin, 0), row("random-18", 1, 0.5), row("random-8", 2, 1.5)],
        "floor": row("real images", 0.1, 0),
        "images": 340,
        "seeds": [0, 1, 2],
        "together": {"images": 1020, "frechet": 0.2, "floor": 0.05},
    }
    assert demo.quality_page.verdict(gate)[0] == passed
    for fault in ({"images": 900}, {"frechet": 0.3}):
        assert not demo.quality_page.verdict(gate | {"together": gate["together"] | fault})[0]


def test_half_known_halves_are_halves(demo):
    for shape in ("checkerboard", "upper half"):
        assert demo.observations.half_known((16, 16), shape).sum() == 128
