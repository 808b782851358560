"""The diffusion of an AR step of the built-in model, whose numbers are those of a trained one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model
from gtr_pack.gtr_core.demo import DEMO_MAR
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec
from gtr_pack.gtr_core.diffusion.loop import HeadLoop
from gtr_pack.gtr_core.models import Model
from gtr_pack.gtr_core.plans.method import Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import preset
from gtr_tests.runs import positions_of, seeded_chains


@pytest.fixture(scope="session")
def demo_mar() -> Model:
    """The built-in model, on the base process of the published ones."""
    model = load_model(DEMO_MAR)
    model.spec = replace(model.spec, diffusion=DiffusionSpec())
    return model


@pytest.fixture(params=[1.0, 3.0])
def first_step(request, demo_mar):
    """A function that runs the diffusion of an AR step, with a head in 16 bit and graphs or without: tokens (n, C)."""
    model, scale = demo_mar, request.param
    step = make_plan(Method(preset("step-8")), model.spec.grid, (1,)).steps[0]
    conditions = (torch.tensor([3]), None)[: 1 if scale == 1 else 2]
    z = model(torch.zeros(1, 256, 16), positions_of(step), model.start(conditions), model.spec.grid)
    chains = seeded_chains((1, 50), (step.tokens - 1, 20))

    def diffuse(low_precision=None, *graphs, **settings) -> torch.Tensor:
        rows = tuple(branch[0] for branch in z)
        return HeadLoop(model.head, rows, chains, scale, low_precision, **settings).run(lambda j, total: None, *graphs)

    return diffuse
