"""What the preview of a run shows, read back from its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from gtr_pack.gtr_core.drawing.canvas import STAGE_COLOURS
from gtr_pack.gtr_core.drawing.preview import NOW, preview_figure, state_of
from gtr_pack.gtr_core.plans.method import Method
from gtr_pack.gtr_core.plans.regions import whole_grid, window_regions
from gtr_pack.gtr_core.plans.schedule import Schedule

GTR = Method(Schedule("small", "gtr", (4, 2, 2), diffusion=(8, 4, 4), decoder_scope="stage"))
REVISED = replace(GTR, revise=0.25)


def test_the_preview_shows_known_tokens_and_marks_the_others() -> None:
    (plan,) = whole_grid(GTR, (3,), np.ones((6, 6), bool))
    state = state_of((plan,), 0, 3, (6, 6))
    steps = plan.plan.steps
    assert set(np.flatnonzero(state.ravel() == 0)) == set(np.concatenate([s.targets[0] for s in steps[:3]]))
    assert set(np.flatnonzero(state.ravel() == NOW)) == set(steps[3].targets[0])
    assert all((state.ravel()[s.targets[0]] == s.stage).all() for s in steps[4:])
    colours = np.random.default_rng(0).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    figure = preview_figure(colours, state, 240)
    assert figure.shape == (240, 240, 3)
    for row, column in np.ndindex(6, 6):
        square, value = figure[row * 40 :, column * 40 :][:40, :40], state[row, column]
        pixels = colours[row * 2 :, column * 2 :][:2, :2].repeat(20, 0).repeat(20, 1)
        assert np.array_equal(square, pixels) == (value == 0)
        if value > 0:
            assert tuple(square[20, 20]) == tuple(STAGE_COLOURS[value - 1])
        if value == NOW:
            assert tuple(square[20, 20 + 13]) == (255, 255, 255)


def test_a_revision_shows_when_it_begins() -> None:
    """Until then the tokens that it draws again are known like others."""
    (once,), (revised,) = (whole_grid(method, (3,), np.ones((6, 6), bool)) for method in (GTR, REVISED))
    for step in range(8):
        assert np.array_equal(state_of((revised,), 0, step, (6, 6)), state_of((once,), 0, step, (6, 6)))
    now = state_of((revised,), 0, 8, (6, 6)).ravel()
    assert np.flatnonzero(now == NOW).tolist() == revised.plan.steps[8].targets[0].tolist() and (now <= 0).all()
    assert (state_of((revised,), 0, 9, (6, 6)) == 0).all()


def test_a_finished_run_is_shown_as_it_is() -> None:
    colours = np.random.default_rng(0).integers(0, 255, (12, 12, 3)).astype(np.uint8)
    assert np.array_equal(preview_figure(colours, np.zeros((6, 6), int), 12), colours)


def test_marks_have_smooth_edges() -> None:
    figure = preview_figure(np.zeros((6, 6, 3), np.uint8), np.full((6, 6), NOW), 240)
    assert len(np.unique(figure)) > 5 and figure.max() == 255


def test_the_preview_of_windows_shows_all_of_them() -> None:
    unknown = np.ones((6, 12), bool)
    regions = window_regions(GTR, (6, 6), (3,), unknown)
    assert (state_of(regions, 0, 0, (6, 12)) != 0).all()
    last = state_of(regions, len(regions) - 1, len(regions[-1].plan.steps), (6, 12))
    assert (last == 0).all()
    second = state_of(regions, 1, 0, (6, 12))
    assert (second.ravel()[regions[0].positions] == 0).all() and (second != 0).any()
