"""How a run evaluates its model, against the plainest way at the same noise, and what it does not compute twice."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.device import Machine, Runtime
from gtr_pack.gtr_core.models.mar import EmbeddedLabels
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan, plan_from_sequences
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.evaluator import shared_first_step
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_tests.recorded import error
from gtr_tests.runs import inputs_of, positions_of, run

GRID = (8, 8)
STAGES = Schedule("stages", "gtr", (3, 2, 2), diffusion=(9, 5, 5), decoder_scope="stage")
FULL = Schedule("full", "gtr", (2, 1, 1), diffusion=(6, 4, 4))
RANDOM = Schedule("random", "random", (5,), diffusion=(6, 6, 6))
CLIPPED = Schedule("clipped", "random", (3,), diffusion=(30, 5, 5), profile="disa-linear", max_timestep=950)
GUIDANCE = Guidance(2.5)
PLAIN = Method(RANDOM, GUIDANCE)
ONE_AT_A_TIME = Runtime(machine=Machine(part_bytes=1))


def both_ways(model, method, condition, **settings) -> float:
    """How far a run is from the reference."""
    ours = run(model, method, condition, grid=GRID, **settings)
    return error(ours, run(model, replace(method, cache=Reference()), condition, grid=GRID, **settings))


@pytest.mark.parametrize("schedule", [STAGES, FULL, RANDOM, CLIPPED], ids=lambda schedule: schedule.name)
@pytest.mark.parametrize(
    "labels, scale", [([4], 2.5), ([1, 7, 1], 2.5), ([2, 2], 2.5), ([2, 2], 1.0), ([5, 6], 1.0), ([-1, -1], 3.0)]
)
def test_mar_equals_the_reference(schedule, labels, scale, tiny_mar):
    method = Method(schedule, Guidance(scale), FTS(0.2, 11))
    assert both_ways(tiny_mar, method, torch.tensor(labels)) < 1e-3


@pytest.mark.parametrize(
    "fts",
    [FTS(0.3, 12, "all"), FTS(0.5, 3), FTS(0.3, 5, "random"), FTS(1.0, 8)],
    ids=["all", "fewer steps", "as many steps", "no others"],
)
def test_a_reconstruction_with_fts_equals_the_reference(fts, tiny_mar):
    assert both_ways(tiny_mar, Method(STAGES, GUIDANCE, fts), torch.tensor([3, 8])) < 1e-3


@pytest.mark.parametrize("schedule", [STAGES, RANDOM], ids=lambda schedule: schedule.name)
def test_a_revision_equals_the_reference(schedule, tiny_mar):
    assert both_ways(tiny_mar, Method(schedule, GUIDANCE, FTS(0.2, 11), revise=0.25), torch.tensor([3, 8])) < 1e-3


def test_a_revision_changes_what_it_draws_again(tiny_mar):
    """All other tokens are those of the run without it."""
    method, labels = Method(STAGES, GUIDANCE), torch.tensor([3, 8])
    once, revised = (run(tiny_mar, replace(method, revise=share), labels, grid=GRID) for share in (0.0, 0.25))
    again = make_plan(replace(method, revise=0.25), GRID, (3, 4)).steps[-1].targets
    changed = torch.zeros(2, 64, dtype=torch.bool).scatter(1, torch.from_numpy(again), True)
    assert torch.equal(once[~changed], revised[~changed]) and (once[changed] != revised[changed]).any(-1).all()


def test_known_tokens_and_a_negative_equal_the_reference(tiny_mar):
    unknown = np.zeros((8, 8), bool)
    unknown[1:6, 2:7] = True
    tokens = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
    method = Method(STAGES, GUIDANCE, temperature=0.9)
    settings = dict(unknown=unknown, tokens=tokens, negative=torch.tensor([2, 2]))
    assert both_ways(tiny_mar, method, torch.tensor([3, 8]), **settings) < 1e-3


@pytest.mark.parametrize("batch, scale", [(1, 2.0), (2, 2.0), (2, 1.0)])
def test_lightgen_equals_the_reference(batch, scale, lightgen, golden):
    text = golden("lightgen_tiny_backbone")["text_in"][:batch]
    for schedule in (STAGES, RANDOM):
        assert both_ways(lightgen, Method(schedule, Guidance(scale), FTS(0.3, 6)), text) < 1e-3


def test_a_chain_takes_fewer_evaluations(tiny_mar):
    """The modulations of a chain come from few products, and only the head's small layers run per step."""
    head, labels = tiny_mar.head, torch.tensor([3])
    layer = head.res_blocks[0].adaLN_modulation[1]

    def both(module):
        return [
            len(inputs_of(module, lambda: run(tiny_mar, replace(PLAIN, cache=cache), labels)))
            for cache in (None, Reference())
        ]

    few, many = both(layer)
    assert many == 5 * 6 and few < many
    assert both(head.time_embed) == [5, 5 * 6] and both(head) == [5 * 6, 5 * 6]


