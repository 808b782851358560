"""MAR as upstream runs it, on recorded numbers; tolerances are those stated with the recordings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.diffusion.chain import chain, denoise, guided
from gtr_pack.gtr_core.diffusion.head import timestep_features
from gtr_pack.gtr_core.models.mar import EmbeddedLabels
from gtr_pack.gtr_core.models.model import Positions
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import plan_from_sequences
from gtr_pack.gtr_core.plans.schedule import Schedule, cosine_counts
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.recorded import RecordedNoise, error, positions, recorded_plan

GRID = (8, 8)


@pytest.mark.parametrize("case", ["a", "full", "last"])
def test_encoder_and_decoder_equal_upstreams(case, golden, tiny_mar):
    g = golden("mar_tiny_backbone")
    condition = tiny_mar.embed_labels(torch.tensor([3, 7, -1]), torch.float32)
    assert torch.equal(condition, g["class_embedding"])
    known, masked = positions(g[f"{case}_mask"], False), positions(g[f"{case}_mask"], True)
    assert error(tiny_mar.encode(g["tokens"], known, condition), g[f"{case}_enc"]) < 1e-5
    (z,) = tiny_mar(g["tokens"], Positions(known, masked, masked[:, :0]), EmbeddedLabels((condition,)), GRID)
    assert error(z, g[f"{case}_z"].gather(1, masked[..., None].expand_as(z))) < 1e-5


def test_a_part_of_the_targets_gets_the_same_z(golden, tiny_mar):
    g = golden("mar_tiny_backbone")
    condition = tiny_mar.embed_labels(torch.tensor([3, 7, -1]), torch.float32)
    known, masked = positions(g["a_mask"], False), positions(g["a_mask"], True)
    some = Positions(known, masked[:, 5:9], torch.cat([masked[:, :5], masked[:, 9:]], 1))
    (z,) = tiny_mar(g["tokens"], some, EmbeddedLabels((condition,)), GRID)
    assert error(z, g["a_z"].gather(1, masked[:, 5:9, None].expand_as(z))) < 1e-5


def test_the_reference_is_upstreams_evaluation(golden, tiny_mar):
    g = golden("mar_tiny_backbone")
    conditional = tiny_mar.embed_labels(torch.tensor([3, 7, -1]), torch.float32)
    known, masked = positions(g["a_mask"], False), positions(g["a_mask"], True)
    for z in tiny_mar.reference(g["tokens"], Positions(known, masked, masked[:, :0]), [conditional] * 2, GRID):
        assert error(z, g["a_z"].gather(1, masked[..., None].expand_as(z))) < 1e-5


def test_the_head_equals_upstreams(golden, tiny_mar):
    g = golden("mar_tiny_diffhead")
    head = tiny_mar.head
    # Processors' exp differ in the last bit of a frequency, which up to 999 timesteps multiply.
    assert error(timestep_features(g["t"], 256), g["t_freq"]) < 1000 * torch.finfo(torch.float32).eps
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
def test_a_chain_of_100_steps_equals_upstreams(case, scale, temperature, golden, tiny_mar):
    g = golden("mar_tiny_diffsample")
    rows = 6 if scale != 1 else 12
    uncond = g["z"][6:] if scale != 1 else None
    out = denoise(
        lambda i, x, t: guided(tiny_mar.head, x, t, g["z"][:rows], uncond, scale),
        chain(100),
        g[f"{case}_init"],
        g[f"{case}_steps"][:, :rows] * temperature,
    )
    assert error(out, g[f"{case}_out"][:rows]) < 5e-5


LOOPS = {
    "lin": ([3, 7], Guidance(3.0, "linear"), 1.0),
    "const": ([1], Guidance(4.0, "constant"), 0.95),
    "uncond": ([-1, -1], Guidance(1.0), 1.0),
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_whole_run_equals_upstreams(case, golden, tiny_mar):
    g = golden(f"mar_tiny_sample_{case}")
    labels, guidance, temperature = LOOPS[case]
    plan = recorded_plan(g, GRID, guidance, temperature)
    states = []
    out = sample(
        tiny_mar,
        plan,
        torch.tensor(labels),
        RecordedNoise(g, len(labels)),
        callback=lambda p: states.append(p.tokens.clone()) if p.diffusion_step == 0 else None,
    )
    latent = g["latent"].flatten(2).transpose(1, 2)
    assert error(out, latent) < 1e-3
    for index, step in enumerate(plan.steps):
        assert np.array_equal(positions(g["masks_in"][index], False).numpy(), step.known)
        assert step.scale == guidance.at(step.progress) == pytest.approx(g["cfg_iter"][index].item(), abs=1e-12)
        if index:
            assert error(states[index], g["tokens_in"][index]) < 1e-3


@pytest.mark.parametrize("case", LOOPS)
def test_every_step_from_the_recorded_state_equals_upstreams(case, golden, tiny_mar):
    """Teacher-forced: tighter than the whole loop, in which errors grow."""
    g = golden(f"mar_tiny_sample_{case}")
    labels, guidance, temperature = LOOPS[case]
    plan = recorded_plan(g, GRID, guidance, temperature)
    for index, step in enumerate(plan.steps):
        one = replace(plan, steps=(step,))
        noise = RecordedNoise(g, len(labels))
        out = sample(tiny_mar, one, torch.tensor(labels), noise, tokens=g["tokens_in"][index])
        rows = torch.from_numpy(step.targets)[..., None].expand(-1, -1, 16)
        decoded = out.gather(1, rows).flatten(0, 1)
        assert error(decoded, g[f"it{index:02d}_sampled"][: len(decoded)]) < 1e-4


def test_upstream_orders_are_consumed_from_their_end(golden):
    orders = golden("orders")["np_seed0_len256_b4"].numpy().astype(np.int64)
    method = Method(Schedule("origin", "random", (64,), diffusion=(100, 100, 100)))
    plan = plan_from_sequences(method, (16, 16), [orders[:, ::-1]], [cosine_counts(256, 64)])
    for image in range(4):
        assert plan.steps[0].targets[image].tolist() == [orders[image, -1]]
        masked = 256 - sum(step.tokens for step in plan.steps[:50])
        assert sorted(plan.steps[49].context[image]) == sorted(orders[image, :masked])
