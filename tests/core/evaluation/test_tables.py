"""From measured images to rows and tables."""

from __future__ import annotations

import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation import tables
from gtr_pack.gtr_core.evaluation.tables import AgainstReal
from gtr_tests.evaluations import CLASSES


def test_rows_have_intervals_and_paired_differences(complete, real):
    found, _ = complete
    rows = tables.rows(found, (0, 1), AgainstReal(real, 12), {"gtr": {"speedup": 2.0}})
    first, second = rows
    assert set(first["figures"]) == set(tables.FIGURES) - {"fid", "is", "coherence"} and "difference" not in first
    for key, series in second["values"].items():
        differences = [a - b for a, b in zip(series, first["values"][key])]
        assert second["difference"][key]["mean"] == pytest.approx(sum(differences) / 2)
        assert second["figures"][key]["n"] == 2 and second["figures"][key]["half"] >= 0
    table = tables.markdown({"rows": rows})
    assert "| gtr | 2 × 12 | 2.00× |" in table and "| gtr - random |" in table and "±" in table


def test_real_images_are_compared_with_other_real_ones(real):
    """The floor's sets share no image with each other or with what they are compared with."""
    pairs = list(tables.floor_sets(real, 20, (0, 1, 2)))
    rows = [{tuple(row) for row in made.features.tolist()} for made, _ in pairs]
    assert [len(row) for row in rows] == [20] * 3 and len(set.union(*rows)) == 60
    for own, (made, others) in zip(rows, pairs):
        assert len(others) == 60 and not own & {tuple(row) for row in others.features.tolist()}
        assert made.labels.bincount().tolist() == [2] * CLASSES
    assert tables.figures(*pairs[0])["recall"] > 0.2
    with pytest.raises(GtRError, match="make a larger one"):
        list(tables.floor_sets(real, 40, (0, 1, 2)))


def test_more_than_half_of_the_reference_leaves_no_floor(real):
    """What was made is compared with the reference all the same."""
    against = tables.AgainstReal(real, 50)
    assert "are needed" in against.floor([0])["floor_missing"]
