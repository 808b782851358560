"""The yardstick: everything is evaluated, as the original code does, and nothing is remembered."""

from __future__ import annotations

import torch
from gtr_pack.gtr_core.costs.flops import count_plan
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_tests.runs import inputs_of, run

RANDOM = Method(Schedule("random", "random", (5,), diffusion=(6, 6, 6)), Guidance(2.5), cache=Reference())


def test_every_block_runs_at_every_position(tiny_mar):
    """The buffer's too, of every image in both branches, at every AR step."""
    labels = torch.tensor([3, 3, 3])
    shapes = inputs_of(tiny_mar.decoder_blocks[-1].mlp, lambda: run(tiny_mar, RANDOM, labels))
    assert [shape[:2] for shape in shapes] == [(2 * 3, tiny_mar.spec.buffer + 64)] * 5


def test_every_diffusion_step_is_embedded_anew(tiny_mar):
    shapes = inputs_of(tiny_mar.head.time_embed, lambda: run(tiny_mar, RANDOM, torch.tensor([3])))
    plan = make_plan(RANDOM, (8, 8), (3,))
    assert [shape[0] for shape in shapes] == [2 * step.tokens for step in plan.steps for _ in range(6)]


def test_lightgens_text_is_read_at_every_step(lightgen, golden):
    text, layer = golden("lightgen_tiny_backbone")["text_in"], lightgen.cross_attn_blocks[0].attn.kv
    assert len(inputs_of(layer, lambda: run(lightgen, RANDOM, text, grid=(8, 8)))) == 5 * 2


def test_it_costs_what_a_full_evaluation_costs(tiny_mar):
    method = Method(RANDOM.schedule, Guidance(2.5), FTS())
    costs = [
        count_plan(make_plan(Method(method.schedule, method.guidance, method.fts, cache), (8, 8), (0,)), tiny_mar.spec)
        for cache in (None, Reference())
    ]
    assert costs[0] == costs[1] and Reference().summary(make_plan(method, (8, 8), (0,)), tiny_mar.spec) == ""
