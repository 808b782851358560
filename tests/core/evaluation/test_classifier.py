"""The classifier that measures images: its shapes, its file, and files that are refused."""

from __future__ import annotations

import json

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation.classifier import CLASSIFIER_KEY, load_classifier, save_classifier
from gtr_pack.gtr_core.files import digest
from safetensors.torch import save_file
from torch import Tensor


def random_images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_classifier_gives_features_and_scores_per_head(classifier):
    features = classifier.features(random_images(2))
    assert features.shape == (2, 12)
    assert {name: tuple(s.shape) for name, s in classifier(random_images(2)).items()} == {
        "class": (2, 3),
        "hue": (2, 4),
        "phase": (2, 2),
    }
    with pytest.raises(GtRError, match="judges 32 x 32 pixels, found 16 x 8"):
        classifier.features(torch.zeros(1, 3, 8, 16))


def test_a_classifier_comes_back_from_its_file(classifier, tmp_path):
    save_classifier(tmp_path / "judge.safetensors", classifier)
    again = load_classifier(tmp_path / "judge.safetensors")
    assert again.spec == classifier.spec and not again.training
    assert digest(again.state_dict()) == digest(classifier.state_dict())
    assert torch.equal(again.features(random_images(2)), classifier.features(random_images(2)))
    assert [path.name for path in tmp_path.iterdir()] == ["judge.safetensors"]


FIELDS = {
    "size": 32,
    "widths": [8, 16],
    "classes": ["a", "b", "c"],
    "factors": [["hue", 4], ["phase", 2]],
    "feature_dim": 12,
    "accuracy": {},
}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"widths": [8, 6]}, "multiples of 4"),
        ({"widths": []}, "multiples of 4"),
        ({"size": 30}, "multiple of 4"),
        ({"size": "32"}, "cannot be read"),
        ({"factors": [["hue", 4], ["hue", 2]]}, "different names"),
        ({"factors": [["class", 4]]}, "different names"),
        ({"classes": ["a"]}, "2 choices"),
        ({"extra": 1}, "unknown"),
        ({"accuracy": {"hue": 1.5}}, "shares"),
        ({"accuracy": {"size": 1}}, "shares"),
        ({"feature_dim": 13}, "shape"),
        ({"widths": [8, 16, 16]}, "missing"),
        ({"classes": ["a\n", "b"]}, "cannot be read"),
    ],
)
def test_bad_classifier_files_are_refused(change, words, classifier, tmp_path):
    metadata = {CLASSIFIER_KEY: json.dumps(FIELDS | change)}
    save_file(classifier.state_dict(), tmp_path / "x.safetensors", metadata)
    with pytest.raises(GtRError, match=words) as caught:
        load_classifier(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_what_is_no_classifier_is_refused(classifier, tmp_path):
    save_file(classifier.state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(GtRError, match="is not an extractor"):
        load_classifier(tmp_path / "x.safetensors")
    save_file(classifier.state_dict(), tmp_path / "x.safetensors", {CLASSIFIER_KEY: json.dumps({"size": 32})})
    with pytest.raises(GtRError, match="incomplete"):
        load_classifier(tmp_path / "x.safetensors")
