"""Misplaced tokens: which tokens do not fit the image they are in, and how much was known when they were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gtr_core.evaluation.classifier import Classifier
from gtr_core.plans.plan import Plan

from . import data

# Of pixels in [0, 1], root mean square over a token: of real images behind the VAE hardly a token lies above.
LIMIT = 0.15
# Pixels that lie further off than this count less and less in the fit.
NEAR = 0.05
ROUNDS = 3
# Of known tokens: a class holds those below it and not below the one before.
CLASSES = tuple(2**k for k in range(9))


@dataclass(frozen=True)
class ByKnown:
    """Per class of known tokens how many were drawn then, and how many of these are misplaced; and per image the number
    of misplaced tokens (n,)."""

    drawn: list[int]
    misplaced: list[int]
    per_image: Tensor


@torch.no_grad()
def misfits(images: Tensor, judge: Classifier) -> Tensor:
    """images (n, 3, SIZE, SIZE) in [-1, 1] -> (n, L): how far each token's pixels lie from the image of this world that
    fits best, RMS on a scale of [0, 1].

    The judge says which sprite it is and where; colours and brightness are fitted, and what does not fit counts little.
    """
    basis = bases(images, judge)
    pixels = (images.flatten(1)[..., None] + 1) / 2
    weights = torch.ones_like(pixels)
    for _ in range(ROUNDS):
        weighted = (basis * weights).mT
        colours = torch.linalg.solve((weighted @ basis).double(), (weighted @ pixels).double()).float()
        error = pixels - basis @ colours
        weights = 1 / (1 + (error / NEAR) ** 2)
    side = data.SIZE // data.TOKEN
    tokens = error.view(len(images), 3, side, data.TOKEN, side, data.TOKEN)
    return tokens.square().mean((1, 3, 5)).sqrt().flatten(1)


def bases(images: Tensor, judge: Classifier) -> Tensor:
    """(n, 3 * SIZE * SIZE, 7): what an image is a sum of: red, green and blue of the ground, above and below, and the
    sprite that the judge sees."""
    seen = {name: score.argmax(1) for name, score in judge(images).items()}
    n = len(images)
    nothing = torch.zeros(n)
    pose = {name: seen[name] for name in ("sprite", "size", "across", "down", "mirror")}
    draw = data.Draw(**pose, tilt=nothing, brightness=nothing, colour=torch.zeros(n, 4))
    sprite, alpha, shadow = data.placed(draw).split([3, 1, 1], 1)
    ground = (1 - data.SHADOW * shadow) * (1 - alpha)
    height = ((torch.arange(data.SIZE) + 0.5) / data.SIZE)[:, None]
    parts = torch.zeros(n, 7, 3, data.SIZE, data.SIZE)
    for colour in range(3):
        parts[:, 2 * colour, colour] = (ground * (1 - height))[:, 0]
        parts[:, 2 * colour + 1, colour] = (ground * height)[:, 0]
    parts[:, 6] = sprite
    return parts.flatten(2).mT


def by_known(found: Tensor, plan: Plan) -> ByKnown:
    """``found`` (n, L) bool, the misplaced tokens of the images that a plan drew, by what was known at their step."""
    drawn, misplaced = ([0] * len(CLASSES) for _ in range(2))
    for step in plan.steps:
        targets = torch.from_numpy(step.targets)
        place = next(index for index, limit in enumerate(CLASSES) if step.known.shape[1] < limit)
        drawn[place] += targets.numel()
        misplaced[place] += int(found.gather(1, targets).sum())
    return ByKnown(drawn, misplaced, found.sum(1))
