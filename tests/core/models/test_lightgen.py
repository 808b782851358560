"""LightGen: parity with upstream on recorded numbers, layouts, positions, schedules."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints.checkpoint import load_model, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.costs.flops import count_plan, report
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.lightgen import LIGHTGEN, LightGen, infer_lightgen_spec
from gtr_pack.gtr_core.noise import SeededNoise, image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.plans.plan import make_plan, plan_from_sequences
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule, cosine_counts
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.recorded import RecordedNoise, error, positions
from torch.utils.flop_counter import FlopCounterMode

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
SIZES = {"256": (16, 16), "128x256": (8, 16), "256x128": (16, 8), "512": (32, 32), "allmasked": (16, 16)}
SMALL = Schedule("small", "gtr", (3, 2, 2, 1), diffusion=(6, 4, 4), decoder_scope="stage")


@pytest.fixture(scope="module")
def weights(golden_weights):
    return golden_weights("lightgen_tiny_fp16")


@pytest.fixture(scope="module")
def model(weights) -> LightGen:
    spec = infer_lightgen_spec({name: tuple(t.shape) for name, t in weights.items()}, heads=3)
    model = LightGen(replace(spec, text_length=7))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def test_text(model, golden):
    g = golden("lightgen_tiny_backbone")
    assert error(model.embed_condition(g["text_in"], torch.float32), g["text_out"]) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_backbone(size, golden, model):
    g = golden("lightgen_tiny_backbone")
    grid, tokens, mask = SIZES[size], g[f"{size}_tokens"], g[f"{size}_mask"]
    known, masked = positions(mask, False), positions(mask, True)
    encoded = model.encode(tokens, known, grid)
    if known.shape[1]:
        expected = g[f"{size}_enc"]
        assert error(encoded, expected) < 1e-5
    decoded = model.decode(encoded, known, masked, grid)
    text, order = g["text_out"][: len(tokens)], torch.cat([known, masked], 1)
    z = model.read_text(decoded, order, text, grid)
    stride = 8 if size == "512" else 1
    for ours, theirs in ((decoded, g[f"{size}_dec"]), (z, g[f"{size}_z"])):
        raster = torch.empty_like(ours).scatter(1, order[..., None].expand_as(ours), ours)
        assert error(raster[:, ::stride], theirs) < 1e-5


def test_targets_and_both_halves(golden, model):
    """The forward pass: text read at the targets only, both conditions at once."""
    g = golden("lightgen_tiny_backbone")
    known, masked = positions(g["256_mask"], False), positions(g["256_mask"], True)
    null = model.null_condition(g["text_out"])
    z, z_uncond = model(
        g["256_tokens"],
        known,
        masked[:, 3:20],
        torch.cat([masked[:, :3], masked[:, 20:]], 1),
        [g["text_out"], null],
        (16, 16),
    )
    rows = masked[:, 3:20, None].expand(-1, -1, z.shape[-1])
    assert error(z, g["256_z"].gather(1, rows)) < 1e-5
    assert error(z_uncond, g["256_z_uncond"].gather(1, rows)) < 1e-5


@pytest.mark.parametrize("size, grid, stride", [("128x256", (8, 16), 1), ("512", (32, 32), 8)])
def test_positions(size, grid, stride, golden, model):
    table = model.positions(model.encoder_pos_embed_learned, grid, torch.zeros(1))
    assert error(table[::stride], golden("lightgen_tiny_backbone")[f"{size}_pos_enc"][0]) < 1e-5


def test_corrected_positions_differ_for_non_square_pictures_only(model, weights):
    fixed = LightGen(replace(model.spec, corrected_positions=True))
    fixed.load_state_dict(weights)
    table = model.encoder_pos_embed_learned
    like = torch.zeros(1)
    for grid in ((16, 16), (32, 32), (20, 20)):
        assert torch.equal(fixed.positions(table, grid, like), model.positions(table, grid, like))
    wide, upstream = fixed.positions(table, (8, 16), like), model.positions(table, (8, 16), like)
    assert not torch.allclose(wide, upstream)
    # The corrected grid is the transpose of upstream's table of the turned picture.
    turned = model.positions(table, (16, 8), like).view(8, 16, -1)
    assert torch.equal(wide.view(8, 16, -1), turned)


@pytest.mark.parametrize(
    "case, grid, scale", [("256", (16, 16), Guidance(4.0, "constant")), ("128x256", (8, 16), Guidance(3.0, "linear"))]
)
def test_full_loop(case, grid, scale, golden, model):
    g, tokens = golden(f"lightgen_tiny_sample_{case}"), grid[0] * grid[1]
    schedule = Schedule("recorded", "random", (4,), diffusion=(10, 10, 10))
    plan = plan_from_sequences(schedule, grid, [g["orders"].numpy()[:, ::-1]], [cosine_counts(tokens, 4)])
    out = sample(model, plan, g["text_in"], RecordedNoise(g, 1), guidance=scale)
    c = 4
    latent = g["latent"].view(1, c, grid[0], 2, grid[1], 2).permute(0, 2, 4, 1, 3, 5).reshape(1, tokens, 4 * c)
    assert error(out, latent) < 1e-3
    for index, step in enumerate(plan.steps):
        assert scale.at(step.progress) == pytest.approx(g["cfg_iter"][index].item(), abs=1e-12)


def test_layout():
    layouts = json.loads((GOLDEN / "state_dict_layouts.json").read_text())
    shapes = {name: tuple(shape) for name, shape in layouts["lightgen_large_d8_w1536"].items()}
    model = LightGen(LIGHTGEN, device="meta")
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == shapes
    assert infer_lightgen_spec(shapes) == LIGHTGEN


@pytest.mark.parametrize("name, ratio", [("gtr-lightgen", 3.32), ("gtr-lightgen-fast", 3.82)])
def test_presets_fit_the_papers_ratios(name, ratio):
    facts = report(preset(name), LIGHTGEN, fts=FTS())
    assert facts["speedup"] == pytest.approx(ratio, rel=0.05)
    assert preset(name).stages == 4


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (64, 64), (24, 40)])
@pytest.mark.parametrize("name", ["lightgen-origin", "gtr-lightgen", "gtr-lightgen-fast"])
def test_plans_of_every_size(name, grid):
    plan = make_plan(preset(name), grid, (0,))
    assert sorted(np.concatenate([s.positions[0] for s in plan.steps])) == list(range(grid[0] * grid[1]))


def test_flops_of_the_plain_implementation():
    """Upstream's way, run on the meta device: both halves through everything, text at every position."""
    spec = replace(LIGHTGEN, encoder_depth=2, decoder_depth=1, cross_depth=2)
    model = LightGen(spec, device="meta").requires_grad_(False)
    plan = make_plan(Schedule("s", "gtr", (2, 2, 1), diffusion=(3, 2, 2)), (16, 16), (0,))
    with FlopCounterMode(display=False) as counter:
        for step in plan.steps:
            known, order = (torch.zeros(2, n, dtype=torch.int64, device="meta") for n in (step.known.shape[1], 256))
            encoded = model.encode(torch.zeros(2, 256, 64, device="meta"), known, (16, 16))
            decoded = model.decode(encoded, known, order[:, step.known.shape[1] :], (16, 16))
            z = model.read_text(decoded, order, torch.zeros(2, 128, 1024, device="meta"), (16, 16))
            for _ in range(step.diffusion_steps):
                rows = z[:, : step.tokens].flatten(0, 1)
                model.head(torch.zeros(len(rows), 64, device="meta"), torch.zeros(len(rows), device="meta"), rows)
    assert counter.get_total_flops() == pytest.approx(count_plan(plan, spec).total, rel=1e-3)


