"""MAR: layouts of the published checkpoints, what a spec answers, and what the model remembers of its labels."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import build, infer_spec
from gtr_pack.gtr_core.models.mar import mar_spec


@pytest.mark.parametrize("name, layout", [("mar-b", "mar_base"), ("mar-l", "mar_large"), ("mar-h", "mar_huge")])
def test_a_mar_of_any_size_has_the_published_layout(name, layout, golden_layout):
    shapes = golden_layout(layout)
    model = build(mar_spec(name), device="meta")
    assert {key: tuple(t.shape) for key, t in model.state_dict().items()} == shapes
    assert infer_spec(shapes, {}) == mar_spec(name)


def test_an_unknown_size_names_those_that_there_are():
    with pytest.raises(GtRError, match="expected one of mar-b, mar-h, mar-l"):
        mar_spec("mar-xl")


def test_a_label_of_the_whole_batch_is_embedded_once(tiny_mar):
    """Its rows are views of one row, and so are those of the null condition."""
    memory = tiny_mar.start((torch.tensor([3, 3, 3]), None))
    assert memory.branches == 2 and [len(rows) for rows in memory.distinct()] == [1, 1]
    assert [len(rows) for rows in tiny_mar.start((torch.tensor([3, 4, 3]), None)).distinct()] == [3, 1]
    assert torch.equal(memory.rows[0], tiny_mar.embed_labels(torch.tensor([3, 3, 3]), torch.float32))
    assert torch.equal(memory.rows[1], tiny_mar.embed_labels(torch.tensor([-1] * 3), torch.float32))


def test_a_memory_can_be_taken_apart(tiny_mar):
    memory = tiny_mar.start((torch.tensor([3, 4, 5]), torch.tensor([0, 1, 2])))
    part = memory.first(1).images(slice(1, 3))
    assert part.branches == 1
    assert torch.equal(part.rows[0], tiny_mar.embed_labels(torch.tensor([4, 5]), torch.float32))


def test_a_mar_draws_its_own_size_only(tiny_mar):
    spec = tiny_mar.spec
    assert spec.can_draw((8, 8)) and not spec.can_draw((8, 16))
    with pytest.raises(GtRError, match="draws 128 x 128 pixels only, found 256 x 128"):
        spec.check_grid((8, 16))


def test_conditions_are_labels(tiny_mar):
    spec = tiny_mar.spec
    spec.check_condition(torch.tensor([-1, 0, 9]))
    spec.check_condition(spec.random_condition(30))
    for wrong in (torch.tensor([10]), torch.tensor([-2]), torch.zeros(2), torch.zeros(2, 7, 40)):
        with pytest.raises(GtRError, match="classes 0 to 9|conditioned on class labels"):
            spec.check_condition(wrong)
