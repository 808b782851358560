"""The paper's two observations behind the checkerboard, repeated on real images and this model (docs/gtr.md 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gtr_core.models import Model
from gtr_core.models.latents import latent_to_tokens, tokens_to_latent
from gtr_core.models.model import Positions
from gtr_core.models.vae import KLVAE
from gtr_core.noise import SeededNoise, image_seeds
from gtr_core.plans.method import Method
from gtr_core.plans.plan import make_plan
from gtr_core.plans.schedule import Schedule
from gtr_core.sampling.sampler import sample

from . import data, runs

FILL = Method(Schedule("fill", "random", (16,), diffusion=(50, 50, 50)))
SLICE = 16


@dataclass(frozen=True)
class Images:
    """Real images as the model's tokens (n, L, C), with labels (n,)."""

    tokens: Tensor
    labels: Tensor


@torch.no_grad()
def real_tokens(model: Model, vae: KLVAE, count: int, seed: int) -> Images:
    """``count`` fresh images of balanced classes, encoded (posterior means)."""
    labels = torch.arange(count) % len(data.CLASS_NAMES)
    images, _ = data.images(labels, runs.step_generator(seed, 0))
    means = torch.cat([vae.moments(part)[0] for part in images.split(SLICE)])
    return Images(latent_to_tokens(means, model.spec.latent), labels)


@torch.no_grad()
def neighbour_change(model: Model, images: Images, known: int, seed: int) -> dict[int, list[float]]:
    """How much the conditioning z of masked tokens changes when one more token becomes known.

    Relative change |z' - z| / |z|, one mean per image, by Chebyshev distance from the decoded token.
    """
    count, total = images.tokens.shape[:2]
    order = torch.rand(count, total, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    memory = model.start([images.labels])
    fresh, rest = order[:, known], order[:, known + 1 :].sort(dim=1).values
    nothing = rest[:, :0]
    fewer = Positions(order[:, :known].sort(dim=1).values, rest, fresh[:, None])
    more = Positions(order[:, : known + 1].sort(dim=1).values, rest, nothing)
    before, after = (model(images.tokens, positions, memory, model.spec.grid)[0] for positions in (fewer, more))
    change = (after - before).norm(dim=-1) / before.norm(dim=-1)
    width = model.spec.grid[1]
    apart = torch.maximum(
        (rest // width - fresh[:, None] // width).abs(), (rest % width - fresh[:, None] % width).abs()
    )
    by_distance: dict[int, list[float]] = {}
    for row, distances in zip(change, apart):
        for distance in distances.unique().tolist():
            by_distance.setdefault(distance, []).append(float(row[distances == distance].mean()))
    return by_distance


def half_known(grid: tuple[int, int], shape: str) -> np.ndarray:
    """(h, w) bool, True for the unknown half: the other colour of a ``checkerboard``, or below an ``upper half``."""
    i, j = np.indices(grid)
    return (i + j) % 2 == 1 if shape == "checkerboard" else i >= grid[0] // 2


@torch.no_grad()
def spread_of_seeds(
    model: Model, vae: KLVAE, images: Images, shape: str, redraws: int, seed: int
) -> tuple[list[float], Tensor]:
    """Fill the unknown half ``redraws`` times with different seeds.

    Per image the standard deviation over redraws of the pixels (RMS over colours and the unknown area, on a scale of
    [-1, 1]), and the images (n, redraws, 3, H, W).
    """
    unknown, grid = half_known(model.spec.grid, shape), model.spec.grid
    area = torch.from_numpy(unknown).float()[None, None]
    spreads, drawn = [], []
    for index, (tokens, label) in enumerate(zip(images.tokens, images.labels)):
        seeds = image_seeds(seed + redraws * index, redraws)
        plan = make_plan(FILL, grid, seeds, unknown=unknown)
        filled = sample(
            model,
            plan,
            label.expand(redraws),
            SeededNoise(seeds, model.spec.head.channels),
            tokens=tokens.expand(redraws, -1, -1),
        )
        images = vae.decode(tokens_to_latent(filled, grid, model.spec.latent)).clamp(-1, 1)
        inside = torch.nn.functional.interpolate(area, size=images.shape[-2:]).bool()[0, 0]
        spreads.append(float(images.var(dim=0)[:, inside].mean().sqrt()))
        drawn.append(images)
    return spreads, torch.stack(drawn)
