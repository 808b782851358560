"""What the figure of a plan shows, read back from its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gtr_pack.gtr_core.drawing.canvas import KNOWN, LINE, REVISED, STAGE_COLOURS, viridis
from gtr_pack.gtr_core.drawing.plan_figure import AXIS, CHART, GAP, MAP, MAPS_TOP, plan_figure, stage_colour
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Method
from gtr_pack.gtr_core.plans.plan import Plan, make_plan
from gtr_pack.gtr_core.plans.presets import PRESETS, preset
from gtr_pack.gtr_core.plans.schedule import Schedule

WIDTH = 3 * MAP + 4 * GAP


def middle(figure: np.ndarray, column: int, row: int, cell: int, token: int) -> tuple[int, ...]:
    """The colour in a token's middle on one of the three maps."""
    left = GAP + column * (MAP + GAP)
    return tuple(figure[MAPS_TOP + row * cell + cell // 2, left + token * cell + cell // 2])


def charts(figure: np.ndarray, plan: Plan) -> list[np.ndarray]:
    """The areas of the two charts: tokens, and diffusion steps."""
    cell, half = MAP // max(plan.grid), (WIDTH - 3 * GAP) // 2
    top = MAPS_TOP + cell * plan.grid[0] + 10 + LINE + GAP + LINE + 4
    return [figure[top : top + CHART, left + AXIS : left + half] for left in (GAP, 2 * GAP + half)]


def bars(chart: np.ndarray, colour: np.ndarray) -> list[tuple[int, int]]:
    """(width, height) of the bars of a colour, from left to right."""
    heights = (chart == colour).all(-1).sum(0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], heights > 0, [0]]).astype(int)))
    return [(int(end - start), int(heights[start])) for start, end in zip(edges[::2], edges[1::2])]


def test_the_maps_show_stage_order_and_diffusion_steps_of_every_token() -> None:
    plan = make_plan(Method(preset("gtr-paper"), fts=FTS()), (16, 16), (4,))
    figure, steps, cell = plan_figure(plan), len(plan.steps), MAP // 16
    for index, step in enumerate(plan.steps):
        for position in step.targets[0]:
            row, token = divmod(int(position), 16)
            assert middle(figure, 0, row, cell, token) == tuple(STAGE_COLOURS[step.stage - 1])
            assert middle(figure, 1, row, cell, token) == tuple(viridis(np.array(index / (steps - 1))))
            assert middle(figure, 2, row, cell, token) == tuple(viridis(np.array((step.diffusion_steps - 20) / 30)))


def test_the_bars_are_as_high_as_the_numbers_of_their_ar_steps_and_equally_wide() -> None:
    plan = make_plan(Method(Schedule("small", "gtr", (4, 2, 2), diffusion=(8, 4, 4))), (8, 8), (0,))
    tokens, diffusion = charts(plan_figure(plan), plan)
    for chart, values in (
        (tokens, [step.tokens for step in plan.steps]),
        (diffusion, [step.diffusion_steps for step in plan.steps]),
    ):
        drawn = [bar for stage in (1, 2, 3) for bar in bars(chart, stage_colour(stage))]
        assert [height for _, height in drawn] == [CHART * value // max(values) for value in values]
        assert len({width for width, _ in drawn}) == 1


def test_the_steps_of_fts_are_outlined() -> None:
    small = Schedule("small", "gtr", (4, 2, 2), diffusion=(8, 4, 4))
    plan, detailed = (make_plan(Method(small, fts=fts), (8, 8), (0,)) for fts in (None, FTS(0.25, 16)))
    plain, outlined = (charts(plan_figure(each), each)[1] for each in (plan, detailed))
    assert [height for _, height in bars(outlined, stage_colour(3))] == [CHART * 4 // 16] * 2
    assert [height for _, height in bars(plain, stage_colour(3))] == [CHART * 4 // 8] * 2
    assert (outlined == (40, 40, 40)).all(-1).any(0).sum() == sum(width for width, _ in bars(outlined, stage_colour(3)))
    assert not (plain == (40, 40, 40)).all(-1).any()


def test_a_revision_is_a_bar_of_its_own() -> None:
    """The maps are of the first drawing, so they do not change."""
    small = Method(Schedule("small", "gtr", (4, 2, 2), diffusion=(8, 4, 4)))
    once, revised = (make_plan(replace(small, revise=share), (8, 8), (0,)) for share in (0.0, 0.25))
    tokens, diffusion = charts(plan_figure(revised), revised)
    assert [height for _, height in bars(tokens, REVISED)] == [CHART]
    assert [height for _, height in bars(diffusion, REVISED)] == [CHART * 4 // 8]
    assert np.array_equal(*(plan_figure(plan)[MAPS_TOP : MAPS_TOP + MAP] for plan in (once, revised)))


def test_each_image_of_a_batch_has_a_figure_of_its_own() -> None:
    schedule = Schedule("s", "random", (4,))
    both, second = make_plan(Method(schedule), (8, 8), (1, 2)), make_plan(Method(schedule), (8, 8), (2,))
    assert np.array_equal(plan_figure(both, index=1), plan_figure(second))
    assert not np.array_equal(plan_figure(both), plan_figure(second))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_drawn_with_any_part_of_its_tokens_known(name: str) -> None:
    unknown = np.zeros((20, 12), bool)
    for share in (0, 7, 20):
        unknown[:share] = True
        figure = plan_figure(make_plan(Method(preset(name), fts=FTS()), (20, 12), (1,), unknown=unknown))
        assert figure.dtype == np.uint8 and figure.shape[1] == WIDTH
        assert (middle(figure, 0, 19, MAP // 20, 11) == KNOWN) == (share < 20)


def test_a_step_for_every_token_of_the_largest_grid_can_be_drawn() -> None:
    figure = plan_figure(make_plan(Method(Schedule("s", "raster", (4096,))), (64, 64), (0,)))
    assert figure.shape[1] == WIDTH
