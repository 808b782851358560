"""The demo's training and experiments, imported as their commands import them: from the repository's root."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "demo.data",
    "demo.judge",
    "demo.models",
    "demo.observations",
    "demo.pool",
    "demo.quality_page",
    "demo.runs",
    "demo.train_mar",
    "demo.train_vae",
    "gtr_core.models.latents",
)


@pytest.fixture(scope="module")
def demo() -> SimpleNamespace:
    sys.path.insert(0, str(ROOT))
    try:
        found = {name.rpartition(".")[2]: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(ROOT))
    return SimpleNamespace(**found)


@pytest.mark.slow
def test_training_resumes_bitwise(demo, tmp_path):
    """Four steps at once, and twice two, end in the same weights."""
    generator = torch.Generator().manual_seed(0)
    pool = demo.pool.Pool(
        torch.randn(8, 4, 32, 32, generator=generator), torch.full((8, 4, 32, 32), -4.0), torch.arange(8)
    )
    spec = demo.models.demo_mar_spec(demo.latents.LatentSpec(channels=4, stride=4, patch=2, scale=1.0))
    plan = demo.train_mar.MARPlan(batch=2, targets=8, steps=4, decay=2, log_every=1, save_every=2)
    for folder, counts in ((tmp_path / "once", (4,)), (tmp_path / "twice", (2, 4))):
        for count in counts:
            # The rate decays towards the planned end, so a run is stopped by a plan of fewer steps and as much decay.
            demo.train_mar.train_mar(folder, spec, pool, torch.device("cpu"), replace(plan, steps=count, decay=1))
    once, twice = (demo.runs.load(tmp_path / name / "mar.pt") for name in ("once", "twice"))
    assert once["step"] == twice["step"] == 4
    assert all(torch.equal(once["ema"][name], twice["ema"][name]) for name in once["ema"])
    assert [row["step"] for row in demo.runs.read_log(tmp_path / "twice" / "mar.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("origin, passed", [(0.4, True), (0.6, False)])
def test_the_gate_is_five_times_the_floor(demo, origin, passed):
    def row(name: str, value: float, difference: float) -> dict:
        figure = {"mean": value, "half": 0.01, "n": 3}
        return {
            "method": name,
            "figures": {"frechet": figure, "accuracy": {"mean": 0.97, "half": 0.01, "n": 3}},
            "difference": {"frechet": {"mean": difference, "half": 0.1, "n": 3, "clear": True}},
        }

    gate = {
        "rows": [row("origin", origin, 0), row("random-18", 1, 0.5), row("random-8", 2, 1.5)],
        "floor": row("real images", 0.1, 0),
        "images": 340,
        "seeds": [0, 1, 2],
        "together": {"images": 1020, "frechet": 0.2, "floor": 0.05},
    }
    assert demo.quality_page.verdict(gate)[0] == passed
    for fault in ({"images": 900}, {"frechet": 0.3}):
        assert not demo.quality_page.verdict(gate | {"together": gate["together"] | fault})[0]


def test_templates_of_the_demo_model_revise_and_others_do_not(demo):
    for path in (ROOT / "workflows" / "api").glob("*.json"):
        nodes = json.loads(path.read_text()).values()
        shares = {node["inputs"]["revise"] for node in nodes if node["class_type"] == "GtR_Sampler"}
        assert shares == {demo.models.REVISED if path.stem.startswith("demo") else 0}, path.name


def test_half_known_halves_are_halves(demo):
    for shape in ("checkerboard", "upper half"):
        assert demo.observations.half_known((16, 16), shape).sum() == 128


def test_token_sets_are_minorities(demo):
    """Scattered, torn and patchy: never clearly more than half of the tokens, and of all sizes."""
    for kind in (demo.judge.scattered, demo.judge.torn, demo.judge.patchy):
        shares = kind(300, torch.Generator().manual_seed(0)).float().mean((1, 2))
        assert shares.max() < 0.65 and shares.min() < 0.15 and 0.15 < shares.mean() < 0.4


def test_patches_have_the_share_that_was_drawn(demo):
    found = demo.judge.patchy(200, torch.Generator().manual_seed(1)).float().mean((1, 2))
    generator = torch.Generator().manual_seed(1)
    torch.randn(200, 1, 5, 5, generator=generator)
    assert (found - 0.5 * torch.rand(200, 1, generator=generator).flatten()).abs().max() < 0.01


def test_confidence_is_the_largest_probability_of_the_sprite_head(demo):
    """An extractor that says what an image is made of: three quarters of one sprite, one of another."""
    scores = torch.full((2, 48), -1e9)
    scores[0, 5], scores[0, 7], scores[1, 9] = math.log(0.75), math.log(0.25), 3.0
    found = demo.judge.sprite_confidence(lambda images: {"sprite": scores}, torch.zeros(2, 3, 128, 128))
    assert torch.allclose(found, torch.tensor([0.75, 1.0]))


def test_calibration_lets_real_images_pass(demo, monkeypatch):
    """The threshold is the lowest percent of what real images get: of any images with such a confidence, 99 % pass."""

    class Stub:  # a VAE whose latents are pixels
        def moments(self, images):
            return images[:, :, ::4, ::4], None

        def decode(self, latents):
            return latents

    shades = torch.Generator().manual_seed(2)
    monkeypatch.setattr(
        demo.judge, "sprite_confidence", lambda extractor, images: 0.9 + 0.1 * torch.rand(len(images), generator=shades)
    )
    found = demo.judge.calibrate(None, Stub(), torch.device("cpu"), count=400)
    assert 0.9 <= found.least < 0.91 and found.decoded >= 0.99 and found.real > 0.95
    assert list(found.mixtures) == [0.05, 0.1, 0.2, 0.3] and min(found.mixtures.values()) > 0.9


def test_attention_of_two_products(demo):
    q, k, v = torch.randn(3, 2, 3, 7, 16, generator=torch.Generator().manual_seed(0))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(demo.train_mar.attend(q, k, v), exact, atol=1e-5)


def test_the_heads_training_twin(demo):
    """The head in training gives what the head of the library gives, to bfloat16's precision."""
    generator = torch.Generator().manual_seed(0)
    spec = demo.models.demo_mar_spec(demo.latents.LatentSpec(channels=4, stride=4, patch=2, scale=1.0))
    head = demo.models.new_mar(spec, generator).head
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.08, generator=generator)
    z, x = torch.randn(5, spec.dim, generator=generator), torch.randn(10, 16, generator=generator)
    t = torch.randint(1000, (10,), generator=generator)
    exact, found = head(x, t, z.repeat(2, 1)), demo.train_mar.head_output(head, x, t, z, 2)
    assert (exact - found).square().mean().sqrt() < 0.02 * exact.std()


def test_a_decoder_settles_without_its_encoder(demo, tmp_path):
    """The last steps leave the encoder as it was, and the decoder gets errors of the size that was asked for."""
    plan = demo.train_vae.VAEPlan(phases=((2, 32, 4),), settle=2, log_every=1, save_every=2, warm_up=0)
    early = demo.train_vae.train_vae(tmp_path / "early", torch.device("cpu"), replace(plan, settle=0))
    late = demo.train_vae.train_vae(tmp_path / "late", torch.device("cpu"), plan)
    same = {name: torch.equal(value, early.state_dict()[name]) for name, value in late.state_dict().items()}
    assert all(equal == name.startswith(("encoder", "quant")) for name, equal in same.items())
    latents = torch.randn(400, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = demo.train_vae.with_errors(latents, plan, torch.Generator().manual_seed(1)) - latents
    assert noise.std((1, 2, 3)).max() < 1.2 * plan.errors and abs(noise.std() / plan.errors - 3**-0.5) < 0.05
