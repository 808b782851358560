"""The engine of a run against the plainest way to run the model, at the same noise."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints import build_model
from gtr_pack.gtr_core.demo import DEMO_MAR
from gtr_pack.gtr_core.diffusion import loop as headloop
from gtr_pack.gtr_core.diffusion.chain import Chains, DiffusionSpec, chain
from gtr_pack.gtr_core.diffusion.cuda_graphs import (
    TOLERANCE,
    TOLERANCE_16_BIT,
    StepGraphs,
    advance_counted,
    disagreement,
)
from gtr_pack.gtr_core.diffusion.loop import HeadLoop, exact_steps, stretches
from gtr_pack.gtr_core.noise import SeededNoise, image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.plans.plan import make_plan, plan_from_sequences
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling import memory
from gtr_pack.gtr_core.sampling.evaluator import Direct, common_canvas
from gtr_pack.gtr_core.sampling.reference import Reference, ReferenceMAR
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.recorded import error

ROOT = Path(__file__).resolve().parents[3]
STAGES = Schedule("stages", "gtr", (3, 2, 2), diffusion=(9, 5, 5), decoder_scope="stage")
FULL = Schedule("full", "gtr", (2, 1, 1), diffusion=(6, 4, 4))
RANDOM = Schedule("random", "random", (5,), diffusion=(6, 6, 6))
CLIPPED = Schedule("clipped", "random", (3,), diffusion=(30, 5, 5), profile="disa-linear", max_timestep=950)


def run(model, schedule, condition, *, unknown=None, tokens=None, **settings):
    seeds = image_seeds(3, len(condition))
    plan = make_plan(schedule, (8, 8), seeds, unknown=unknown)
    return sample(
        model,
        plan,
        condition,
        SeededNoise(seeds, model.spec.head.channels),
        tokens=tokens,
        **{"guidance": Guidance(2.5)} | settings,
    )


@pytest.mark.parametrize("schedule", [STAGES, FULL, RANDOM, CLIPPED], ids=lambda schedule: schedule.name)
@pytest.mark.parametrize(
    "labels, scale", [([4], 2.5), ([1, 7, 1], 2.5), ([2, 2], 2.5), ([2, 2], 1.0), ([5, 6], 1.0), ([-1, -1], 3.0)]
)
def test_mar(schedule, labels, scale, tiny_mar):
    settings = dict(guidance=Guidance(scale), fts=FTS(0.2, 11))
    ours = run(tiny_mar, schedule, torch.tensor(labels), **settings)
    assert error(ours, run(tiny_mar, schedule, torch.tensor(labels), cache=Reference(), **settings)) < 1e-3


@pytest.mark.parametrize(
    "fts",
    [FTS(0.3, 12, "all"), FTS(0.5, 3), FTS(0.3, 5, "random"), FTS(1.0, 8)],
    ids=["all", "fewer steps", "as many steps", "no others"],
)
def test_reconstruction(fts, tiny_mar):
    labels = torch.tensor([3, 8])
    ours = run(tiny_mar, STAGES, labels, fts=fts)
    assert error(ours, run(tiny_mar, STAGES, labels, fts=fts, cache=Reference())) < 1e-3


def test_known_tokens_and_a_negative(tiny_mar):
    unknown = np.zeros((8, 8), bool)
    unknown[1:6, 2:7] = True
    tokens = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
    settings = dict(unknown=unknown, tokens=tokens, negative=torch.tensor([2, 2]), temperature=0.9)
    ours = run(tiny_mar, STAGES, torch.tensor([3, 8]), **settings)
    assert error(ours, run(tiny_mar, STAGES, torch.tensor([3, 8]), cache=Reference(), **settings)) < 1e-3


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_chains_of_different_lengths(rows, scale, tiny_mar, monkeypatch):
    """Teacher-forced: one AR step's chains together and in turn, whatever the size of a chunk."""
    monkeypatch.setattr(headloop, "CHUNK_ROWS", rows)
    generator, halves = torch.Generator().manual_seed(2), 2 if scale != 1 else 1
    z = tuple(torch.randn(9, 64, generator=generator) for _ in range(halves))
    chains = Chains(
        ((2, chain(50)), (4, chain(20)), (3, chain(1))),
        torch.randn(9, 16, generator=generator),
        torch.randn(50, 9, 16, generator=generator),
    )
    seen = []
    ours = Direct(tiny_mar, None).diffuse(z, chains, scale, 0.9, lambda j, total: seen.append((j, total)))
    plain = ReferenceMAR(tiny_mar, None).diffuse(z, chains, scale, 0.9, lambda j, total: None)
    assert error(ours, plain) < 5e-5
    assert seen == [(j, 50) for j in range(1, 51)]


