"""The demo: its data, its judge, and the shipped model, which draws what it was trained on."""

from __future__ import annotations

from dataclasses import replace

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

LABELS = torch.arange(10)


@pytest.fixture(scope="module")
def judge() -> Classifier:
    return load_classifier(DEMO_JUDGE)


def test_the_judge_knows_fresh_images(judge):
    """Every head gets nearly all of them right, as the file says of itself; half of them are torn by a fifth."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(200) % 10
    torn = (torch.rand(200, 16, 16, generator=generator) < 0.2) & (torch.arange(200) >= 100)[:, None, None]
    images, factors = data.images(labels, generator, torn)
    assert set(factors) == {*FACTORS, "seams"} and judge.spec.classes == CLASS_NAMES
    seams = factors.pop("seams").flatten(1).any(1).long()
    for name, scores in judge(images).items():
        truth = {"class": labels, "seams": seams, **factors}[name]
        least = 0.93 if name == "seams" else 0.97  # of some torn images hardly a token is torn
        assert (scores.argmax(1) == truth).float().mean() > least and judge.spec.accuracy[name] > least


def test_threads_join_rows_and_columns():
    """A row or column of tokens is the same everywhere but where the other kind crosses; none tells of another."""
    fields = data.threads(400, torch.Generator().manual_seed(0))[:, 0]
    assert fields.unique().tolist() == pytest.approx([data.WARP, 0.0, data.WEFT])
    rows, columns = fields[:, 4::8, 0] > 0, fields[:, 0, 4::8] < 0
    assert torch.equal(fields[:, 4::8, 3:].amin(2) > 0, rows)
    assert torch.equal(fields[:, 4::8, 4::8] < 0, columns[:, None] & ~rows[..., None])
    both = torch.cat([rows, columns], dim=1).double()
    assert (torch.corrcoef(both.T) - torch.eye(32)).abs().max() < 0.25 and 0.4 < both.mean() < 0.6


def test_seams_are_where_threads_break_off():
    torn = torch.zeros(20, 16, 16, dtype=torch.bool)
    torn[10:, 1, 2] = True  # a token of the background, whatever the class
    images, truth = data.images(LABELS.repeat(2), torch.Generator().manual_seed(3), torn)
    found = truth["seams"]
    assert not found[:10].any() and found[10:].any()
    around = torch.zeros(16, 16, dtype=torch.bool)
    around[1, 2] = around[1, 3] = around[2, 2] = True  # its own left and upper border, and those behind it
    assert not (found & ~around).any()
    assert images.shape == (20, 3, 128, 128)


def test_the_reference_is_of_this_judge(judge):
    real = load_reference(DEMO_REFERENCE, ClassifierFeatures(judge))
    assert real.labels.bincount().tolist() == [len(real) // 10] * 10


def test_factors_show_in_the_image():
    """Two images that differ in a single draw differ, whatever the class."""
    for layout in data.LAYOUTS.values():
        draw = data.choose(1, torch.Generator().manual_seed(1))
        for name, count in FACTORS.items():
            other = replace(draw, **{name: (getattr(draw, name) + 1) % count})
            assert (data.render(draw, layout) - data.render(other, layout)).abs().max() > 0.02


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
    """One in ten would be chance."""
    assert (judge(generated("gtr-full"))["class"].argmax(1) == LABELS).float().mean() > 0.6
