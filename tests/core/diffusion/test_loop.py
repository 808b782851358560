"""The chains of an AR step in one loop, against one evaluation after another at the same noise."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.gtr_core.diffusion.chain import ChainGroup, DiffusionSpec, chain
from gtr_pack.gtr_core.diffusion.loop import AMPLIFICATION, HeadLoop, Stretch, exact_steps, stretches
from gtr_tests.recorded import error
from gtr_tests.runs import in_turn, seeded_chains, seeded_z


def groups(*sizes: tuple[int, int]) -> list[ChainGroup]:
    """Groups of (rows, steps)."""
    return [ChainGroup(rows, chain(steps)) for rows, steps in sizes]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_chains_of_different_lengths_together_equal_chains_in_turn(rows, scale, tiny_mar):
    """Whatever the size of a chunk of modulations."""
    z, chains, seen = seeded_z(9, 1 if scale == 1 else 2), seeded_chains((2, 50), (4, 20), (3, 1)), []
    loop = HeadLoop(tiny_mar.head, z, chains, scale, chunk_rows=rows)
    ours = loop.run(lambda j, total: seen.append((j, total)))
    assert error(ours, in_turn(tiny_mar.head, z, chains, scale)) < 5e-5
    assert seen == [(j, 50) for j in range(1, 51)]


def test_the_rows_that_still_run_are_the_first_ones():
    assert list(stretches(groups((7, 50), (57, 20)))) == [Stretch(0, 20, 64), Stretch(20, 50, 7)]
    assert list(stretches(groups((3, 5), (4, 5)))) == [Stretch(0, 5, 7)]


@pytest.mark.parametrize("steps, count", [((50,), 1), ((100, 20), 1), ((5, 3, 1), 1), ((1,), 0)])
def test_the_first_step_amplifies(steps, count):
    assert exact_steps(groups(*((1, each) for each in steps))) == count


def test_a_clipped_chain_amplifies_less():
    """DiSA's clip: 1.2 with 50 steps, 5.0 with 5 (docs/upstream.md 1.7)."""
    clipped = [ChainGroup(1, chain(steps, DiffusionSpec(max_timestep=950))) for steps in (50, 20, 5)]
    assert [exact_steps([group]) for group in clipped] == [0, 0, 1]


def test_a_head_in_16_bit_where_nothing_amplifies_its_rounding(first_step, demo_mar):
    """Against float32. The first step in bfloat16 as well is many times worse."""
    exact, low_precision = first_step(), demo_mar.head.copied(torch.bfloat16)
    found = (first_step(low_precision) - exact).abs().mean()
    careless = (first_step(low_precision, amplification=float("inf")) - exact).abs().mean()
    print(f"mean error {found:.4f}, with the first step {careless:.4f}, of {exact.std():.2f}")
    assert 0 < found < 0.02 * exact.std() and careless > 50 * found
    assert torch.equal(first_step(low_precision, amplification=AMPLIFICATION), first_step(low_precision))
