"""The quality measures against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation import metrics
from torch import Tensor


def normal(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(n: int, dim: int, seed: int = 0) -> Tensor:
    """Rows with mean 0 and covariance 1 exactly."""
    x = normal(n, dim, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_the_frechet_distance_of_known_gaussians_is_the_closed_form():
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


def test_the_frechet_distance_needs_no_full_rank():
    """Covariances without full rank, as few images of many features have: two lines at right angles."""
    line = whitened(20, 2)[:, :1]
    x, y = torch.cat([line, 0 * line], 1), torch.cat([0 * line, line], 1)
    assert metrics.frechet(x, y) == pytest.approx(2.0, rel=1e-6)
    with pytest.raises(GtRError, match="at least 2"):
        metrics.frechet(x[:1], y)


def test_the_kernel_distance_is_that_computed_by_hand():
    """Scalars: k(x, y) = (x y + 1)^3."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    within = 1.0 + 7.0**3  # mean of k over pairs of different rows
    between = (1 + 1 + 3.0**3 + 4.0**3) / 4
    assert metrics.kernel_distance(a, b) == pytest.approx(within - 2 * between)


def test_the_kernel_distance_is_unbiased_and_chunked(monkeypatch):
    draws = [metrics.kernel_distance(normal(20, 4, 2 * k), normal(20, 4, 2 * k + 1)) for k in range(300)]
    assert abs(sum(draws) / 300) < 3 * torch.tensor(draws).std() / 300**0.5 and min(draws) < 0
    a, b = normal(40, 4), normal(30, 4, 1) + 1
    whole, subset = metrics.kernel_distance(a, b), metrics.kernel_distance(a, b, subset=25, subsets=200)
    assert subset == pytest.approx(whole, rel=0.1)
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert metrics.kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_accuracy_and_inception_score_have_their_limits():
    certain = torch.eye(4).repeat(3, 1) * 1000
    labels = torch.arange(4).repeat(3)
    assert metrics.accuracy(certain, labels) == 1 and metrics.accuracy(certain, (labels + 1) % 4) == 0
    assert metrics.inception_score(certain) == pytest.approx(4)
    assert metrics.inception_score(torch.zeros(5, 4)) == pytest.approx(1)
    assert metrics.inception_score(certain[:1].repeat(5, 1)) == pytest.approx(1)
    half = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log()  # p = (3/4, 1/4) and back: the divergence is known
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert metrics.inception_score(half) == pytest.approx(math.exp(divergence))


def test_precision_and_recall_can_be_counted_on_a_line(monkeypatch):
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


def test_the_spectrum_finds_a_wave_and_is_flat_for_noise():
    size, cycles = 32, 5
    wave = torch.cos(2 * math.pi * cycles * torch.arange(size) / size).expand(1, 3, size, size)
    spectrum = metrics.radial_spectrum(wave)
    assert spectrum.shape == (1, size // 2) and spectrum.argmax() == cycles - 1
    ring = sum(1 for y in range(-16, 16) for x in range(-16, 16) if round(math.hypot(x, y)) == cycles)
    assert math.exp(spectrum[0, cycles - 1]) == pytest.approx(size**2 / 2 / ring, rel=1e-3)
    noise = torch.randn(200, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.3
    assert metrics.radial_spectrum(noise).exp().mean(0) == pytest.approx(torch.full((16,), 0.09).numpy(), rel=0.05)


def test_the_spectrum_distance_is_by_class():
    """Offsets of 1 and 3 in two classes: (1 + 9) / 2, whatever the class sizes."""
    spectra, labels = normal(6, 5), torch.tensor([0, 0, 0, 0, 1, 1])
    moved = spectra + torch.where(labels == 0, 1.0, 3.0)[:, None]
    assert metrics.spectrum_distance(spectra, labels, moved, labels) == pytest.approx(5.0)
    with pytest.raises(GtRError, match="no image of class 1"):
        metrics.spectrum_distance(spectra, labels, moved, labels * 0)


@pytest.mark.parametrize(
    "n, quantile",
    [
        (2, math.tan(0.475 * math.pi)),  # one degree of freedom: the Cauchy distribution
        (3, 0.95 / math.sqrt(2 * 0.975 * 0.025)),
        (4, 3.182446305),
        (5, 2.776445105),
        (6, 2.570581836),
        (10, 2.262157163),
        (11, 2.228138852),
        (31, 2.042272456),
        (1001, 1.962339081),
    ],
)
def test_the_half_width_of_an_interval_is_that_of_students_distribution(n: int, quantile: float):
    """The 97.5 % points, for 2 and 3 values in closed form, otherwise from the tables."""
    values = normal(n, 1, n)[:, 0].tolist()
    expected = quantile * torch.tensor(values, dtype=torch.float64).std().item() / math.sqrt(n)
    assert metrics.interval(values).half == pytest.approx(expected, rel=1e-9)


def test_an_interval_has_the_mean_and_the_number_of_its_values():
    found = metrics.interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n, type(found.half)) == (2.0, 3, float)


def test_a_single_value_has_no_interval_and_is_never_clear():
    found = metrics.interval([5.0])
    assert found.half is None and not found.clear and str(found) == "5"


def test_an_interval_tells_whether_a_difference_is_clear():
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
