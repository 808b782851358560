"""Specs off names and shapes: blocks are counted, head counts known or given, and what does not fit is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import FAMILIES, build, infer_spec, recognise
from gtr_pack.gtr_core.models.shapes import count_blocks, describe_names, head_count
from gtr_tests.models import SMALL_MAR


def shapes_of(spec) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in build(spec, device="meta").state_dict().items()}


def test_every_family_recognises_its_own_shapes_only():
    for name, family in FAMILIES.items():
        for spec in family.published.values():
            shapes = shapes_of(spec)
            assert recognise(shapes) is family and spec.family == name
            assert [other.name for other in FAMILIES.values() if other.matches(shapes)] == [name]
            assert infer_spec(shapes, {}) == spec


def test_blocks_are_counted_and_gaps_found():
    assert count_blocks({"a.0.w": (), "a.1.w": (), "a.1.b": (), "ab.2.w": ()}, "a") == 2
    with pytest.raises(GtRError, match="has 2 blocks, but one is number 2"):
        count_blocks({"a.0.w": (), "a.2.w": ()}, "a")


def test_the_number_of_heads_is_known_or_given():
    assert head_count(768, None) == 12 and head_count(64, 4) == 4
    with pytest.raises(GtRError, match="cannot be read off a width of 64"):
        head_count(64, None)
    with pytest.raises(GtRError, match="5 attention heads do not divide the width 64"):
        head_count(64, 5)


def test_what_is_no_model_is_described():
    with pytest.raises(GtRError, match="a checkpoint of MAR, LightGen or Harmon, found 1 tensors \\('weight'\\)"):
        infer_spec({"weight": (1,)}, {})
    assert describe_names({}) == "no tensors"


def test_a_field_of_another_family_is_named():
    with pytest.raises(GtRError, match="has text_length, which MAR has not"):
        infer_spec(shapes_of(SMALL_MAR), {"heads": 2, "text_length": 7})


@pytest.mark.parametrize(
    "lost, words",
    [
        ("decoder_blocks.0.", "blocks are missing"),
        ("diffloss.net.input_proj.weight", "expected a checkpoint of"),
        ("diffusion_pos_embed_learned", "tensor 'diffusion_pos_embed_learned' is missing"),
    ],
)
def test_a_file_that_lost_tensors_is_refused(lost, words):
    shapes = {name: shape for name, shape in shapes_of(SMALL_MAR).items() if not name.startswith(lost)}
    with pytest.raises(GtRError, match=words):
        infer_spec(shapes, {"heads": 2, "latent": SMALL_MAR.latent})


def test_stored_fields_complete_what_shapes_tell():
    spec = replace(SMALL_MAR, class_names=tuple("abcde"))
    stored = {field: getattr(spec, field) for field in spec.stored} | {"depths": spec.depths}
    assert infer_spec(shapes_of(spec), stored) == spec
