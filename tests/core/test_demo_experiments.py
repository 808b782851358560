"""The experiments behind docs/quality.md, on the demo model with few images and steps."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With folders of the test's own."""
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    found = importlib.import_module("demo.experiments")
    monkeypatch.setattr(found, "WORK", tmp_path / "work")
    (tmp_path / "quality").mkdir()
    monkeypatch.setattr(found, "OUTPUT", tmp_path / "quality")
    return found


@pytest.fixture
def tiny(experiments: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an experiment of two cheap methods."""
    schedules = [experiments.Schedule(f"random-{n}", "random", (n,), diffusion=(4, 4, 4)) for n in (2, 1)]
    monkeypatch.setitem(
        experiments.EXPERIMENTS,
        "gate",
        lambda: experiments.grouped({"random": list(map(experiments.method, schedules))}),
    )
    return "gate"


def test_an_experiment_ends_in_rows_a_floor_and_a_plot(experiments: ModuleType, tiny: str) -> None:
    result = experiments.run(tiny, 4, range(2), 4)
    assert [row["method"] for row in result["rows"]] == ["random-2", "random-1"]
    assert result["rows"][0]["speedup"] < result["rows"][1]["speedup"] and result["floor"]["seeds"] == 2
    assert result["command"] == "python -m demo.experiments gate --images 4 --seeds 2"
    assert result["together"]["images"] == 8 and "| random-1 - random-2 |" in experiments.tables.markdown(result)
    experiments.plot(result)
    assert (experiments.OUTPUT / "gate.png").is_file()


def test_a_repeated_experiment_finds_its_results_again(experiments: ModuleType, tiny: str) -> None:
    first = experiments.run(tiny, 4, range(1), 4)
    kept = {path: path.stat().st_mtime_ns for path in experiments.WORK.iterdir()}
    assert len(kept) == 2 and experiments.run(tiny, 4, range(1), 4) == first
    assert {path: path.stat().st_mtime_ns for path in experiments.WORK.iterdir()} == kept


def test_the_heat_map_shows_images_above_their_extra_steps(experiments: ModuleType) -> None:
    assert experiments.heat(1).shape == (768, 384, 3)


def test_real_images_are_redrawn_from_both_halves(experiments: ModuleType) -> None:
    result = experiments.observe(2, 2)
    assert set(result["spread"]) == {"checkerboard", "upper half"} and set(result["change"]) == {32, 96}
    assert all(figure["mean"] > 0 for found in result["change"].values() for figure in found.values())


def test_a_foreign_token_is_misplaced_and_counted_where_it_was_drawn(experiments: ModuleType) -> None:
    misplaced, data = experiments.misplaced, experiments.data
    images, _ = data.images(torch.arange(4), torch.Generator().manual_seed(1))
    changed = images.clone()
    changed[:, :, 16:24, 40:48] = -images[:, :, 16:24, 40:48].sign()  # the token in row 2, column 5
    judge = experiments.load_classifier(experiments.DEMO_JUDGE)
    assert misplaced.misfits(images, judge).max() < 0.01
    found = misplaced.misfits(changed, judge) > misplaced.LIMIT
    assert found.nonzero().tolist() == [[k, 2 * 16 + 5] for k in range(4)]
    plan = experiments.make_plan(experiments.Method(experiments.preset("gtr-extreme")), (16, 16), range(4))
    counted = misplaced.by_known(found, plan)
    assert sum(counted.drawn) == 4 * 256 and sum(counted.misplaced) == 4 and counted.per_image.tolist() == [1] * 4


def test_misplaced_tokens_end_in_shares_and_a_plot(experiments: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"steps": (6,), "diffusion": (10, 10, 10)}
    monkeypatch.setattr(experiments, "preset", lambda name: experiments.Schedule(name, "random", **quick))
    result = experiments.misplace(1, 1)
    once, again = {"origin", "gtr-paper"}, {"origin, revised 0.25", "gtr-paper, revised 0.25"}
    assert set(result["methods"]) == once | again and result["real_per_image"] < 1
    for method in result["methods"].values():
        assert sum(step["tokens_per_image"] for step in method["steps"]) == 256
    experiments.plot_misplaced(result)
    assert (experiments.OUTPUT / "misplaced.png").is_file()
