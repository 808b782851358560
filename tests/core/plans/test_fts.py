"""FTS: scores of known spectra, counts and the ablation variants."""

from __future__ import annotations

import math

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.plans.fts import FTS, frequency_scores, select


@pytest.mark.parametrize("dim", [16, 17])
def test_scores_are_the_weighted_amplitudes(dim):
    """A cosine of frequency n has amplitude D / 2 at n and nothing elsewhere (D at the Nyquist frequency)."""
    half = dim // 2
    for n in range(1, half + 1):
        wave = torch.cos(2 * math.pi * n * torch.arange(dim, dtype=torch.float64) / dim)
        amplitude = dim if 2 * n == dim else dim / 2
        assert frequency_scores(wave).item() == pytest.approx(amplitude * (1 + n / half), rel=1e-4)


def test_a_constant_has_no_score():
    assert frequency_scores(torch.full((3, 8), 2.5)).abs().max() < 1e-4


def test_scores_follow_the_definition():
    """Against the sum written out, with a plain discrete Fourier transform."""
    z = torch.randn(4, 12, generator=torch.Generator().manual_seed(2))
    n, k = torch.arange(1, 7, dtype=torch.float64), torch.arange(12, dtype=torch.float64)
    basis = torch.exp(-2j * math.pi * n[:, None] * k[None] / 12)
    amplitude = (basis[None] * z[:, None].double()).sum(-1).abs()
    torch.testing.assert_close(frequency_scores(z), (amplitude * (1 + n / 6)).sum(-1).float())


@pytest.mark.parametrize(
    "fraction, tokens, count", [(0.1, 64, 7), (0.1, 70, 7), (0.1, 4, 1), (1.0, 9, 9), (0.01, 64, 1)]
)
def test_counts_round_up(fraction, tokens, count):
    assert FTS(fraction).count(tokens) == count


def spectrum_rows() -> torch.Tensor:
    """(1, 8, 16): row r is a cosine of frequency r + 1, so the score rises with the row."""
    steps = torch.arange(16) / 16
    return torch.stack([torch.cos(2 * math.pi * n * steps) * (2 if n < 8 else 1) for n in range(1, 9)])[None]


@pytest.mark.parametrize("selection, expected", [("high", [6, 7]), ("low", [0, 1]), ("random", [2, 5])])
def test_which_rows_are_selected(selection, expected):
    permutation = torch.tensor([[5, 2, 0, 1, 3, 4, 6, 7]])
    detail, rest = select(FTS(0.25, 50, selection), spectrum_rows(), permutation)
    assert detail[0].tolist() == expected
    assert sorted(detail[0].tolist() + rest[0].tolist()) == list(range(8))


def test_all_selects_all():
    detail, rest = select(FTS(0.25, 50, "all"), spectrum_rows(), torch.arange(8)[None])
    assert detail.shape == (1, 8) and rest.shape == (1, 0)


@pytest.mark.parametrize(
    "settings",
    [dict(fraction=0.0), dict(fraction=1.5), dict(fraction=float("nan")), dict(detail_steps=0), dict(selection="best")],
)
def test_wrong_settings_say_what_is_expected(settings):
    with pytest.raises(GtRError, match="expected"):
        FTS(**settings)
