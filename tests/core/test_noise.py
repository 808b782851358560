"""Streams of randomness: every image its own, whatever the batch, and no two alike."""

from __future__ import annotations

import numpy as np
import torch
from gtr_pack.gtr_core.noise import DIFFUSION, ORDER, SeededNoise, generator, image_seeds, window_seeds


def test_an_image_has_the_same_noise_alone_and_in_a_batch():
    together = SeededNoise((5, 9, 2**64 - 1), 16)
    for index, seed in enumerate(together.seeds):
        alone = SeededNoise((seed,), 16)
        for one, other in zip(together.draw(3, 7, 10), alone.draw(3, 7, 10)):
            assert torch.equal(one[..., index, :, :], other[..., 0, :, :])
        assert torch.equal(together.shuffled(3, 40)[index], alone.shuffled(3, 40)[0])


def test_noise_is_normal_and_of_the_stated_shapes():
    init, steps = SeededNoise((1, 2), 16).draw(0, 64, 50)
    assert init.shape == (2, 64, 16) and steps.shape == (50, 2, 64, 16) and steps.dtype == torch.float32
    assert abs(steps.mean()) < 0.01 and abs(steps.std() - 1) < 0.01 and abs(steps.pow(4).mean() - 3) < 0.1


def test_streams_that_share_32_bits_of_a_seed_differ():
    """(image seed, AR step): with a seed of 32 bits these two pairs had the same noise, number for number."""
    for one, other in (((1447, 12), (1469, 30)), ((1, 0), (1 + 2**32, 0))):
        first, second = (generator(seed, DIFFUSION, step).standard_normal(8) for seed, step in (one, other))
        assert not np.array_equal(first, second)


def test_no_two_streams_of_a_large_job_are_alike():
    """20,000 streams: with 32 bits of state a pair would be expected, with 64 bits there is none in 10^10 jobs."""
    first = [generator(seed, DIFFUSION, step).bit_generator.random_raw() for seed in range(2000) for step in range(10)]
    assert len(set(first)) == len(first)


def test_purposes_are_streams_of_their_own():
    assert generator(7, ORDER).bit_generator.random_raw() != generator(7, DIFFUSION).bit_generator.random_raw()


def test_seeds_of_a_batch_and_of_windows():
    assert image_seeds(2**64 - 1, 2) == (2**64 - 1, 0) and image_seeds(3, [4, 0]) == (7, 3)
    seeds = (0, 1, 2)
    assert window_seeds(seeds, 0) == seeds
    later = [seed for window in (1, 2) for seed in window_seeds(seeds, window)]
    assert len(set(later)) == 6 and all(0 <= seed < 2**64 for seed in later)
