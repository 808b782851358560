"""LightGen: parity with upstream on recorded numbers, layouts, positions, schedules."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.lightgen import LIGHTGEN, LightGen, infer_lightgen_spec
from gtr_pack.gtr_core.models.model import Positions
from gtr_pack.gtr_core.noise import image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan, plan_from_sequences
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule, cosine_counts
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.recorded import RecordedNoise, error, positions
from gtr_tests.runs import run as run_method

SIZES = {"256": (16, 16), "128x256": (8, 16), "256x128": (16, 8), "512": (32, 32), "allmasked": (16, 16)}
SMALL = Schedule("small", "gtr", (3, 2, 2, 1), diffusion=(6, 4, 4), decoder_scope="stage")
METHOD = Method(SMALL, Guidance(2.0), FTS(0.3, 6))


@pytest.fixture(scope="module")
def weights(golden_weights):
    return golden_weights("lightgen_tiny_fp16")


@pytest.fixture
def text(golden):
    """States of two prompts."""
    return golden("lightgen_tiny_backbone")["text_in"]


def run(model, text, seeds=(1, 2), method=METHOD, **settings):
    return run_method(model, method, text, seeds, grid=(8, 8), **settings)


def test_the_text_embedding_equals_upstreams(lightgen, golden, text):
    embedded, null = lightgen.embed((text, None), "cpu", torch.float32)
    assert error(embedded, golden("lightgen_tiny_backbone")["text_out"]) < 1e-5
    assert torch.equal(null, lightgen.fake_latent.expand_as(embedded))


@pytest.mark.parametrize("size", SIZES)
def test_encoder_decoder_and_cross_attention_equal_upstreams(size, golden, lightgen):
    g = golden("lightgen_tiny_backbone")
    grid, tokens, mask = SIZES[size], g[f"{size}_tokens"], g[f"{size}_mask"]
    known, masked = positions(mask, False), positions(mask, True)
    encoded = lightgen.encode(tokens, known, grid)
    if known.shape[1]:
        expected = g[f"{size}_enc"]
        assert error(encoded, expected) < 1e-5
    decoded = lightgen.decode(encoded, known, masked, grid)
    text, order = g["text_out"][: len(tokens)], torch.cat([known, masked], 1)
    z = lightgen.read(decoded, order, lightgen.remember(text), grid)
    stride = 8 if size == "512" else 1
    for ours, theirs in ((decoded, g[f"{size}_dec"]), (z, g[f"{size}_z"])):
        raster = torch.empty_like(ours).scatter(1, order[..., None].expand_as(ours), ours)
        assert error(raster[:, ::stride], theirs) < 1e-5


@pytest.mark.parametrize("way", ["forward", "reference"])
def test_targets_in_both_branches_equal_upstreams(way, golden, lightgen, text):
    """Forward reads the text at the targets only, for both conditions at once."""
    g = golden("lightgen_tiny_backbone")
    known, masked = positions(g["256_mask"], False), positions(g["256_mask"], True)
    some = Positions(known, masked[:, 3:20], torch.cat([masked[:, :3], masked[:, 20:]], 1))
    if way == "forward":
        z, z_uncond = lightgen(g["256_tokens"], some, lightgen.start((text, None)), (16, 16))
    else:
        embedded = lightgen.embed((text, None), "cpu", torch.float32)
        z, z_uncond = lightgen.reference(g["256_tokens"], some, embedded, (16, 16))
    rows = masked[:, 3:20, None].expand(-1, -1, z.shape[-1])
    assert error(z, g["256_z"].gather(1, rows)) < 1e-5
    assert error(z_uncond, g["256_z_uncond"].gather(1, rows)) < 1e-5


def test_a_memory_can_be_taken_apart(lightgen, text):
    memory = lightgen.start((text, text.flip(0)))
    part, alone = memory.first(1).images(slice(1, 2)), lightgen.start((text[1:],))
    assert (memory.branches, part.branches) == (2, 1)
    for ours, theirs in zip(part.stacked(), alone.stacked()):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size, grid, stride", [("128x256", (8, 16), 1), ("512", (32, 32), 8)])
def test_resized_positions_equal_upstreams(size, grid, stride, golden, lightgen):
    table = lightgen.positions(lightgen.encoder_pos_embed_learned, grid, torch.zeros(1))
    assert error(table[::stride], golden("lightgen_tiny_backbone")[f"{size}_pos_enc"][0]) < 1e-5


def test_corrected_positions_differ_for_non_square_images_only(lightgen, weights):
    fixed = LightGen(replace(lightgen.spec, corrected_positions=True))
    fixed.load_state_dict(weights)
    table = lightgen.encoder_pos_embed_learned
    like = torch.zeros(1)
    for grid in ((16, 16), (32, 32), (20, 20)):
        assert torch.equal(fixed.positions(table, grid, like), lightgen.positions(table, grid, like))
    wide, upstream = fixed.positions(table, (8, 16), like), lightgen.positions(table, (8, 16), like)
    assert not torch.allclose(wide, upstream)
    # The corrected grid is the transpose of upstream's table of the turned image.
    turned = lightgen.positions(table, (16, 8), like).view(8, 16, -1)
    assert torch.equal(wide.view(8, 16, -1), turned)


@pytest.mark.parametrize(
    "case, grid, guidance",
    [("256", (16, 16), Guidance(4.0, "constant")), ("128x256", (8, 16), Guidance(3.0, "linear"))],
)
def test_a_whole_run_equals_upstreams(case, grid, guidance, golden, lightgen):
    g, tokens = golden(f"lightgen_tiny_sample_{case}"), grid[0] * grid[1]
    method = Method(Schedule("recorded", "random", (4,), diffusion=(10, 10, 10)), guidance)
    plan = plan_from_sequences(method, grid, [g["orders"].numpy()[:, ::-1]], [cosine_counts(tokens, 4)])
    out = sample(lightgen, plan, g["text_in"], RecordedNoise(g, 1))
    c = 4
    latent = g["latent"].view(1, c, grid[0], 2, grid[1], 2).permute(0, 2, 4, 1, 3, 5).reshape(1, tokens, 4 * c)
    assert error(out, latent) < 1e-3
    for index, step in enumerate(plan.steps):
        assert step.scale == guidance.at(step.progress) == pytest.approx(g["cfg_iter"][index].item(), abs=1e-12)


def test_lightgen_has_the_published_layout(golden_layout):
    shapes = golden_layout("lightgen_large_d8_w1536")
    model = LightGen(LIGHTGEN, device="meta")
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == shapes
    assert infer_lightgen_spec(shapes) == LIGHTGEN


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (64, 64), (24, 40)])
@pytest.mark.parametrize("name", ["lightgen-origin", "gtr-lightgen", "gtr-lightgen-fast"])
def test_its_presets_plan_every_size(name, grid):
    plan = make_plan(Method(preset(name)), grid, (0,))
    assert sorted(np.concatenate([s.targets[0] for s in plan.steps])) == list(range(grid[0] * grid[1]))


def test_batch_seed_and_cancel_invariants_hold(lightgen, text):
    seeds = image_seeds(9, 2)
    first = run(lightgen, text, seeds)

    def cancel(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lightgen, text, seeds, callback=cancel)
    assert torch.equal(run(lightgen, text, seeds), first)
    for k in range(2):
        alone = run(lightgen, text[k : k + 1], seeds[k : k + 1])
        assert error(alone, first[k : k + 1]) < 1e-3
    assert not torch.equal(run(lightgen, text, image_seeds(10, 2)), first)
    assert not torch.equal(run(lightgen, text.flip(0), seeds), first)


def test_a_negative_prompt_replaces_the_learned_empty_text(lightgen, text):
    plain = run(lightgen, text)
    assert not torch.equal(run(lightgen, text, negative=text.flip(0)), plain)
    # Guidance away from the prompt itself is no guidance.
    unguided = run(lightgen, text, method=replace(METHOD, guidance=Guidance(1.0)))
    assert error(run(lightgen, text, negative=text), unguided) < 1e-3


def test_of_a_published_checkpoint_the_model_itself_is_taken(weights, tmp_path):
    """A pickle with both sets of weights and prefixes: upstream's scripts use `model`; EMA is a choice."""
    raw = {f"module.{name}": t for name, t in weights.items()}
    content = {
        "model": raw,
        "model_ema": {name: t + 1 for name, t in raw.items()},
        "optimizer": {"state": {}},
        "epoch": 3,
        "args": argparse.Namespace(model="fluid_large"),
    }
    path = tmp_path / "checkpoint-last.pth"
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    spec, tensors = checked_model(checkpoint, heads=3)
    assert checkpoint.weights == "model" and checkpoint.warning(spec) is None
    assert spec.name == "lightgen" and all(torch.equal(tensors[name], t) for name, t in weights.items())
    assert torch.equal(read_checkpoint(path, weights="ema").tensors["mask_token"], weights["mask_token"] + 1)
    convert(path, tmp_path / "lightgen.safetensors", heads=3, dtype="float16")
    again, _ = checked_model(read_checkpoint(tmp_path / "lightgen.safetensors"))
    assert again == spec


def test_a_grid_without_tokens_is_refused(lightgen):
    with pytest.raises(GtRError, match="at least 1 x 1"):
        lightgen.spec.check_grid((0, 4))
