"""The quality measures against closed forms, the extractor and the reference as files."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation import metrics
from gtr_pack.gtr_core.evaluation.classifier import (
    CLASSIFIER_KEY,
    Classifier,
    ClassifierSpec,
    load_classifier,
    save_classifier,
)
from gtr_pack.gtr_core.evaluation.features import ClassifierFeatures, joined, load_reference, make_reference, quantized, save_features
from gtr_pack.gtr_core.files import digest
from gtr_tests.stand_ins import randomised
from safetensors.torch import save_file
from torch import Tensor

SPEC = ClassifierSpec(32, (8, 16), ("a", "b", "c"), (("hue", 4), ("phase", 2)), 12, 2.0, {"class": 0.99, "hue": 1.0})


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(n: int, dim: int, seed: int = 0) -> Tensor:
    """Rows with mean 0 and covariance 1 exactly."""
    x = normal(n, dim, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_frechet_distance_of_known_gaussians():
    """Of diagonal covariances a and b it is |m|^2 + sum (sqrt a - sqrt b)^2."""
    a, b = torch.tensor([4.0, 1.0, 0.25]), torch.tensor([1.0, 9.0, 0.25])
    shift = torch.tensor([1.0, -2.0, 0.5])
    expected = float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    turn = torch.linalg.qr(normal(3, 3))[0]
    x = whitened(50, 3, 1) * a.sqrt() @ turn
    y = (whitened(70, 3, 2) * b.sqrt() + shift) @ turn
    assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet(y, x) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_flat_features():
    """Covariances without full rank, as few pictures of many features have: two lines at right angles."""
    line = whitened(20, 2)[:, :1]
    x, y = torch.cat([line, 0 * line], 1), torch.cat([0 * line, line], 1)
    assert metrics.frechet(x, y) == pytest.approx(2.0, rel=1e-6)
    with pytest.raises(GtRError, match="at least 2"):
        metrics.frechet(x[:1], y)


def test_kernel_distance_by_hand():
    """Scalars: k(x, y) = (x y + 1)^3."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    within = 1.0 + 7.0**3  # mean of k over pairs of different rows
    between = (1 + 1 + 3.0**3 + 4.0**3) / 4
    assert metrics.kernel_distance(a, b) == pytest.approx(within - 2 * between)


def test_kernel_distance_is_unbiased_and_chunked(monkeypatch):
    draws = [metrics.kernel_distance(normal(20, 4, 2 * k), normal(20, 4, 2 * k + 1)) for k in range(300)]
    assert abs(sum(draws) / 300) < 3 * torch.tensor(draws).std() / 300**0.5 and min(draws) < 0
    a, b = normal(40, 4), normal(30, 4, 1) + 1
    whole, subset = metrics.kernel_distance(a, b), metrics.kernel_distance(a, b, subset=25, subsets=200)
    assert subset == pytest.approx(whole, rel=0.1)
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert metrics.kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_accuracy_and_inception_score():
    certain = torch.eye(4).repeat(3, 1) * 1000
    labels = torch.arange(4).repeat(3)
    assert metrics.accuracy(certain, labels) == 1 and metrics.accuracy(certain, (labels + 1) % 4) == 0
    assert metrics.inception_score(certain) == pytest.approx(4)
    assert metrics.inception_score(torch.zeros(5, 4)) == pytest.approx(1)
    assert metrics.inception_score(certain[:1].repeat(5, 1)) == pytest.approx(1)
    half = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log()  # p = (3/4, 1/4) and back: the divergence is known
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert metrics.inception_score(half) == pytest.approx(math.exp(divergence))


def test_precision_and_recall(monkeypatch):
    """On a line with unit spacing every point reaches its k-th neighbour: what lies inside can be counted."""
    real = torch.arange(10.0)[:, None]
    made = torch.tensor([[0.5], [4.5], [8.9], [9.1], [13.0], [100.0], [200.0], [300.0]])
    # k = 1: radii of the real points are 1; 13 and beyond are outside. Radii of the made ones: 4, 4, .2, .2, 3.9, 87...
    for chunk in (1024, 3):
        monkeypatch.setattr(metrics, "CHUNK", chunk)
        precision, recall = metrics.precision_recall(real, made, k=1)
        assert precision == pytest.approx(4 / 8) and recall == pytest.approx(1.0)
        assert metrics.precision_recall(real, real + 1000, k=3) == (0.0, 0.0)
    with pytest.raises(GtRError, match="more than 3"):
        metrics.precision_recall(real[:3], made)


