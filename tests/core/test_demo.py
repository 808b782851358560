"""The shipped demo model draws what it was trained on: far above chance, and finite."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.demo.data import CLASS_NAMES
from gtr_pack.demo.data import pictures as drawn
from gtr_pack.gtr_core.demo import CLASS_NAMES as SHIPPED_NAMES
from gtr_pack.gtr_core.demo import DEMO_MAR, DEMO_VAE
from gtr_pack.gtr_core.engine import Guidance
from gtr_pack.gtr_core.fts import FTS
from gtr_pack.gtr_core.pipeline import build_model, build_vae, decode_pictures, generate_latents
from gtr_pack.gtr_core.schedule import preset
from torch import Tensor

LABELS = tuple(range(10))


def spectra(pictures: Tensor) -> Tensor:
    """Unit vectors (n, F) of the amplitudes of brightness: what and how fine the pattern is, not where or what colour.

    pictures (n, 3, H, W) in [-1, 1].
    """
    light = pictures.mean(1)
    amplitude = torch.fft.rfft2(light - light.mean((1, 2), keepdim=True)).abs().flatten(1)
    return torch.nn.functional.normalize(amplitude.sqrt(), dim=1)


@pytest.fixture(scope="module")
def centroids() -> Tensor:
    """The mean spectrum of 60 drawn pictures per class."""
    labels = torch.arange(10).repeat_interleave(60)
    means = spectra(drawn(labels, torch.Generator().manual_seed(1))).view(10, 60, -1).mean(1)
    return torch.nn.functional.normalize(means, dim=1)


def accuracy(pictures: Tensor, labels: Tensor, centroids: Tensor) -> float:
    return ((spectra(pictures) @ centroids.T).argmax(1) == labels).float().mean().item()


def generated(name: str) -> Tensor:
    model, vae = build_model(DEMO_MAR), build_vae(DEMO_VAE)
    latents = generate_latents(model, preset(name), LABELS, 100, guidance=Guidance(3.0), fts=FTS())
    assert torch.isfinite(latents).all()
    return torch.from_numpy(decode_pictures(vae, latents)).permute(0, 3, 1, 2) / 127.5 - 1


def test_the_names_are_those_of_the_data():
    assert CLASS_NAMES == SHIPPED_NAMES == build_model(DEMO_MAR).spec.class_names


def test_the_measure_knows_drawn_pictures(centroids):
    labels = torch.arange(10).repeat_interleave(20)
    assert accuracy(drawn(labels, torch.Generator().manual_seed(2)), labels, centroids) > 0.9


def test_pictures_show_their_class(centroids):
    """One in ten would be chance."""
    pictures = generated("gtr-full")
    assert accuracy(pictures, torch.tensor(LABELS), centroids) > 0.6
