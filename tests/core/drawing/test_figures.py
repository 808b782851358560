"""What the pictures of plans and runs show, read back from their pixels; colours that colour-blind people can tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.costs.report import progress_text
from gtr_pack.gtr_core.drawing import canvas
from gtr_pack.gtr_core.drawing.canvas import FONT, KNOWN, STAGE_COLOURS, VIRIDIS, draw_text, viridis
from gtr_pack.gtr_core.drawing.heatmap import Spent, draw_heat, planned_steps
from gtr_pack.gtr_core.drawing.plan_figure import GAP, LINE, MAP, draw_plan
from gtr_pack.gtr_core.drawing.preview import NOW, draw_state, state_of
from gtr_pack.gtr_core.noise import SeededNoise
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import PRESETS, preset
from gtr_pack.gtr_core.plans.regions import whole_grid, window_regions
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.sampler import sample

GTR = Schedule("small", "gtr", (4, 2, 2), diffusion=(8, 4, 4), decoder_scope="stage")

# Machado, Oliveira and Fernandes (2009), severity 1: linear RGB as people without one kind of cone see it.
BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colours: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB (n, 3), D65."""
    xyz = (
        np.clip(colours, 0, 1)
        @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
        / [0.9505, 1, 1.089]
    )
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def linear(colours: np.ndarray) -> np.ndarray:
    c = np.asarray(colours) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_of_stages_differ_for_colour_blind_people(kind):
    """At least 15 apart in L*a*b*, white and the grey of given tokens included; 2.3 is just noticeable."""
    for count in (3, 4):
        seen = lab(linear(np.vstack([STAGE_COLOURS[:count], KNOWN])) @ np.array(BLINDNESS[kind]).T)
        apart = np.sqrt(((seen[:, None] - seen[None]) ** 2).sum(-1))
        assert apart[~np.eye(len(seen), dtype=bool)].min() > 15


def test_the_scale_rises_in_lightness():
    lightness = lab(linear(viridis(np.linspace(0, 1, 60))))[:, 0]
    assert (np.diff(lightness) > 0.5).all()
    assert np.array_equal(viridis(np.array([0.0, 1.0])), VIRIDIS[[0, -1]])


def test_every_letter_is_drawn_and_no_two_are_alike():
    assert len(set(FONT.values())) == len(FONT)
    sheet = canvas.blank(20, 40)
    draw_text(sheet, "g?", 0, 0)
    assert (sheet[:, :12] < 255).any() and (sheet[:, 12:] == 255).all()
    draw_text(sheet, "a line that leaves the sheet", 15, 30)


