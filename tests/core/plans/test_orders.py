"""The orders that GtR is compared with, against recorded tables."""

from __future__ import annotations

import numpy as np
import pytest
from gtr_pack.gtr_core.plans.method import Method
from gtr_pack.gtr_core.plans.orders import PHASES, halton_order, raster_order, subsample_order
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule


@pytest.mark.parametrize("side", [8, 16, 24, 32, 48, 64])
def test_the_halton_order_is_upstreams(side, golden):
    """Upstream stops after 10,000 points, which leave 6 cells of 64 x 64 unvisited; ours goes on."""
    recorded = golden("orders")[f"halton_{side}"].numpy()
    order = halton_order((side, side))
    assert order[: len(recorded)].tolist() == recorded.tolist()
    assert sorted(order) == list(range(side * side))


@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (16, 9), (5, 64)])
def test_orders_are_complete_on_every_grid(grid):
    orders = [halton_order(grid), raster_order(grid), *(subsample_order(grid, phases) for phases in PHASES)]
    assert all(sorted(order) == list(range(grid[0] * grid[1])) for order in orders)


def test_subsample_begins_with_one_colour_of_the_checkerboard():
    first = subsample_order((16, 16), "checkerboard")[:128]
    assert {int((k // 16 + k % 16) % 2) for k in first} == {0}
    assert {int(k % 16 % 2) for k in subsample_order((16, 16), "plain")[:64]} == {0}


@pytest.mark.parametrize("order", ["raster", "subsample", "halton"])
def test_plans_follow_the_order(order):
    plan = make_plan(Method(Schedule("x", order, (16,))), (16, 16), (1, 2))
    expected = {
        "raster": raster_order,
        "halton": halton_order,
        "subsample": lambda grid: subsample_order(grid, "checkerboard"),
    }[order]((16, 16))
    done = 0
    for step in plan.steps:
        for image in range(2):
            assert step.targets[image].tolist() == sorted(expected[done : done + step.tokens])
        done += step.tokens


def test_the_halton_shift_depends_on_the_image():
    schedule = Schedule("x", "halton", (256,), shift=True)
    plan = make_plan(Method(schedule), (16, 16), (1, 2))
    sequences = np.stack([np.concatenate([s.targets[k] for s in plan.steps]) for k in (0, 1)])
    base = halton_order((16, 16)).tolist()
    for sequence in sequences.tolist():
        start = base.index(sequence[0])
        assert sequence == base[start:] + base[:start]
    assert sequences[0, 0] != sequences[1, 0]


@pytest.mark.parametrize("order", ["raster", "subsample", "random"])
def test_the_shift_is_the_halton_orders_alone(order):
    plain, shift = (make_plan(Method(Schedule("x", order, (8,), shift=on)), (8, 8), (1, 2)) for on in (False, True))
    assert all(np.array_equal(a.targets, b.targets) for a, b in zip(plain.steps, shift.steps, strict=True))