def test_spectrum_of_a_wave_and_of_noise():
    size, cycles = 32, 5
    wave = torch.cos(2 * math.pi * cycles * torch.arange(size) / size).expand(1, 3, size, size)
    spectrum = metrics.radial_spectrum(wave)
    assert spectrum.shape == (1, size // 2) and spectrum.argmax() == cycles - 1
    ring = sum(1 for y in range(-16, 16) for x in range(-16, 16) if round(math.hypot(x, y)) == cycles)
    assert math.exp(spectrum[0, cycles - 1]) == pytest.approx(size**2 / 2 / ring, rel=1e-3)
    noise = torch.randn(200, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.3
    assert metrics.radial_spectrum(noise).exp().mean(0) == pytest.approx(torch.full((16,), 0.09).numpy(), rel=0.05)


def test_spectrum_distance_is_by_class():
    """Offsets of 1 and 3 in two classes: (1 + 9) / 2, whatever the class sizes."""
    spectra, labels = normal(6, 5), torch.tensor([0, 0, 0, 0, 1, 1])
    moved = spectra + torch.where(labels == 0, 1.0, 3.0)[:, None]
    assert metrics.spectrum_distance(spectra, labels, moved, labels) == pytest.approx(5.0)
    with pytest.raises(GtRError, match="no picture of class 1"):
        metrics.spectrum_distance(spectra, labels, moved, labels * 0)


@pytest.mark.parametrize(
    "freedom, quantile",
    [
        (1, 12.706204736),
        (2, 4.302652730),
        (3, 3.182446305),
        (4, 2.776445105),
        (5, 2.570581836),
        (9, 2.262157163),
        (10, 2.228138852),
        (30, 2.042272456),
        (1000, 1.962339081),
    ],
)
def test_student_quantiles(freedom, quantile):
    """The tables' 97.5 % points."""
    assert metrics.student_quantile(0.975, freedom) == pytest.approx(quantile, abs=2e-9)


def test_intervals():
    found = metrics.interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3) and found.half == pytest.approx(4.302652730 / 3**0.5)
    assert metrics.interval([5.0]).half is None and not metrics.interval([5.0]).clear
    difference = metrics.paired([10.0, 20.0, 30.0], [9.0, 18.9, 29.1])
    assert difference.mean == pytest.approx(1.0) and difference.clear
    assert not metrics.interval([10.0, 20.0, 30.0]).clear
    with pytest.raises(GtRError, match="same seeds"):
        metrics.paired([1.0], [1.0, 2.0])


def test_intervals_cover_the_truth():
    """95 of 100 intervals of 3 values hold the mean they were drawn with."""
    rows = normal(2000, 3, 5).tolist()
    covered = sum(not metrics.interval(row).clear for row in rows) / len(rows)
    assert covered == pytest.approx(0.95, abs=0.02)


@pytest.fixture(scope="module")
def extractor() -> Classifier:
    return randomised(Classifier(SPEC), 1).eval()


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_extractor_shapes(extractor):
    features = extractor.features(pictures(2))
    assert features.shape == (2, 12)
    assert {name: tuple(s.shape) for name, s in extractor(pictures(2)).items()} == {
        "class": (2, 3),
        "hue": (2, 4),
        "phase": (2, 2),
    }
    with pytest.raises(GtRError, match="judges 32 x 32 pixels, found 16 x 8"):
        extractor.features(torch.zeros(1, 3, 8, 16))


def test_extractor_file(extractor, tmp_path):
    save_classifier(tmp_path / "judge.safetensors", extractor)
    again = load_classifier(tmp_path / "judge.safetensors")
    assert again.spec == SPEC and not again.training
    assert digest(again.state_dict()) == digest(extractor.state_dict())
    assert torch.equal(again.features(pictures(2)), extractor.features(pictures(2)))
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
def test_bad_extractor_files(change, words, extractor, tmp_path):
    metadata = {CLASSIFIER_KEY: json.dumps(FIELDS | change)}
    save_file(extractor.state_dict(), tmp_path / "x.safetensors", metadata)
    with pytest.raises(GtRError, match=words) as caught:
        load_classifier(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_not_an_extractor(extractor, tmp_path):
    save_file(extractor.state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(GtRError, match="is not an extractor"):
        load_classifier(tmp_path / "x.safetensors")
    save_file(extractor.state_dict(), tmp_path / "x.safetensors", {CLASSIFIER_KEY: json.dumps({"size": 32})})
    with pytest.raises(GtRError, match="incomplete"):
        load_classifier(tmp_path / "x.safetensors")


def test_a_judge_measures_pictures_as_they_are_stored(extractor):
    judge, images, labels = ClassifierFeatures(extractor), pictures(5), torch.tensor([0, 1, 2, 0, 1])
    measured = judge.measure(images, labels)
    stored = ((images + 1) * 127.5).round().byte()
    assert torch.equal(quantized(stored.float() / 127.5 - 1), quantized(images))
    assert torch.allclose(measured.features, extractor.features(stored.float() / 127.5 - 1), atol=1e-6)
    assert measured.scores.shape == (5, 3) and measured.spectra.shape == (5, 16)
    chances = extractor(quantized(images))["phase"].softmax(1).max(1).values
    assert torch.allclose(measured.confidence[:, 1], chances)
    halves = [judge.measure(images[:2], labels[:2]), judge.measure(images[2:], labels[2:])]
    assert torch.allclose(joined(halves).features, measured.features, atol=1e-6)


def test_reference_file(extractor, tmp_path):
    judge, path = ClassifierFeatures(extractor), tmp_path / "real.safetensors"
    labels = torch.arange(12) % 3
    real = make_reference(judge, ((pictures(6, k), labels[6 * k : 6 * k + 6]) for k in range(2)))
    save_features(path, real, judge.identity)
    again = load_reference(path, judge)
    assert torch.equal(again.labels, labels) and torch.equal(again.features, real.features.half().float())
    assert torch.allclose(again.spectra, real.spectra, atol=0.01)
    other = ClassifierFeatures(randomised(Classifier(SPEC), 2))
    with pytest.raises(GtRError, match="another extractor"):
        load_reference(path, other)
    renamed = Classifier(replace(SPEC, accuracy={}))
    renamed.load_state_dict(extractor.state_dict())
    assert ClassifierFeatures(renamed).identity == judge.identity
    save_file({"features": torch.zeros(2, 3)}, path)
    with pytest.raises(GtRError, match="does not hold measured pictures"):
        load_reference(path, judge)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"features": torch.zeros(11, 12)}, "one row per picture"),
        ({"labels": torch.full((12,), 3)}, "expected 3 classes"),
        ({"features": torch.full((12, 12), math.nan)}, "NaN"),
        ({"labels": torch.full((12,), -1)}, "negative labels"),
        ({"scores": torch.zeros(12, 4)}, "expected 3 classes"),
    ],
)
def test_damaged_references(change, words, extractor, tmp_path):
    judge, path = ClassifierFeatures(extractor), tmp_path / "real.safetensors"
    save_features(path, replace(judge.measure(pictures(12), torch.arange(12) % 3), **change), judge.identity)
    with pytest.raises(GtRError, match=words):
        load_reference(path, judge)


def test_balanced_draws(extractor):
    measured = ClassifierFeatures(extractor).measure(pictures(30), torch.arange(30) % 3)
    mask = measured.balanced(8, seed=1)
    assert measured.labels[mask].bincount().tolist() == [3, 3, 2]
    assert torch.equal(mask, measured.balanced(8, seed=1)) and not torch.equal(mask, measured.balanced(8, seed=2))
    assert len(measured.take(~mask)) == 22
    with pytest.raises(GtRError, match="class 0, 11 are needed"):
        measured.balanced(31, seed=0)