def middle(picture: np.ndarray, column: int, row: int, cell: int, token: int) -> tuple[int, ...]:
    """The colour in a token's middle on one of the three maps."""
    top, left = GAP + 3 * LINE, GAP + column * (MAP + GAP)
    return tuple(picture[top + row * cell + cell // 2, left + token * cell + cell // 2])


def test_the_plan_shows_stage_order_and_diffusion_steps_of_every_token():
    plan = make_plan(preset("gtr-paper"), (16, 16), (4,))
    picture, steps = draw_plan(plan, FTS()), len(plan.steps)
    for index, step in enumerate(plan.steps):
        for position in step.positions[0]:
            row, token = divmod(int(position), 16)
            assert middle(picture, 0, row, 18, token) == tuple(STAGE_COLOURS[step.stage - 1])
            assert middle(picture, 1, row, 18, token) == tuple(viridis(np.array(index / (steps - 1))))
            assert middle(picture, 2, row, 18, token) == tuple(viridis(np.array((step.diffusion_steps - 20) / 30)))


@pytest.mark.parametrize("name", PRESETS)
def test_every_plan_can_be_drawn(name):
    unknown = np.zeros((20, 12), bool)
    for share in (0, 7, 20):
        unknown[:share] = True
        picture = draw_plan(make_plan(preset(name), (20, 12), (1,), unknown=unknown), FTS())
        assert picture.dtype == np.uint8 and picture.shape[1] == 3 * MAP + 4 * GAP


def test_progress_counts_both_stages():
    plan = make_plan(Schedule("s", "gtr", (4, 2, 2)), (8, 8), (0,))
    texts = [progress_text(plan, index) for index in range(8)]
    assert texts == [*(f"generation {k}/6" for k in range(1, 7)), "reconstruction 1/2", "reconstruction 2/2"]
    assert progress_text(plan, 6, 2, 3) == "window 2/3, reconstruction 1/2"
    assert progress_text(make_plan(Schedule("o", "random", (3,)), (8, 8), (0,)), 2) == "generation 3/3"


def test_the_preview_shows_known_tokens_and_marks_the_others():
    (plan,) = whole_grid(GTR, (3,), np.ones((6, 6), bool))
    state = state_of((plan,), 0, 3, (6, 6))
    steps = plan.plan.steps
    assert set(np.flatnonzero(state.ravel() == 0)) == set(np.concatenate([s.positions[0] for s in steps[:3]]))
    assert set(np.flatnonzero(state.ravel() == NOW)) == set(steps[3].positions[0])
    assert all((state.ravel()[s.positions[0]] == s.stage).all() for s in steps[4:])
    colours = np.random.default_rng(0).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    picture = draw_state(colours, state, 240)
    assert picture.shape == (240, 240, 3)
    for row, column in np.ndindex(6, 6):
        square, value = picture[row * 40 :, column * 40 :][:40, :40], state[row, column]
        own = colours[row * 2 :, column * 2 :][:2, :2].repeat(20, 0).repeat(20, 1)
        assert np.array_equal(square, own) == (value == 0)
        if value > 0:
            assert tuple(square[20, 20]) == tuple(STAGE_COLOURS[value - 1])
        if value == NOW:
            assert tuple(square[20, 20 + 13]) == (255, 255, 255)
    assert np.array_equal(draw_state(colours, np.zeros((6, 6), int), 12), colours)


def test_the_preview_of_windows_shows_all_of_them():
    unknown = np.ones((6, 12), bool)
    regions = window_regions(GTR, (6, 6), (3,), unknown)
    assert (state_of(regions, 0, 0, (6, 12)) != 0).all()
    last = state_of(regions, len(regions) - 1, len(regions[-1].plan.steps), (6, 12))
    assert (last == 0).all()
    second = state_of(regions, 1, 0, (6, 12))
    assert (second.ravel()[regions[0].positions] == 0).all() and (second != 0).any()


def test_spent_steps_are_those_of_the_schedule_and_of_fts(tiny_mar):
    plan, spent, detail = make_plan(GTR, tiny_mar.spec.grid, (1, 2)), [], FTS(0.25, 8)
    sample(
        tiny_mar,
        plan,
        torch.tensor([0, 1]),
        SeededNoise((1, 2), tiny_mar.spec.head.channels),
        fts=detail,
        callback=lambda p: spent.append(p.spent.clone()) if p.step == p.steps else None,
    )
    extra = spent[0].numpy() - planned_steps(plan)
    assert set(np.unique(extra)) == {0, detail.detail_steps - GTR.diffusion[2]}
    expected = sum(detail.count(step.tokens) for step in plan.steps if step.reconstruction)
    assert ((extra > 0).sum(1) == expected).all()


def test_the_heat_map_lights_the_tokens_with_extra_steps():
    extra = np.zeros((1, 4, 6), int)
    extra[0, 1, 2], extra[0, 3, 5] = 30, 15
    grey = np.full((8, 12, 3), 100, np.uint8)
    picture = draw_heat(grey, Spent(extra + 20, extra), "fts")
    cell = -(-384 // 6)
    frames = {(row, column): tuple(picture[12 + row * cell, 12 + column * cell]) for row, column in np.ndindex(4, 6)}
    assert frames[1, 2] == tuple(VIRIDIS[-1]) and frames[3, 5] == tuple(viridis(np.array(0.5)))
    assert {colour for place, colour in frames.items() if not extra[0][place]} == {(80, 80, 80)}
    every = draw_heat(grey, Spent(extra + 20, extra), "all", most=100)
    assert tuple(every[12, 12]) == tuple(viridis(np.array(0.2)))