def test_the_rows_that_still_run_are_the_first_ones():
    assert list(stretches([(7, chain(50)), (57, chain(20))])) == [(0, 20, 64), (20, 50, 7)]
    assert list(stretches([(3, chain(5)), (4, chain(5))])) == [(0, 5, 7)]


def evaluations(module, action) -> list[torch.Size]:
    """Shapes of what goes into a module."""
    shapes = []
    handle = module.register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    action()
    handle.remove()
    return shapes


def test_fewer_evaluations(tiny_mar):
    """The modulations of a chain come from few products, and only the head's small layers run per step."""
    head, labels = tiny_mar.head, torch.tensor([3])
    layer = head.res_blocks[0].adaLN_modulation[1]

    def both(module):
        return [
            len(evaluations(module, lambda: run(tiny_mar, RANDOM, labels, cache=cache)))
            for cache in (None, Reference())
        ]

    few, many = both(layer)
    assert many == 5 * 6 and few < many
    assert both(head.time_embed) == [5, 5 * 6] and both(head) == [5 * 6, 5 * 6]


@pytest.mark.parametrize("labels, rows", [([3, 4, 5], 4), ([3, 3, 3], 2), ([3], 2)])
def test_the_empty_canvas_is_shared(labels, rows, tiny_mar):
    """In the first AR step the unconditional half and every class that all images share are evaluated once."""
    shapes = evaluations(tiny_mar.encoder_blocks[0], lambda: run(tiny_mar, RANDOM, torch.tensor(labels)))
    assert [shape[0] for shape in shapes] == [rows] + [2 * len(labels)] * 4


def test_the_last_block_runs_at_the_targets_only(tiny_mar):
    plan = make_plan(RANDOM, (8, 8), (3,))
    shapes = evaluations(tiny_mar.decoder_blocks[-1].mlp, lambda: run(tiny_mar, RANDOM, torch.tensor([3])))
    assert [shape[1] for shape in shapes] == [step.tokens for step in plan.steps]


@pytest.mark.parametrize("labels, evaluations_of", [([3, 4, 5], [1] * 4 + [2] * 12), ([3, 3, 3], [1] * 2 + [2] * 12)])
def test_a_processor_takes_a_few_images_at_once(labels, evaluations_of, tiny_mar, monkeypatch):
    """Here one, in both halves of guidance; of the shared canvas one row."""
    labels, expected = torch.tensor(labels), run(tiny_mar, RANDOM, torch.tensor(labels))
    monkeypatch.setattr(memory, "PART_BYTES", 1)
    assert error(run(tiny_mar, RANDOM, labels), expected) < 1e-3
    shapes = evaluations(tiny_mar.decoder_blocks[0], lambda: run(tiny_mar, RANDOM, labels))
    assert [shape[0] for shape in shapes] == evaluations_of


def test_lightgen_on_a_processor_takes_a_few_images_at_once(lightgen, golden, monkeypatch):
    text = golden("lightgen_tiny_backbone")["text_in"]
    expected = run(lightgen, STAGES, text)
    monkeypatch.setattr(memory, "PART_BYTES", 1)
    assert error(run(lightgen, STAGES, text), expected) < 1e-3
    shapes = evaluations(lightgen.cross_attn_blocks[0], lambda: run(lightgen, STAGES, text))
    assert [shape[0] for shape in shapes] == [2] * 2 * sum(STAGES.steps)


def test_a_canvas_is_shared_only_where_it_is_one():
    sequences = [np.array([[0, 1, 2, 3], [3, 2, 1, 0]]), np.array([[4, 5], [4, 5]])]
    schedule = replace(STAGES, steps=(2, 1))
    masked, places = common_canvas(plan_from_sequences(schedule, (2, 3), sequences, [[2, 2], [2]]))
    assert masked.tolist() == [[0, 1, 2, 3]] and places.tolist() == [[0, 1], [2, 3]]
    sequences[0][1] = [5, 2, 1, 0]
    sequences[1][1] = [3, 4]
    assert common_canvas(plan_from_sequences(schedule, (2, 3), sequences, [[2, 2], [2]])) is None


