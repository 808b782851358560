"""Partitions of a grid into stages: sizes in closed form, and no stage without tokens."""

from __future__ import annotations

import numpy as np
import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.plans.partition import PARTITIONS, stage_of_tokens


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize(
    "grid, stages, sizes",
    [
        ((16, 16), 3, [64, 64, 128]),
        ((32, 32), 4, [128, 128, 256, 512]),
        ((16, 16), 1, [256]),
        ((16, 16), 2, [128, 128]),
    ],
)
def test_every_stage_has_half_of_what_is_left(partition, grid, stages, sizes):
    stage = stage_of_tokens(grid, stages, partition)
    assert [int((stage == k).sum()) for k in range(1, stages + 1)] == sizes


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_reconstruction_stage_is_the_odd_colour(partition):
    i, j = np.indices((16, 16))
    assert np.array_equal(stage_of_tokens((16, 16), 3, partition) == 3, (i + j) % 2 == 1)


def test_quincunx_keeps_tokens_as_far_apart_as_possible():
    """Smallest squared distance inside S_1: 4 for rows of the checkerboard, 2 where tokens touch at corners."""

    def smallest(partition):
        points = np.argwhere(stage_of_tokens((16, 16), 3, partition) == 1)
        squared = ((points[:, None] - points[None]) ** 2).sum(-1)
        return squared[squared > 0].min()

    assert (smallest("quincunx"), smallest("diagonal")) == (4, 2)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 9)])
def test_empty_subsets_are_refused(grid, partition):
    with pytest.raises(GtRError, match="empty subset.*use at most"):
        stage_of_tokens(grid, 6, partition)


def test_every_grid_takes_the_stages_that_leave_no_subset_empty():
    for height in range(1, 9):
        for width in range(1, 9):
            for stages in (1, 2, 3, 4):
                for partition in PARTITIONS:
                    try:
                        stage = stage_of_tokens((height, width), stages, partition)
                    except GtRError:
                        continue
                    assert set(np.unique(stage)) == set(range(1, stages + 1))
