"""Class labels by index and by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.labels import class_names, imagenet_names, parse_labels
from gtr_pack.gtr_core.models.mar import mar_spec
from gtr_tests.models import SMALL_MAR

NAMED = replace(SMALL_MAR, class_names=("Cat", "dog", "owl", "bee", "ant"))


def test_the_names_are_the_models_own_or_imagenets_or_indices():
    assert class_names(NAMED)[:2] == ("Cat", "dog") and class_names(SMALL_MAR) == ("0", "1", "2", "3", "4")
    assert class_names(mar_spec("mar-b")) == imagenet_names() and len(set(imagenet_names())) == 1000


def test_a_name_with_a_slip_gets_the_names_that_may_have_been_meant():
    with pytest.raises(GtRError, match="no class 'golden retreiver': .* a name such as 'golden retriever', '"):
        parse_labels("golden retreiver", mar_spec("mar-b"))


def test_indices_and_names_can_be_mixed():
    assert parse_labels("cat, 4\n OWL", NAMED) == (0, 4, 2)


@pytest.mark.parametrize(
    "text, words",
    [
        (" , ", "no class given"),
        ("5", "class 5 is out of range: small has classes 0 to 4"),
        ("-1", "class -1 is out of range"),
        ("fox", "has no class 'fox': .* a name such as 'Cat', 'dog'"),
        ("Owls", "has no class 'Owls': .* a name such as 'owl'$"),
    ],
)
def test_wrong_labels_say_what_is_expected(text, words):
    with pytest.raises(GtRError, match=words):
        parse_labels(text, NAMED)