@pytest.mark.parametrize("batch, scale", [(1, 2.0), (2, 2.0), (2, 1.0)])
def test_lightgen(batch, scale, lightgen, golden):
    text = golden("lightgen_tiny_backbone")["text_in"][:batch]
    settings = dict(guidance=Guidance(scale), fts=FTS(0.3, 6))
    for schedule in (STAGES, RANDOM):
        ours = run(lightgen, schedule, text, **settings)
        assert error(ours, run(lightgen, schedule, text, cache=Reference(), **settings)) < 1e-3


def test_lightgen_reads_its_text_once_per_run(lightgen, golden):
    text = golden("lightgen_tiny_backbone")["text_in"]
    layer = lightgen.cross_attn_blocks[0].attn.kv
    assert len(evaluations(layer, lambda: run(lightgen, RANDOM, text))) == 1
    assert len(evaluations(lightgen.encoder_blocks[0], lambda: run(lightgen, RANDOM, text))) == 4
    first = evaluations(lightgen.decoder_blocks[0], lambda: run(lightgen, RANDOM, text))[0]
    assert first[0] == 1


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_step_that_a_graph_records(scale, tiny_mar):
    """On buffers filled up to a bucket, with a counter for the step; here without recording."""
    generator, halves = torch.Generator().manual_seed(2), 2 if scale != 1 else 1
    z = tuple(torch.randn(140, 64, generator=generator) for _ in range(halves))
    chains = Chains(
        ((3, chain(60)), (12, chain(40)), (125, chain(7))),
        torch.randn(140, 16, generator=generator),
        torch.randn(60, 140, 16, generator=generator),
    )
    recorded, seen = StepGraphs(tiny_mar.head, capture=False), []
    loop = HeadLoop(tiny_mar.head, z, chains, scale, 0.9)
    ours = loop.run(lambda j, total: seen.append(j), recorded)
    assert error(ours, ReferenceMAR(tiny_mar, None).diffuse(z, chains, scale, 0.9, lambda j, total: None)) < 5e-5
    assert seen == list(range(1, 61))
    assert set(recorded.graphs) == {(8, halves), (16, halves)}  # and none for 140 tokens


@pytest.mark.parametrize("schedule, count", [((50,), 1), ((100, 20), 1), ((5, 3, 1), 1), ((1,), 0)])
def test_the_first_step_amplifies(schedule, count):
    groups = [(1, chain(steps)) for steps in schedule]
    assert exact_steps(groups) == count


def test_a_clipped_chain_amplifies_less():
    """DiSA's clip: 1.2 with 50 steps, 5.0 with 5 (docs/upstream.md 1.7)."""
    assert [exact_steps([(1, chain(steps, DiffusionSpec(max_timestep=950)))]) for steps in (50, 20, 5)] == [0, 0, 1]


@pytest.fixture(scope="module")
def demo_model():
    """The built-in model, on the base process of the published ones."""
    model = build_model(DEMO_MAR)
    model.spec = replace(model.spec, diffusion=DiffusionSpec())
    return model


@pytest.fixture(params=[1.0, 3.0])
def first_step(request, demo_model):
    """A function that runs the diffusion of an AR step, with a head in 16 bit and graphs or without: tokens (n, C)."""
    model, scale, generator = demo_model, request.param, torch.Generator().manual_seed(2)
    step = make_plan(preset("step-8"), model.spec.grid, (1,)).steps[0]
    tables = [torch.from_numpy(t) for t in (step.known, step.positions, step.context)]
    labels = [torch.tensor([3]), torch.tensor([-1])][: 1 if scale == 1 else 2]
    z = model(torch.zeros(1, 256, 16), *tables, [model.embed_condition(each, torch.float32) for each in labels])
    n = step.tokens
    chains = Chains(
        ((1, chain(50)), (n - 1, chain(20))),
        torch.randn(n, 16, generator=generator),
        torch.randn(50, n, 16, generator=generator),
    )

    def diffuse(low_precision=None, graphs=None):
        return HeadLoop(model.head, tuple(half[0] for half in z), chains, scale, 1.0, low_precision).run(
            lambda j, total: None, graphs
        )

    return diffuse


def test_a_head_in_16_bit_where_nothing_amplifies_its_rounding(first_step, demo_model, monkeypatch):
    """Against float32. The first step in bfloat16 as well is many times worse."""
    exact, low_precision = first_step(), demo_model.head.low_precision(torch.bfloat16)
    found = (first_step(low_precision) - exact).abs().mean()
    monkeypatch.setattr(headloop, "AMPLIFICATION", float("inf"))
    careless = (first_step(low_precision) - exact).abs().mean()
    print(f"mean error {found:.4f}, with the first step {careless:.4f}, of {exact.std():.2f}")
    assert 0 < found < 0.02 * exact.std() and careless > 50 * found


