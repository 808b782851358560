"""Measures of how good images are, on features, class scores and spectra; and how sure a measure is.

Everything is computed in float64. Inputs are tensors of rows, one per image; results are plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from ..errors import GtRError

CHUNK = 1024


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to features (n, F) and (m, F); FID is this on Inception's features."""
    return frechet_gaussians(*moments(a), *moments(b))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (F,) and unbiased covariance (F, F) of features (n, F)."""
    if len(features) < 2:
        raise GtRError(f"{len(features)} images: expected at least 2 to measure a spread; raise --images")
    features = features.double()
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], -1)


def frechet_gaussians(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)."""
    values, vectors = torch.linalg.eigh(cov_a.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b.double() @ root).clamp(min=0).sqrt().sum()
    shift = (mean_a.double() - mean_b.double()).square().sum()
    return max(0.0, float(shift + cov_a.trace() + cov_b.trace() - 2 * cross))


def kernel_distance(a: Tensor, b: Tensor, *, subset: int | None = None, subsets: int = 100, seed: int = 0) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x y / F + 1)^3; KID is this on Inception's features.

    Of all rows, or the mean over ``subsets`` random draws of ``subset`` rows. May be slightly negative.
    """
    a, b = a.double(), b.double()
    if subset is None:
        return _discrepancy(a, b)
    generator, size = torch.Generator().manual_seed(seed), min(subset, len(a), len(b))
    return fmean(
        _discrepancy(*(rows[torch.randperm(len(rows), generator=generator)[:size]] for rows in (a, b)))
        for _ in range(subsets)
    )


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of images whose largest class score (n, classes) is their label's (n,)."""
    return float((scores.argmax(1) == labels).double().mean())


def inception_score(scores: Tensor) -> float:
    """exp of the mean divergence of p(class | image) from p(class): 1 (nothing told) to the number of classes."""
    log_p = scores.double().log_softmax(1)
    marginal = log_p.exp().mean(0).clamp(min=torch.finfo(torch.float64).tiny)
    return math.exp((log_p.exp() * (log_p - marginal.log())).sum(1).mean())


def precision_recall(real: Tensor, made: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of features (n, F) and (m, F).

    Precision is the share of ``made`` rows that lie within the distance of some real row to its k-th neighbour among
    the real ones; recall is the same with the roles exchanged. Meaningful between methods for equal n and m.
    """
    if min(len(real), len(made)) <= k:
        raise GtRError(f"{len(real)} real and {len(made)} made images: expected more than {k} of each")
    real, made = real.double(), made.double()
    return _covered(made, real, k), _covered(real, made, k)


def spectrum_distance(a: Tensor, labels_a: Tensor, b: Tensor, labels_b: Tensor) -> float:
    """Mean squared difference of the class means of log spectra (n, K) and (m, K), over the classes of ``labels_a``."""
    distances = []
    for label in labels_a.unique():
        other = b[labels_b == label]
        if not len(other):
            raise GtRError(f"the reference has no image of class {int(label)}: make it from all classes")
        difference = a[labels_a == label].double().mean(0) - other.double().mean(0)
        distances.append(float(difference.square().mean()))
    return fmean(distances)


def radial_spectrum(images: Tensor) -> Tensor:
    """Images (n, 3, S, S) in [-1, 1] -> log power per spatial frequency 1 .. S / 2 (n, S / 2), mean over the colours.

    Each is the natural logarithm of the mean power of the frequencies nearest to that radius, in units of a pixel's
    variance; the error of rounding to 8 bits is added, so that flat images have a spectrum.
    """
    size = images.shape[-1]
    power = torch.fft.fft2(images.double()).abs().square().mean(1).flatten(1) / size**2
    axis = torch.fft.fftfreq(size, 1 / size, device=images.device)
    ring = (axis[:, None] ** 2 + axis**2).sqrt().round().long().flatten()
    counts = torch.bincount(ring)
    sums = power.new_zeros(len(images), len(counts)).index_add_(1, ring, power)
    return (sums / counts + (2 / 255) ** 2 / 12)[:, 1 : size // 2 + 1].log()


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values (one per seed) and the half width of its 95 % interval; None for a single value."""

    mean: float
    half: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if self.half is None else f"{self.mean:.4g} ± {self.half:.2g}"

    @property
    def clear(self) -> bool:
        """Whether 0 is outside: of a difference, that it is more than noise."""
        return self.half is not None and abs(self.mean) > self.half


def interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of ``values``."""
    n = len(values)
    if n < 2:
        return Interval(fmean(values), None, n)
    from scipy import stats  # takes longer to import than all else here

    return Interval(fmean(values), float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n), n)


def paired(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The interval of the differences a - b of two methods over the same seeds."""
    if len(a) != len(b):
        raise GtRError(f"{len(a)} and {len(b)} values cannot be paired: expected the same seeds")
    return interval([x - y for x, y in zip(a, b)])


def _discrepancy(a: Tensor, b: Tensor) -> float:
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise GtRError(f"{n} and {m} images: expected at least 2 of each")
    own = sum(
        (_kernel_sum(rows, rows) - float(_kernel((rows * rows).sum(1), rows.shape[1]).sum()))
        / (len(rows) * (len(rows) - 1))
        for rows in (a, b)
    )
    return own - 2 * _kernel_sum(a, b) / (n * m)


def _kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1) ** 3


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    return sum(float(_kernel(rows @ b.T, a.shape[1]).sum()) for rows in a.split(CHUNK))


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of points within some centre's distance to its k-th nearest other centre."""
    radii = torch.cat([_distances(rows, centres).kthvalue(k + 1, dim=1).values for rows in centres.split(CHUNK)])
    inside = [(_distances(rows, centres) <= radii).any(1) for rows in points.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Between rows, without the shortcut through products, which would blur small distances."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