@pytest.mark.parametrize("labels, rows", [([3, 4, 5], 4), ([3, 3, 3], 2), ([3], 2)])
def test_the_first_step_is_shared(labels, rows, tiny_mar):
    """The unconditional branch and every class that all images share are evaluated once."""
    shapes = inputs_of(tiny_mar.encoder_blocks[0], lambda: run(tiny_mar, PLAIN, torch.tensor(labels)))
    assert [shape[0] for shape in shapes] == [rows] + [2 * len(labels)] * 4


def test_a_first_step_is_shared_only_where_it_is_one():
    sequences = [np.array([[0, 1, 2, 3], [3, 2, 1, 0]]), np.array([[4, 5], [4, 5]])]
    method = Method(replace(STAGES, steps=(2, 1)))
    masked, places = shared_first_step(plan_from_sequences(method, (2, 3), sequences, [[2, 2], [2]]))
    assert masked.tolist() == [[0, 1, 2, 3]] and places.tolist() == [[0, 1], [2, 3]]
    sequences[0][1] = [5, 2, 1, 0]
    sequences[1][1] = [3, 4]
    assert shared_first_step(plan_from_sequences(method, (2, 3), sequences, [[2, 2], [2]])) is None


def test_the_last_block_runs_at_the_targets_only(tiny_mar):
    plan = make_plan(PLAIN, GRID, (3,))
    shapes = inputs_of(tiny_mar.decoder_blocks[-1].mlp, lambda: run(tiny_mar, PLAIN, torch.tensor([3])))
    assert [shape[1] for shape in shapes] == [step.tokens for step in plan.steps]


def test_lightgen_reads_its_text_once_per_run(lightgen, golden):
    text = golden("lightgen_tiny_backbone")["text_in"]

    def inputs(module):
        return inputs_of(module, lambda: run(lightgen, PLAIN, text, grid=GRID))

    assert len(inputs(lightgen.cross_attn_blocks[0].attn.kv)) == 1
    assert len(inputs(lightgen.encoder_blocks[0])) == 4
    assert inputs(lightgen.decoder_blocks[0])[0][0] == 1


@pytest.mark.parametrize("labels, evaluations", [([3, 4, 5], [1] * 4 + [2] * 12), ([3, 3, 3], [1] * 2 + [2] * 12)])
def test_a_processor_takes_a_few_images_at_once(labels, evaluations, tiny_mar):
    """Here one, in both branches of guidance; of a shared first step one row."""
    labels = torch.tensor(labels)
    expected = run(tiny_mar, PLAIN, labels)
    assert error(run(tiny_mar, PLAIN, labels, runtime=ONE_AT_A_TIME), expected) < 1e-3
    shapes = inputs_of(tiny_mar.decoder_blocks[0], lambda: run(tiny_mar, PLAIN, labels, runtime=ONE_AT_A_TIME))
    assert [shape[0] for shape in shapes] == evaluations


def test_lightgen_on_a_processor_takes_a_few_images_at_once(lightgen, golden):
    text, method = golden("lightgen_tiny_backbone")["text_in"], Method(STAGES, GUIDANCE)
    settings = dict(grid=GRID, runtime=ONE_AT_A_TIME)
    assert error(run(lightgen, method, text, **settings), run(lightgen, method, text, grid=GRID)) < 1e-3
    shapes = inputs_of(lightgen.cross_attn_blocks[0], lambda: run(lightgen, method, text, **settings))
    assert [shape[0] for shape in shapes] == [2] * 2 * sum(STAGES.steps)


def test_bfloat16_in_the_transformer_stays_close(tiny_mar):
    """The effect on conditioning vectors: rounding of bfloat16, while head and chain are float32."""
    labels, plan = torch.tensor([3, 4]), make_plan(Method(STAGES), GRID, (1, 2))
    tokens = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
    low_precision = copy.deepcopy(tiny_mar).to(torch.bfloat16)
    z, z_rounded = (
        model(
            tokens.to(dtype), positions_of(plan.steps[3]), EmbeddedLabels((model.embed_labels(labels, dtype),)), GRID
        )[0].float()
        for model, dtype in ((tiny_mar, torch.float32), (low_precision, torch.bfloat16))
    )
    assert 0 < error(z_rounded, z) < 0.1