def run(model, text, seeds, **settings):
    plan = make_plan(SMALL, (8, 8), seeds)
    return sample(
        model,
        plan,
        text,
        SeededNoise(tuple(seeds), model.spec.head.channels),
        **{"guidance": Guidance(2.0), "fts": FTS(0.3, 6)} | settings,
    )


def test_batch_seed_and_cancel_invariants(model, golden):
    text, seeds = golden("lightgen_tiny_backbone")["text_in"], image_seeds(9, 2)
    first = run(model, text, seeds)

    def cancel(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, text, seeds, callback=cancel)
    assert torch.equal(run(model, text, seeds), first)
    for k in range(2):
        alone = run(model, text[k : k + 1], seeds[k : k + 1])
        assert error(alone, first[k : k + 1]) < 1e-3
    assert not torch.equal(run(model, text, image_seeds(10, 2)), first)
    assert not torch.equal(run(model, text.flip(0), seeds), first)


def test_a_negative_prompt_replaces_the_learned_empty_text(model, golden):
    text = golden("lightgen_tiny_backbone")["text_in"]
    plain = run(model, text, (1, 2))
    assert not torch.equal(run(model, text, (1, 2), negative=text.flip(0)), plain)
    # Guidance away from the prompt itself is no guidance.
    assert error(run(model, text, (1, 2), negative=text), run(model, text, (1, 2), guidance=Guidance(1.0))) < 1e-3


def test_published_checkpoints(weights, tmp_path):
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
    assert checkpoint.weights == "model" and checkpoint.warning is None
    spec, tensors = load_model(checkpoint, heads=3)
    assert spec.name == "lightgen" and all(torch.equal(tensors[name], t) for name, t in weights.items())
    assert torch.equal(read_checkpoint(path, weights="ema").tensors["mask_token"], weights["mask_token"] + 1)
    convert(path, tmp_path / "lightgen.safetensors", heads=3, dtype="float16")
    again, _ = load_model(read_checkpoint(tmp_path / "lightgen.safetensors"))
    assert again == spec


def test_a_grid_without_tokens_is_refused(model):
    with pytest.raises(GtRError, match="at least 1 x 1"):
        model.spec.check_grid((0, 4))


def test_the_reference_way_gives_the_same(model, golden):
    """Upstream's doubled evaluation, against computing the text-free part once and the text at the targets only."""
    text = golden("lightgen_tiny_backbone")["text_in"]
    ours, plain = run(model, text, (1, 2)), run(model, text, (1, 2), cache=Reference())
    assert error(ours, plain) < 1e-3
