"""Counts of diffusion steps per token, and what the heat map shows of them, read back from its pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.drawing.canvas import VIRIDIS, viridis
from gtr_pack.gtr_core.drawing.heatmap import MARGIN, SIDE, StepCounts, heatmap, overlay
from gtr_pack.gtr_core.noise import SeededNoise
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.sampler import sample

GTR = Schedule("small", "gtr", (4, 2, 2), diffusion=(8, 4, 4), decoder_scope="stage")
GREY = np.full((8, 12, 3), 100, np.uint8)
CELL = SIDE // 6


def counts() -> StepCounts:
    """Tokens of 20 steps each; two of them got 30 and 15 more."""
    extra = np.zeros((1, 4, 6), int)
    extra[0, 1, 2], extra[0, 3, 5] = 30, 15
    return StepCounts(extra + 20, extra)


def corners(figure: np.ndarray, margin: int = 0) -> dict[tuple[int, int], tuple[int, ...]]:
    """The colour of the first pixel of every token: of its frame, where it has one."""
    return {
        (row, column): tuple(figure[margin + row * CELL, margin + column * CELL]) for row, column in np.ndindex(4, 6)
    }


@pytest.mark.parametrize("revise", [0.0, 0.25])
def test_steps_are_those_of_the_schedule_and_of_fts(revise, tiny_mar) -> None:
    """What is drawn again has the steps of both drawings."""
    detail, spent = FTS(0.25, 8), []
    plan = make_plan(Method(GTR, fts=detail, revise=revise), tiny_mar.spec.grid, (1, 2))
    sample(
        tiny_mar,
        plan,
        torch.tensor([0, 1]),
        SeededNoise((1, 2), tiny_mar.spec.head.channels),
        callback=lambda p: spent.append(p.spent.clone()) if p.step == p.steps else None,
    )
    extra = spent[0].numpy() - plan.scheduled_steps()
    assert set(np.unique(extra)) == {0, detail.detail_steps - GTR.diffusion[2]}
    expected = sum(detail.count(step.tokens) for step in plan.steps if step.reconstruction)
    assert ((extra > 0).sum(1) == expected).all()
    every = sum(group.tokens * group.diffusion_steps for step in plan.steps for group in step.groups)
    assert (spent[0].sum(1) == every).all()


def test_the_heat_map_lights_the_tokens_with_extra_steps() -> None:
    frames = corners(heatmap(GREY, counts(), "fts"), MARGIN)
    assert frames.pop((1, 2)) == tuple(VIRIDIS[-1]) and frames.pop((3, 5)) == tuple(viridis(np.array(0.5)))
    assert set(frames.values()) == {(80, 80, 80)}


def test_the_heat_map_of_all_steps_uses_the_scale_that_is_given() -> None:
    frames = corners(heatmap(GREY, counts(), "all", most=100), MARGIN)
    assert frames[0, 0] == tuple(viridis(np.array(0.2))) and frames[1, 2] == tuple(viridis(np.array(0.5)))


def test_the_heat_map_is_the_overlay_with_a_legend_below() -> None:
    body, figure = overlay(GREY, counts().extra[0], 30), heatmap(GREY, counts(), "fts")
    height, width, _ = body.shape
    assert (height, width) == (4 * CELL, 6 * CELL) and figure.shape[1] == width + 2 * MARGIN
    assert np.array_equal(figure[MARGIN : MARGIN + height, MARGIN : MARGIN + width], body)
    assert (figure[MARGIN + height :] < 255).any()


def test_an_image_without_extra_steps_is_grey_all_over() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    body = overlay(image, np.zeros((4, 6), int), 0)
    assert (body == body[..., :1]).all() and body.std() > 1


def test_each_image_of_a_batch_has_its_own_counts() -> None:
    both = StepCounts(np.stack([np.zeros((4, 6), int), counts().steps[0]]), np.zeros((2, 4, 6), int))
    assert np.array_equal(heatmap(GREY, both, "all", 1), heatmap(GREY, counts(), "all"))
