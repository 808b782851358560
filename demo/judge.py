"""The classifier of the demo's images whose features measure quality, what it sees in real images, and coherence.

Its sprite head learns from mixtures, too: the tokens of one sprite and of another of the same class, with the share
that each has of the visible area as the target. So its largest probability says how much of an image is one sprite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gtr_core.evaluation.classifier import CLASS, Classifier, ClassifierSpec, load_classifier, save_classifier
from gtr_core.evaluation.features import ClassifierFeatures, make_reference, quantized, save_features
from gtr_core.models.vae import KLVAE

from . import data, runs

SPRITE = "sprite"
SIDE = data.SIZE // data.TOKEN


@dataclass(frozen=True)
class JudgePlan:
    steps: int = 2000
    batch: int = 96
    rate: float = 2e-3
    mixed: float = 0.5  # share of the training images that are mixtures
    noise: float = 0.1  # largest standard deviation of the noise that training images get
    held_out: int = 2000
    reference: int = 4800
    seed: int = 4


SPEC = ClassifierSpec(
    size=data.SIZE,
    widths=(16, 32, 64, 96, 96),
    classes=data.CLASS_NAMES,
    factors=tuple(data.FACTORS.items()),
    contrast=8.0,
)


def disturbed(images: Tensor, plan: JudgePlan, generator: torch.Generator) -> Tensor:
    """Noise of random strength, and a blur of half of the images: what a VAE does to an image should not count."""
    n = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    place = data.place(generator)
    share = torch.rand(n, 1, 1, 1, **place) * (torch.rand(n, 1, 1, 1, **place) < 0.5)
    noise = plan.noise * torch.rand(n, 1, 1, 1, **place)
    return images.lerp(blurred, 0.7 * share) + noise * torch.randn(images.shape, **place)


def scattered(n: int, generator: torch.Generator) -> Tensor:
    """(n, 16, 16) bool: single tokens, up to half of all."""
    place = data.place(generator)
    return torch.rand(n, SIDE, SIDE, **place) < 0.5 * torch.rand(n, 1, 1, **place)


def torn(n: int, generator: torch.Generator) -> Tensor:
    """(n, 16, 16) bool: one side of a line through the middle region, up to about half of all tokens."""
    place = data.place(generator)
    angle = 2 * torch.pi * torch.rand(n, 1, 1, **place)
    axis = (torch.arange(SIDE, device=generator.device) + 0.5) / SIDE - 0.5
    distance = torch.cos(angle) * axis + torch.sin(angle) * axis[:, None]
    return distance > 0.35 * torch.rand(n, 1, 1, **place)


def patchy(n: int, generator: torch.Generator) -> Tensor:
    """(n, 16, 16) bool: connected patches, up to half of all tokens."""
    place = data.place(generator)
    field = F.interpolate(torch.randn(n, 1, 5, 5, **place), size=(SIDE, SIDE), mode="bicubic")[:, 0]
    share = 0.5 * torch.rand(n, 1, **place)
    return field > torch.quantile(field.flatten(1), 1 - share.flatten(), dim=1).diagonal()[:, None, None]


def token_sets(n: int, generator: torch.Generator) -> Tensor:
    """(n, 16, 16) bool: which tokens are another image's, of the three kinds in turn."""
    kinds = [kind(n, generator) for kind in (scattered, torn, patchy)]
    rows = torch.arange(n, device=generator.device)
    return torch.stack(kinds)[rows % 3, rows]


