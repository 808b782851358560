"""FLOPs: the published totals, the presets' ratios, and agreement with torch's own counter."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.costs.flops import count_plan
from gtr_pack.gtr_core.models.mar import MAR, mar_spec
from gtr_pack.gtr_core.noise import SeededNoise
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_pack.gtr_core.sampling.sampler import sample
from torch.utils.flop_counter import FlopCounterMode

ORIGIN = {"mar-b": 14.65, "mar-l": 33.07, "mar-h": 65.18}


def flops(capsys, *arguments) -> dict:
    assert main(["flops", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("model", ORIGIN)
def test_the_origin(model, capsys):
    facts = flops(capsys, "--model", model, "--preset", "origin")
    assert facts["tflops"]["total"] == pytest.approx(ORIGIN[model], rel=0.005)
    assert facts["speedup"] == 1 and set(facts) == {"model", "preset", "tflops", "origin_total", "speedup"}
    assert sum(facts["tflops"][part] for part in ("encoder", "decoder", "head")) == pytest.approx(
        facts["tflops"]["total"]
    )


@pytest.mark.parametrize("model", ORIGIN)
@pytest.mark.parametrize(
    "name, low, high",
    [
        ("gtr-paper", 3.6, 3.8),
        ("gtr-full", 3.6, 3.8),
        ("gtr-extreme", 6.0, 6.6),
        ("gtr-best-4x", 4.0, 4.3),
        ("gtr-best-6x", 6.0, 6.6),
    ],
)
def test_the_presets(model, name, low, high, capsys):
    assert low < flops(capsys, "--model", model, "--preset", name)["speedup"] < high


class MetaNoise(SeededNoise):
    def draw(self, step, tokens, diffusion_steps):
        shape = (len(self.seeds), tokens, self.channels)
        return torch.empty(shape, device="meta"), torch.empty(diffusion_steps, *shape, device="meta")


SHORT = (6, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("steps, diffusion", [(24, 16), (12, 21)])
def test_agreement_with_torchs_counter_under_lazymar(steps, diffusion):
    spec = replace(mar_spec("mar-b"), encoder_depth=2, decoder_depth=5)
    plan = make_plan(Schedule("x", "random", (steps,), diffusion=(diffusion,) * 3), spec.grid, (0,))
    model = MAR(spec, device="meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        sample(
            model,
            plan,
            torch.zeros(1, dtype=torch.int64),
            MetaNoise((0,), 16),
            device="meta",
            cache=LazyMAR(),
            guidance=Guidance(3.0),
        )
    assert counter.get_total_flops() == pytest.approx(count_plan(plan, spec, cache=LazyMAR()).total, rel=1e-3)


def test_the_papers_table(capsys):
    rows = flops(capsys, "--all")["rows"]
    assert len(rows) == 33
    for row in rows:
        assert abs(row["deviation"]) < 0.025 or row["preset"] == "lazymar"
    # LazyMAR's own page: 69.06 T and 2.83 x for MAR-H at this setting.
    lazy = next(row for row in rows if (row["preset"], row["model"]) == ("lazymar", "mar-h"))
    assert lazy["speedup"] == pytest.approx(2.83, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule, guided, fts",
    [
        (Schedule("stage", "gtr", (3, 2, 2), diffusion=SHORT, decoder_scope="stage"), True, FTS(0.1, 8)),
        (Schedule("full", "gtr", (2, 2, 1), diffusion=SHORT), True, FTS(0.3, 7, "all")),
        (Schedule("unguided", "gtr", (2, 1, 1), diffusion=SHORT), False, None),
        (Schedule("random", "random", (4,), diffusion=SHORT), True, FTS()),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.parametrize("unguided", [0.0, 0.5])
def test_agreement_with_torchs_counter(schedule, guided, fts, unguided):
    """The plain implementation really run, on the meta device: shapes and operations without numbers."""
    spec = replace(mar_spec("mar-b"), encoder_depth=3, decoder_depth=2)
    plan = make_plan(schedule, spec.grid, (0,))
    model = MAR(spec, device="meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        sample(
            model,
            plan,
            torch.zeros(1, dtype=torch.int64),
            MetaNoise((0,), 16),
            device="meta",
            fts=fts,
            guidance=Guidance(3.0 if guided else 1.0, start=unguided),
            cache=Reference(),
        )
    counted = count_plan(plan, spec, guided=guided, unguided=unguided, fts=fts)
    assert counter.get_total_flops() == pytest.approx(counted.total, rel=1e-3)
