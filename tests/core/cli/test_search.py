"""``search``: a winner, verified on other seeds, that does not depend on the number of workers."""

from __future__ import annotations

import json

import pytest

FEW = ["--cost", "demo", "--target", "5", "--candidates", "2", "--images", "4", "--seeds", "1", "--batch", "4"]


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
    assert [row["method"] for row in found[0]["rows"]][1:] == ["gtr-paper"]


@pytest.mark.parametrize(
    "change, words",
    [
        (["--against", "fast"], "unknown preset 'fast'"),
        (["--target", "500"], "0 of 2 candidates found at 500 x"),
        (["--guidance", "x"], "expected numbers separated by commas"),
        (["--guidance", "nan"], "guidance scale nan: expected a number"),
        (["--guidance", "2", "--guidance-starts", "2"], "expected a share of the tokens"),
        (["--cost", "nowhere"], "no file at nowhere"),
        (["--seeds", "0"], "at least 4 images and 1 seed"),
        (["--images", "3"], "at least 4 images"),
        (["--batch", "0"], "a batch of 0"),
        (["--workers", "0"], "expected 1 to"),
        (["--model", "nowhere"], "nothing to judge with"),
        (["--extractor", "nowhere"], "nowhere: check the name"),
        (["--device", "toaster"], "cannot be used here"),
    ],
)
def test_wrong_options_end_in_one_line(change, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("search", *FEW, *change)
    assert not list(tmp_path.iterdir())
