"""Parity with upstream on recorded numbers; tolerances are those stated with the recordings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.diffusion.chain import chain, denoise, guided
from gtr_pack.gtr_core.diffusion.head import timestep_features
from gtr_pack.gtr_core.models.mar import MAR, infer_mar_spec, mar_spec
from gtr_pack.gtr_core.models.vae import KL16, KLVAE, infer_vae_spec
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.plans.plan import plan_from_sequences
from gtr_pack.gtr_core.plans.schedule import Schedule, cosine_counts
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.recorded import RecordedNoise, error, positions

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LAYOUTS = json.loads((GOLDEN / "state_dict_layouts.json").read_text())


@pytest.mark.parametrize("case", ["a", "full", "last"])
def test_backbone(case, golden, tiny_mar):
    g = golden("mar_tiny_backbone")
    condition = tiny_mar.embed_condition(torch.tensor([3, 7, -1]), torch.float32)
    assert torch.equal(condition, g["class_embedding"])
    known, masked = positions(g[f"{case}_mask"], False), positions(g[f"{case}_mask"], True)
    assert error(tiny_mar.encode(g["tokens"], known, condition), g[f"{case}_enc"]) < 1e-5
    (z,) = tiny_mar(g["tokens"], known, masked, masked[:, :0], [condition])
    assert error(z, g[f"{case}_z"].gather(1, masked[..., None].expand_as(z))) < 1e-5


def test_a_part_of_the_targets_gets_the_same_z(golden, tiny_mar):
    g = golden("mar_tiny_backbone")
    condition = tiny_mar.embed_condition(torch.tensor([3, 7, -1]), torch.float32)
    known, masked = positions(g["a_mask"], False), positions(g["a_mask"], True)
    (z,) = tiny_mar(g["tokens"], known, masked[:, 5:9], torch.cat([masked[:, :5], masked[:, 9:]], 1), [condition])
    assert error(z, g["a_z"].gather(1, masked[:, 5:9, None].expand_as(z))) < 1e-5


def test_head(golden, tiny_mar):
    g = golden("mar_tiny_diffhead")
    head = tiny_mar.head
    assert error(timestep_features(g["t"], 256), g["t_freq"]) < 1e-5
    assert error(head.time_embed(g["t"], torch.float32), g["t_emb"]) < 1e-5
    block = head.res_blocks[0](head.input_proj(g["x"]), g["t_emb"] + head.cond_embed(g["c"]))
    assert error(block, g["res_block0"]) < 1e-5
    assert error(head(g["x"], g["t"], g["c"]), g["out"]) < 1e-5


def test_guidance_mixes_eps_only(golden, tiny_mar):
    g = golden("mar_tiny_diffhead")
    # The recording has its own timestep in every row, so the head is given those.
    eps, v = guided(lambda x, t, z: tiny_mar.head(x, g["t"], z), g["x"][:3], g["t"][:3], g["c"][:3], g["c"][3:], 2.5)
    assert error(eps, g["out_cfg_2p5"][:3, :16]) < 1e-5
    assert error(v, g["out_cfg_2p5"][:3, 16:]) < 1e-5


@pytest.mark.parametrize(
    "case, scale, temperature", [("cfg3_t1", 3.0, 1.0), ("cfg3_t095", 3.0, 0.95), ("nocfg_t1", 1.0, 1.0)]
)
def test_chain_of_100_steps(case, scale, temperature, golden, tiny_mar):
    g = golden("mar_tiny_diffsample")
    rows = 6 if scale != 1 else 12
    uncond = g["z"][6:] if scale != 1 else None
    out = denoise(
        lambda i, x, t: guided(tiny_mar.head, x, t, g["z"][:rows], uncond, scale),
        chain(100),
        g[f"{case}_init"],
        g[f"{case}_steps"][:, :rows],
        temperature=temperature,
    )
    assert error(out, g[f"{case}_out"][:rows]) < 5e-5


LOOPS = {
    "lin": ([3, 7], Guidance(3.0, "linear"), 1.0),
    "const": ([1], Guidance(4.0, "constant"), 0.95),
    "uncond": ([-1, -1], Guidance(1.0), 1.0),
}


def recorded_plan(g, steps: int):
    sequence = g["orders"].numpy()[:, ::-1]
    schedule = Schedule("recorded", "random", (steps,), diffusion=(20, 20, 20))
    return plan_from_sequences(schedule, (8, 8), [sequence], [cosine_counts(64, steps)])


@pytest.mark.parametrize("case", LOOPS)
def test_full_loop(case, golden, tiny_mar):
    g = golden(f"mar_tiny_sample_{case}")
    labels, guidance, temperature = LOOPS[case]
    plan = recorded_plan(g, len(g["cfg_iter"]))
    states = []
    out = sample(
        tiny_mar,
        plan,
        torch.tensor(labels),
        RecordedNoise(g, len(labels)),
        guidance=guidance,
        temperature=temperature,
        callback=lambda p: states.append(p.tokens.clone()) if p.diffusion_step == 0 else None,
    )
    latent = g["latent"].flatten(2).transpose(1, 2)
    assert error(out, latent) < 1e-3
    for index, step in enumerate(plan.steps):
        assert np.array_equal(positions(g["masks_in"][index], False).numpy(), step.known)
        assert guidance.at(step.progress) == pytest.approx(g["cfg_iter"][index].item(), abs=1e-12)
        if index:
            assert error(states[index], g["tokens_in"][index]) < 1e-3


@pytest.mark.parametrize("case", LOOPS)
def test_teacher_forced_steps(case, golden, tiny_mar):
    """Every AR step from the recorded state: tighter than the whole loop, in which errors grow."""
    g = golden(f"mar_tiny_sample_{case}")
    labels, guidance, temperature = LOOPS[case]
    plan = recorded_plan(g, len(g["cfg_iter"]))
    for index, step in enumerate(plan.steps):
        one = replace(plan, steps=(step,))
        noise = RecordedNoise({key.replace(f"it{index:02d}", "it00"): t for key, t in g.items()}, len(labels))
        out = sample(
            tiny_mar,
            one,
            torch.tensor(labels),
            noise,
            tokens=g["tokens_in"][index],
            guidance=guidance,
            temperature=temperature,
        )
        rows = torch.from_numpy(step.positions)[..., None].expand(-1, -1, 16)
        decoded = out.gather(1, rows).flatten(0, 1)
        assert error(decoded, g[f"it{index:02d}_sampled"][: len(decoded)]) < 1e-4


def test_vae(golden, golden_weights):
    g, weights = golden("vae_tiny"), golden_weights("vae_tiny_fp16")
    spec = infer_vae_spec({key: tuple(t.shape) for key, t in weights.items()})
    assert (spec.encoder_attention, spec.decoder_attention) == ((4,), ())
    vae = KLVAE(spec)
    vae.load_state_dict(weights)
    vae.eval().requires_grad_(False)
    for suffix in ("", "_nonsquare"):
        assert error(vae.decode(g[f"latent{suffix}"]), g[f"decoded{suffix}"]) < 1e-5
        mean, _ = vae.moments(g[f"image{suffix}"])
        assert error(mean, g[f"moments{suffix}"][:, :16]) < 1e-5
    mean, logvar = vae.moments(g["image"])
    assert error(mean, g["mean"]) < 1e-5 and error(logvar, g["logvar"]) < 1e-5


TABLES = {
    "betas": "betas",
    "alphas_cumprod": "alphas_cumprod",
    "sqrt_recip_alphas_cumprod": "sqrt_recip",
    "sqrt_recipm1_alphas_cumprod": "sqrt_recipm1",
    "posterior_mean_coef1": "mean_x0",
    "posterior_mean_coef2": "mean_x",
    "posterior_log_variance_clipped": "log_posterior_variance",
    "log_betas": "log_betas",
}


@pytest.mark.parametrize("steps", [1000, 100, 50, 25, 20, 10, 5])
def test_diffusion_tables(steps, golden):
    g, table = golden("diffusion_tables"), chain(steps)
    assert list(table.timesteps) == g[f"r{steps}_timestep_map"].tolist()
    for theirs, ours in TABLES.items():
        if f"r{steps}_{theirs}" in g:
            np.testing.assert_allclose(getattr(table, ours), g[f"r{steps}_{theirs}"].numpy(), rtol=1e-12)


def test_ar_schedules(golden):
    g = golden("ar_schedule")
    names = [key for key in g if key.endswith("_npred")]
    assert names
    for name in names:
        tokens, steps = (int(part[1:]) for part in name.split("_")[:2])
        counts = cosine_counts(tokens, steps)
        assert counts == g[name].tolist()
        masked = np.maximum(tokens - np.cumsum(counts), 1)
        np.testing.assert_allclose((tokens - masked) / tokens, g[name.replace("npred", "cfgfrac")].numpy(), atol=1e-12)


def test_upstream_orders_are_consumed_from_their_end(golden):
    orders = golden("orders")["np_seed0_len256_b4"].numpy().astype(np.int64)
    schedule = Schedule("origin", "random", (64,), diffusion=(100, 100, 100))
    plan = plan_from_sequences(schedule, (16, 16), [orders[:, ::-1]], [cosine_counts(256, 64)])
    for image in range(4):
        assert plan.steps[0].positions[image].tolist() == [orders[image, -1]]
        masked = 256 - sum(step.tokens for step in plan.steps[:50])
        assert sorted(plan.steps[49].context[image]) == sorted(orders[image, :masked])


@pytest.mark.parametrize("name, layout", [("mar-b", "mar_base"), ("mar-l", "mar_large"), ("mar-h", "mar_huge")])
def test_mar_layouts(name, layout):
    shapes = {key: tuple(shape) for key, shape in LAYOUTS[layout].items()}
    model = MAR(mar_spec(name), device="meta")
    assert {key: tuple(t.shape) for key, t in model.state_dict().items()} == shapes
    assert infer_mar_spec(shapes) == mar_spec(name)


def test_kl16_layout():
    shapes = {key: tuple(shape) for key, shape in LAYOUTS["kl16"].items()}
    with torch.device("meta"):
        vae = KLVAE(KL16)
    assert {key: tuple(t.shape) for key, t in vae.state_dict().items()} == shapes
    assert infer_vae_spec(shapes) == KL16
