"""``search``: a winner, verified on other seeds, that does not depend on the number of workers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from gtr_pack.gtr_core.cli.generate import GENERATE
from gtr_pack.gtr_core.cli.options import flags_of, method_of, model_spec
from gtr_pack.gtr_core.cli.search import nodes_of
from gtr_pack.gtr_core.evaluation.search import CostTarget, Space, candidates
from gtr_pack.gtr_core.plans.method import Guidance

ROOT = Path(__file__).resolve().parents[3]

FEW = ["--cost", "demo", "--target", "6", "--against", "gtr-extreme"]
FEW += ["--candidates", "2", "--images", "4", "--seeds", "1", "--batch", "4"]


@pytest.mark.slow
def test_workers_find_the_same(elsewhere, tmp_path):
    """The verb on the demo model: two processes end with the winner and the figures of one."""
    found = []
    for engine in ([], ["--workers", "2"]):
        work = tmp_path / str(len(engine))
        done = elsewhere("search", *FEW, "--device", "cpu", "--json", "--work", work, *engine)
        found.append(json.loads(done.stdout))
    for part in ("winner", "rounds", "rows"):
        assert found[0][part] == found[1][part]
    assert (found[0]["search_seeds"], found[0]["verification_seeds"]) == ([0], [1])
    assert [row["method"] for row in found[0]["rows"]][1:] == ["gtr-extreme"]


WINNERS = candidates(
    Space(guidance=(Guidance(), Guidance(2.5, "constant", 0.25))), CostTarget(model_spec("mar-b"), 4.0), 12, seed=1
)


@pytest.mark.parametrize("winner", WINNERS, ids=lambda method: method.name)
def test_a_winner_is_printed_as_options_that_make_it(winner):
    parser = argparse.ArgumentParser()
    GENERATE.add_options(parser)
    again = method_of(parser.parse_args(flags_of(winner).split()))
    assert again.renamed(winner.name) == winner


@pytest.mark.parametrize("winner", WINNERS, ids=lambda method: method.name)
def test_a_winner_is_printed_as_values_of_nodes(winner):
    """Names of inputs and choices are those of the nodes."""
    schemas = json.loads((ROOT / "tests" / "host" / "schemas.json").read_text(encoding="utf-8"))
    nodes = nodes_of(winner)
    assert ("GtR_FTS" in nodes) == (winner.fts is not None)
    for node, values in nodes.items():
        inputs = {entry["id"]: entry for entry in schemas[node]["inputs"]}
        for name, value in values.items():
            assert value in inputs[name].get("options", [value])
            assert inputs[name].get("min", -1e9) <= value if isinstance(value, (int, float)) else value


@pytest.mark.parametrize(
    "change, words",
    [
        (["--against", "fast"], "unknown preset 'fast'"),
        (["--target", "500"], "0 of 2 candidates found at 500 x"),
        (["--guidance", "x"], "expected numbers separated by commas"),
        (["--guidance", ""], "no guidance to choose from"),
        (["--against", "gtr-paper,gtr-paper"], "all of different names"),
        (["--against", "gtr-paper:300-6-2"], "300"),
        (["--against", "lazymar"], "LazyMAR needs guidance from the first step on"),
        (["--images", "4000", "--candidates", "18"], "make a larger one"),
        (["--guidance", "nan"], "guidance scale nan: expected a number"),
        (["--guidance", "2", "--guidance-starts", "2"], "expected a share of the tokens"),
        (["--cost", "nowhere"], "no file at nowhere"),
        (["--seeds", "0"], "--seeds 0: at least 1 is needed"),
        (["--images", "3"], "--images 3: at least 4 are needed"),
        (["--batch", "0"], "a batch of 0"),
        (["--workers", "0"], "expected 1 to"),
        (["--model", "nowhere"], "nothing to judge with: give a classifier"),
        (["--extractor", "nowhere"], "nowhere: check the name"),
        (["--device", "toaster"], "cannot be used here"),
    ],
)
def test_wrong_options_end_in_one_line(change, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("search", *FEW, *change)
    assert not list(tmp_path.iterdir())