def test_the_step_that_a_graph_records_in_16_bit(first_step, demo_model):
    low_precision = demo_model.head.low_precision(torch.bfloat16)
    assert error(first_step(low_precision, StepGraphs(low_precision, capture=False)), first_step(low_precision)) < 1e-2


@pytest.mark.parametrize("change", [0.0, 0.1, float("nan")])
def test_kernels_that_differ_are_found_out(change, tiny_mar):
    """What decides whether Triton's step is used on a device."""

    def other(head, x, modulations, table, noise, scale, counter, halves):
        advance_counted(head, x, modulations, table, noise + change, scale, counter, halves)

    found = disagreement(tiny_mar.head, torch.zeros(16, sum(tiny_mar.head.widths)), other, 2)
    assert found > TOLERANCE if change else found == 0


INTERPRETED = """
import torch
from gtr_core.diffusion.cuda_graphs import disagreement
from gtr_core.diffusion.head import DiffusionHead, HeadSpec
from gtr_core.diffusion.triton_kernels import advance

head, generator = DiffusionHead(HeadSpec(16, 64, 96, 3)).requires_grad_(False), torch.Generator().manual_seed(1)
for parameter in head.parameters():
    parameter.normal_(0.0, 0.2, generator=generator)
for each in (head, head.low_precision(torch.bfloat16)):
    print(*(disagreement(each, torch.zeros(16, sum(head.widths), dtype=each.dtype), advance, n) for n in (1, 2)))
"""


def test_the_step_in_triton():
    """Its kernels interpreted on the CPU, against torch's own operations."""
    pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for CUDA")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    exact, low_precision = (map(float, line.split()) for line in done.stdout.splitlines())
    assert all(0 < difference < 1e-5 for difference in exact)
    assert all(0 < difference < TOLERANCE_16_BIT for difference in low_precision)


def test_a_failure_to_record_is_one_line_and_no_more(tiny_mar, caplog):
    """The run goes on without graphs. (On a machine with CUDA the recording of a step on the CPU fails as well.)"""
    generator = torch.Generator().manual_seed(2)
    z = (torch.randn(4, 64, generator=generator),)
    chains = Chains(
        ((4, chain(5)),), torch.randn(4, 16, generator=generator), torch.randn(5, 4, 16, generator=generator)
    )
    failing = StepGraphs(tiny_mar.head)
    for _ in range(2):
        ours = HeadLoop(tiny_mar.head, z, chains, 1.0, 1.0).run(lambda j, total: None, failing)
    plain = HeadLoop(tiny_mar.head, z, chains, 1.0, 1.0).run(lambda j, total: None)
    assert torch.equal(ours, plain) and not failing.usable
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert caplog.records[0].getMessage().startswith("CUDA graphs are off for this run: ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.parametrize("labels", [[3], [3, 4, 5]])
def test_cuda_graphs(labels, tiny_mar, caplog):
    """Recorded and replayed, against the same run without them and the reference, on the device."""
    model = copy.deepcopy(tiny_mar).cuda()
    settings = dict(fts=FTS(0.2, 11), device="cuda")
    with_graphs = run(model, STAGES, torch.tensor(labels), accelerate=True, **settings)
    assert not caplog.records
    assert torch.equal(run(model, STAGES, torch.tensor(labels), accelerate=True, **settings), with_graphs)
    assert error(with_graphs, run(model, STAGES, torch.tensor(labels), **settings)) < 1e-3
    assert error(with_graphs, run(model, STAGES, torch.tensor(labels), cache=Reference(), **settings)) < 1e-3


def test_bfloat16_in_the_transformer_stays_close(tiny_mar):
    """The effect on conditioning vectors: rounding of bfloat16, while head and chain are float32."""
    labels, plan = torch.tensor([3, 4]), make_plan(STAGES, (8, 8), (1, 2))
    tables = [torch.from_numpy(t) for t in (plan.steps[3].known, plan.steps[3].positions, plan.steps[3].context)]
    tokens = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
    low_precision = copy.deepcopy(tiny_mar).to(torch.bfloat16)
    z, z_rounded = (
        model(tokens.to(dtype), *tables, [model.embed_condition(labels, dtype)])[0].float()
        for model, dtype in ((tiny_mar, torch.float32), (low_precision, torch.bfloat16))
    )
    assert 0 < error(z_rounded, z) < 0.1
