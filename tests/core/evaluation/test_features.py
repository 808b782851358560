"""What is measured of images, and the files of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation.classifier import Classifier
from gtr_pack.gtr_core.evaluation.features import (
    ClassifierFeatures,
    joined,
    load_reference,
    make_reference,
    quantized,
    save_features,
)
from gtr_tests.stand_ins import randomised
from safetensors.torch import save_file
from torch import Tensor


def random_images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_images_are_measured_as_they_are_stored(classifier):
    extractor, images, labels = ClassifierFeatures(classifier), random_images(5), torch.tensor([0, 1, 2, 0, 1])
    measured = extractor.measure(images, labels)
    stored = ((images + 1) * 127.5).round().byte()
    assert torch.equal(quantized(stored.float() / 127.5 - 1), quantized(images))
    assert torch.allclose(measured.features, classifier.features(stored.float() / 127.5 - 1), atol=1e-6)
    assert measured.scores.shape == (5, 3) and measured.spectra.shape == (5, 16)
    chances = classifier(quantized(images))["phase"].softmax(1).max(1).values
    assert torch.allclose(measured.confidence[:, 1], chances)
    halves = [extractor.measure(images[:2], labels[:2]), extractor.measure(images[2:], labels[2:])]
    assert torch.allclose(joined(halves).features, measured.features, atol=1e-6)


def test_a_reference_comes_back_for_its_extractor_alone(classifier, tmp_path):
    extractor, path = ClassifierFeatures(classifier), tmp_path / "real.safetensors"
    labels = torch.arange(12) % 3
    real = make_reference(extractor, ((random_images(6, k), labels[6 * k : 6 * k + 6]) for k in range(2)))
    save_features(path, real, extractor.identity)
    again = load_reference(path, extractor)
    assert torch.equal(again.labels, labels) and torch.equal(again.features, real.features.half().float())
    assert torch.allclose(again.spectra, real.spectra, atol=0.01)
    other = ClassifierFeatures(randomised(Classifier(classifier.spec), 2))
    with pytest.raises(GtRError, match="another extractor"):
        load_reference(path, other)
    renamed = Classifier(replace(classifier.spec, accuracy={}))
    renamed.load_state_dict(classifier.state_dict())
    assert ClassifierFeatures(renamed).identity == extractor.identity
    save_file({"features": torch.zeros(2, 3)}, path)
    with pytest.raises(GtRError, match="does not hold measured images"):
        load_reference(path, extractor)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"features": torch.zeros(11, 12)}, "one row per image"),
        ({"labels": torch.full((12,), 3)}, "expected 3 classes"),
        ({"features": torch.full((12, 12), math.nan)}, "NaN"),
        ({"labels": torch.full((12,), -1)}, "negative labels"),
        ({"scores": torch.zeros(12, 4)}, "expected 3 classes"),
    ],
)
def test_damaged_references_are_refused(change, words, classifier, tmp_path):
    extractor, path = ClassifierFeatures(classifier), tmp_path / "real.safetensors"
    save_features(
        path, replace(extractor.measure(random_images(12), torch.arange(12) % 3), **change), extractor.identity
    )
    with pytest.raises(GtRError, match=words):
        load_reference(path, extractor)


def test_draws_are_balanced_over_the_classes(classifier):
    measured = ClassifierFeatures(classifier).measure(random_images(30), torch.arange(30) % 3)
    mask = measured.balanced(8, seed=1)
    assert measured.labels[mask].bincount().tolist() == [3, 3, 2]
    assert torch.equal(mask, measured.balanced(8, seed=1)) and not torch.equal(mask, measured.balanced(8, seed=2))
    assert len(measured.take(~mask)) == 22
    with pytest.raises(GtRError, match="class 0, 11 are needed"):
        measured.balanced(31, seed=0)