def mixtures(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images of two sprites of the class, both sprites (n,) and the second's share (n,); half in the same pose."""
    n = len(labels)
    draw = data.choose(labels, generator)
    rival = data.rivals(draw, torch.arange(n, device=labels.device) // 3 % 2 == 0, generator)
    images, share = data.mixtures(draw, rival, token_sets(n, generator))
    return images, draw.sprite, rival.sprite, share


def judge_loss(extractor: Classifier, labels: Tensor, plan: JudgePlan, generator: torch.Generator) -> Tensor:
    """Real images teach all heads, mixtures class and sprite; all on the device of ``generator``."""
    count = round(plan.mixed * len(labels))
    images, truth = data.images(labels[count:], generator)
    mixed, first, second, share = mixtures(labels[:count], generator)
    with runs.half_precision(labels.device):
        scores = extractor(disturbed(torch.cat([mixed, images]), plan, generator))
    scores = {name: score.float() for name, score in scores.items()}
    loss = F.cross_entropy(scores[CLASS], labels)
    for name in truth:
        loss = loss + F.cross_entropy(scores[name][count:], truth[name])
    target = share.new_zeros(count, len(data.SPRITE_NAMES)).scatter(1, first[:, None], 1 - share[:, None])
    target = target.scatter(1, second[:, None], share[:, None])
    return loss + F.cross_entropy(scores[SPRITE][:count], target)


def train_judge(folder: Path, device: torch.device, plan: JudgePlan = JudgePlan()) -> Classifier:
    """The extractor of ``folder``, trained first if it is missing."""
    path, log = folder / "judge.safetensors", folder / "judge.jsonl"
    if path.exists():
        return load_classifier(path, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    runs.trim_log(log, 0)
    torch.manual_seed(plan.seed)
    extractor, means = Classifier(SPEC).to(device), runs.Means()
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=plan.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=plan.steps)
    for step in range(plan.steps):
        generator = runs.step_generator(plan.seed, step, device)
        labels = torch.randint(len(SPEC.classes), (plan.batch,), generator=generator, device=device)
        loss = judge_loss(extractor, labels, plan, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        means.add(loss=loss)
        if (step + 1) % 50 == 0:
            runs.append_log(log, step=step + 1, **means.take())
    extractor.eval().requires_grad_(False)
    extractor.spec = replace(SPEC, accuracy=held_out_accuracy(extractor, plan))
    save_classifier(path, extractor)
    return extractor


def calibrated(extractor: Classifier, vae: KLVAE) -> tuple[Classifier, Calibration]:
    """The extractor with the threshold of coherence in its spec, and how well that tells mixtures."""
    found = calibrate(extractor, vae, next(vae.parameters()).device)
    extractor.spec = replace(extractor.spec, whole=(SPRITE, found.least))
    return extractor, found


@torch.no_grad()
def held_out_accuracy(extractor: Classifier, plan: JudgePlan) -> dict[str, float]:
    """Share of fresh images that each head gets right."""
    device, hits = next(extractor.parameters()).device, dict.fromkeys(SPEC.heads, 0)
    for index, labels in enumerate(balanced(plan.held_out, device)):
        images, truth = data.images(labels, runs.step_generator(9, index, device))
        for name, scores in extractor(quantized(images)).items():
            hits[name] += int((scores.argmax(1) == ({CLASS: labels} | truth)[name]).sum())
    return {name: count / plan.held_out for name, count in hits.items()}


def balanced(count: int, device: torch.device) -> tuple[Tensor, ...]:
    """Labels 0, 1, ... in turn, in batches."""
    return (torch.arange(count, device=device) % len(data.CLASS_NAMES)).split(100)


def fresh(count: int, seed: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """``count`` images with balanced labels, in batches."""
    for index, labels in enumerate(balanced(count, device)):
        yield data.images(labels, runs.step_generator(seed, index, device))[0], labels


@torch.no_grad()
def sprite_confidence(extractor: Classifier, images: Tensor) -> Tensor:
    """(n,): the largest probability of the sprite head, about the share of the image's main sprite."""
    return extractor(quantized(images))[SPRITE].softmax(1).amax(1)


def write_reference(path: Path, extractor: Classifier, plan: JudgePlan = JudgePlan()) -> None:
    """What the extractor sees in fresh images: the real ones that generated ones are compared with."""
    judge, device = ClassifierFeatures(extractor), next(extractor.parameters()).device
    save_features(path, make_reference(judge, fresh(plan.reference, 8, device)), judge.identity)


@dataclass(frozen=True)
class Calibration:
    """The least sprite confidence of an image that counts as one sprite, and what share of images passes it."""

    least: float
    real: float
    decoded: float  # real images through the VAE
    mixtures: dict[float, float]  # by the rival's share of the area, from this share to the next


SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)


@torch.no_grad()
def calibrate(
    extractor: Classifier, vae: KLVAE, device: torch.device, count: int = 1200, passing: float = 0.99
) -> Calibration:
    """The threshold that ``passing`` of real images pass once the VAE has decoded them; mixtures are of latents."""
    real, decoded, mixed, shares = [], [], [], []
    for index, labels in enumerate(balanced(count, device)):
        generator = runs.step_generator(10, index, device)
        draw = data.choose(labels, generator)
        same_pose = torch.rand(len(labels), generator=generator, device=device) < 0.5
        rival = data.rivals(draw, same_pose, generator)
        tokens = token_sets(len(labels), generator)
        images = data.render(draw)
        own, other = (vae.moments(one)[0] for one in (images, data.render(rival)))
        cells = F.interpolate(tokens[:, None].float(), size=own.shape[-2:]) > 0
        real.append(sprite_confidence(extractor, images))
        decoded.append(sprite_confidence(extractor, vae.decode(own)))
        mixed.append(sprite_confidence(extractor, vae.decode(torch.where(cells, other, own))))
        shares.append(data.mixtures(draw, rival, tokens)[1])
    real, decoded, mixed, shares = (torch.cat(column) for column in (real, decoded, mixed, shares))
    least = math.floor(float(decoded.quantile(1 - passing)) * 1000) / 1000
    shares = torch.minimum(shares, 1 - shares)
    bins = {
        low: float((mixed[(shares >= low) & (shares < high)] >= least).float().mean())
        for low, high in zip(SHARES, SHARES[1:])
    }
    return Calibration(least, *(float((values >= least).float().mean()) for values in (real, decoded)), bins)
