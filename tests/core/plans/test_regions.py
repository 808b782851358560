"""Redrawn stages and windows: which tokens, every unknown one once, known ones bitwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import Model
from gtr_pack.gtr_core.noise import SeededNoise
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.partition import stage_of_tokens
from gtr_pack.gtr_core.plans.presets import PRESETS, preset
from gtr_pack.gtr_core.plans.regions import Region, redrawn_tokens, whole_grid, window_regions, windows
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.plans import assert_covers

GTR = Schedule("small", "gtr", (4, 2, 2), diffusion=(4, 3, 2), decoder_scope="stage")
METHOD = Method(GTR, Guidance(2.0))
NAMED = {"reconstruction": lambda stage: stage == 3, "variations": lambda stage: stage > 1}


@pytest.mark.parametrize("partition", ["quincunx", "diagonal"])
@pytest.mark.parametrize("redraw", NAMED)
def test_whole_stages_are_redrawn(redraw, partition):
    schedule = Schedule("s", "gtr", (4, 2, 2), partition=partition)
    expected = NAMED[redraw](stage_of_tokens((16, 16), 3, partition))
    assert np.array_equal(redrawn_tokens(schedule, (16, 16), redraw), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_a_share_is_the_last_part_of_the_order(name):
    schedule, grid = preset(name), (32, 32)
    masks = [redrawn_tokens(schedule, grid, "denoise", share) for share in (0.0, 0.13, 0.5, 0.75, 1.0)]
    assert [int(mask.sum()) for mask in masks] == [0, 133, 512, 768, 1024]
    assert all((more | less == more).all() for less, more in zip(masks, masks[1:]))
    if schedule.order == "gtr":
        assert np.array_equal(masks[2], redrawn_tokens(schedule, grid, "reconstruction"))
        stage = stage_of_tokens(grid, schedule.stages, schedule.partition)
        assert (stage[masks[1]] == schedule.stages).all()


@pytest.mark.parametrize(
    "settings, words",
    [
        ((GTR, (6, 6), "some"), "expected one of reconstruction, variations, denoise"),
        ((GTR, (6, 6), "denoise", 1.2), "denoise 1.2: expected 0"),
        ((GTR, (6, 6), "denoise", float("nan")), "denoise nan: expected 0"),
        ((preset("origin"), (6, 6), "variations"), "single stage.*redraw 'denoise'"),
    ],
)
def test_wrong_redraws_say_what_is_wrong(settings, words):
    with pytest.raises(GtRError, match=words) as caught:
        redrawn_tokens(*settings)
    assert "\n" not in str(caught.value)


def canvases():
    """Unknown tokens of grids larger than 6 x 6: an image in a corner, in the middle, nowhere; and holes."""
    generator = np.random.default_rng(1)
    for height, width in ((6, 6), (9, 6), (7, 13), (12, 18), (20, 11)):
        corner, middle, holes = (np.ones((height, width), bool) for _ in range(3))
        corner[:6, :6] = False
        middle[(height - 6) // 2 :][:6, (width - 6) // 2 :][:, :6] = False
        holes &= generator.random((height, width)) < 0.2
        yield from (corner, middle, np.ones((height, width), bool), holes, np.zeros((height, width), bool))


@pytest.mark.parametrize("overlap", [0, 1, 4, 5])
def test_windows_decode_every_unknown_token_once_and_no_known_one(overlap):
    for unknown in canvases():
        known = ~unknown.ravel()
        for region in window_regions(METHOD, (6, 6), (1, 2), unknown, overlap):
            assert_covers(region.plan, region.unknown)
            decoded = region.positions[region.unknown.ravel()]
            assert len(decoded) and not known[decoded].any()
            assert region.positions.reshape(6, 6)[0, 0] + unknown.shape[1] == region.positions.reshape(6, 6)[1, 0]
            known[decoded] = True
            # What is known to the model is all that was given or drawn before.
            assert (~region.unknown.ravel() == known[region.positions] & ~np.isin(region.positions, decoded)).all()
        assert known.all()


def test_windows_grow_from_what_is_known_and_overlap_as_asked():
    unknown = np.ones((6, 18), bool)
    unknown[:, 6:12] = False
    assert windows((6, 6), unknown, 3) == [(0, 3), (0, 0), (0, 9), (0, 12)]
    assert windows((6, 6), unknown, 2) == [(0, 4), (0, 8), (0, 0), (0, 12)]
    assert windows((6, 6), ~unknown, 3) == [(0, 3), (0, 6)]


def test_every_window_has_its_own_seeds():
    regions = window_regions(METHOD, (6, 6), (1, 2), np.ones((6, 12), bool))
    assert regions[0].seeds == (1, 2) and len({seed for region in regions for seed in region.seeds}) == 2 * len(regions)
    alone = window_regions(METHOD, (6, 6), (2,), np.ones((6, 12), bool))
    assert [region.seeds for region in alone] == [region.seeds[1:] for region in regions]
    assert all(
        np.array_equal(a.targets[0], b.targets[1])
        for one, both in zip(alone, regions)
        for a, b in zip(one.plan.steps, both.plan.steps)
    )


@pytest.mark.parametrize(
    "grid, overlap, words",
    [
        ((5, 12), 0, "windows of 6 x 6 need at least that"),
        ((6, 513), 0, "at most 512 tokens a side"),
        ((6, 12), 6, "cannot overlap by 6: use 1 to 5"),
        ((6, 12), -1, "cannot overlap by -1"),
    ],
)
def test_wrong_windows_say_what_is_wrong(grid, overlap, words):
    with pytest.raises(GtRError, match=words):
        windows((6, 6), np.ones(grid, bool), overlap)


def run(model: Model, regions: tuple[Region, ...], tokens: torch.Tensor) -> torch.Tensor:
    tokens, channels = tokens.clone(), model.spec.head.channels
    for region in regions:
        tokens[:, region.positions] = sample(
            model,
            region.plan,
            torch.tensor([0, 1]),
            SeededNoise(region.seeds, channels),
            tokens=tokens[:, region.positions],
        )
    return tokens


def test_given_tokens_come_back_bitwise_from_every_edit(tiny_mar):
    own, generator = tiny_mar.spec.grid, torch.Generator().manual_seed(3)
    wide = np.ones((own[0], own[1] + 4), bool)
    wide[:, : own[1]] = False
    for unknown in (redrawn_tokens(GTR, own, "variations"), redrawn_tokens(GTR, own, "denoise", 0.3), wide):
        given = torch.randn(2, unknown.size, tiny_mar.spec.head.channels, generator=generator)
        regions = (
            window_regions(METHOD, own, (1, 2), unknown) if unknown is wide else whole_grid(METHOD, (1, 2), unknown)
        )
        out = run(tiny_mar, regions, given)
        fresh = torch.from_numpy(unknown.ravel())
        assert torch.equal(out[:, ~fresh], given[:, ~fresh]) and (out[:, fresh] != given[:, fresh]).all()


def test_a_redrawn_image_depends_on_the_structure_that_it_keeps(tiny_mar):
    own, generator = tiny_mar.spec.grid, torch.Generator().manual_seed(3)
    regions = whole_grid(METHOD, (1, 2), redrawn_tokens(GTR, own, "variations"))
    one, other = (
        torch.randn(2, tiny_mar.spec.tokens, tiny_mar.spec.head.channels, generator=generator) for _ in range(2)
    )
    fresh = torch.from_numpy(regions[0].unknown.ravel())
    mixed = torch.where(fresh[:, None], other, one)
    redrawn = [run(tiny_mar, regions, tokens)[:, fresh] for tokens in (one, mixed, other)]
    assert torch.equal(redrawn[0], redrawn[1]) and not torch.equal(redrawn[0], redrawn[2])
