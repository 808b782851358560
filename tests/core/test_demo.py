"""The demo: its data, its judge, and the shipped model, which draws what it was trained on."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.demo import data
from gtr_pack.demo.data import CLASS_NAMES, FACTORS
from gtr_pack.gtr_core.checkpoints import load_model, load_vae
from gtr_pack.gtr_core.demo import CLASS_NAMES as SHIPPED_NAMES
from gtr_pack.gtr_core.demo import DEMO_JUDGE, DEMO_MAR, DEMO_REFERENCE, DEMO_VAE
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.evaluation.classifier import Classifier, load_classifier
from gtr_pack.gtr_core.evaluation.features import ClassifierFeatures, load_reference
from gtr_pack.gtr_core.pipeline import decode_images, generate_latents
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.presets import preset

LABELS = torch.arange(12)


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return load_classifier(DEMO_JUDGE)


def test_the_judge_knows_fresh_images(judge):
    """Every head gets nearly all of them right, as the file says of itself; bins of the hue touch each other."""
    labels = torch.arange(240) % len(CLASS_NAMES)
    images, factors = data.images(labels, torch.Generator().manual_seed(2))
    assert set(factors) == set(FACTORS) and judge.spec.classes == CLASS_NAMES
    for name, scores in judge(images).items():
        least = 0.85 if name == "hue" else 0.97
        right = (scores.argmax(1) == ({"class": labels} | factors)[name]).float().mean()
        assert right > least and judge.spec.accuracy[name] > least, name


@pytest.mark.slow
def test_coherence_tells_mixtures(judge):
    """Real images are one sprite; with a quarter to a half of another sprite of the class hardly any is."""
    labels = torch.arange(240) % len(CLASS_NAMES)
    draw = data.choose(labels, torch.Generator().manual_seed(3))
    rival = data.rivals(draw, torch.ones(240, dtype=torch.bool), torch.Generator().manual_seed(4))
    left = torch.zeros(240, 16, 16, dtype=torch.bool)
    left[..., :7] = True
    mixed, share = data.mixtures(draw, rival, left)
    mixed = mixed[(share > 0.25) & (share < 0.75)]
    measured = ClassifierFeatures(judge).measure(torch.cat([data.render(draw), mixed]), torch.zeros(240 + len(mixed)))
    assert len(mixed) > 100 and measured.coherent[:240].mean() > 0.95 and measured.coherent[240:].mean() < 0.1


def test_the_reference_is_of_this_judge(judge):
    real = load_reference(DEMO_REFERENCE, ClassifierFeatures(judge))
    assert real.labels.bincount().tolist() == [len(real) // 12] * 12


def generated(name: str) -> torch.Tensor:
    model, vae = load_model(DEMO_MAR), load_vae(DEMO_VAE)
    latents = generate_latents(model, Method(preset(name), Guidance(2.0), FTS()), LABELS.tolist(), 100)
    assert torch.isfinite(latents).all()
    return torch.from_numpy(decode_images(vae, latents)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.slow
def test_the_transformer_in_16_bit_draws_the_same_images():
    """Those of float32: their latents differ by a small share of their deviation, in the median image."""
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    exact, *rounded = (
        generate_latents(
            load_model(DEMO_MAR, dtype=kind), Method(preset("gtr-full")), range(3), 3, runtime=Runtime(dtype=kind)
        ).float()
        for kind in kinds
    )
    for latents, most in zip(rounded, (0.02, 0.005)):
        error = (exact - latents).square().mean((1, 2, 3)).sqrt().median() / exact.std()
        assert 0 < error < most


def test_the_names_are_those_of_the_data():
    assert CLASS_NAMES == SHIPPED_NAMES == load_model(DEMO_MAR).spec.class_names


@pytest.mark.slow
def test_images_show_their_class(judge):
    """One in twelve would be chance."""
    assert (judge(generated("gtr-full"))["class"].argmax(1) == LABELS).float().mean() > 0.6
