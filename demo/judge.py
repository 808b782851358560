"""The classifier of the demo's images whose features measure quality, and what it sees in real images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtr_core.evaluation.classifier import CLASS, Classifier, ClassifierSpec, load_classifier, save_classifier
from gtr_core.evaluation.features import ClassifierFeatures, make_reference, quantized, save_features

from . import data, runs


@dataclass(frozen=True)
class JudgePlan:
    steps: int = 900
    batch: int = 64
    rate: float = 2e-3
    torn: float = 0.4  # largest share of tokens torn out of half of the images
    map_weight: float = 4.0  # of the loss of the map of seams
    noise: float = 0.1  # largest standard deviation of the noise that training images get
    held_out: int = 2000
    reference: int = 4000
    seed: int = 4


SEAMS = "seams"  # do threads break off at the border of a token, or not
TOKEN_MAP = 2  # the convolution whose positions are tokens: each sees the borders to the left and above
SPEC = ClassifierSpec(
    size=data.SIZE,
    widths=(16, 32, 48, 64, 64),
    classes=data.CLASS_NAMES,
    factors=(*data.FACTORS.items(), (SEAMS, 2)),
    contrast=8.0,
)


def disturbed(images: Tensor, plan: JudgePlan, generator: torch.Generator) -> Tensor:
    """Noise of random strength, and a blur of half of the images: what a VAE does to an image should not count."""
    n = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(n, 1, 1, 1, generator=generator) * (torch.rand(n, 1, 1, 1, generator=generator) < 0.5)
    noise = plan.noise * torch.rand(n, 1, 1, 1, generator=generator)
    return images.lerp(blurred, 0.5 * share) + noise * torch.randn(images.shape, generator=generator)


def train_judge(folder: Path, device: torch.device, plan: JudgePlan = JudgePlan()) -> Classifier:
    """The extractor of ``folder``, trained first if it is missing."""
    path = folder / "judge.safetensors"
    if path.exists():
        return load_classifier(path, device=device)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    extractor = Classifier(SPEC).to(device)
    seam_map = nn.Conv2d(SPEC.widths[TOKEN_MAP], 1, 1).to(device)  # for the training alone
    parameters = [*extractor.parameters(), *seam_map.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=plan.steps)
    for step in range(plan.steps):
        generator = runs.step_generator(plan.seed, step)
        labels = torch.randint(len(SPEC.classes), (plan.batch,), generator=generator)
        images, targets, broken = half_torn(labels, plan, generator)
        maps = extractor.maps(disturbed(images, plan, generator).to(device))
        scores = extractor.heads(extractor.pool(maps[-1]))
        loss = sum(F.cross_entropy(scores[name], targets[name].to(device)) for name in scores)
        found = F.binary_cross_entropy_with_logits(seam_map(maps[TOKEN_MAP])[:, 0], broken.to(device).float())
        optimizer.zero_grad(set_to_none=True)
        (loss + plan.map_weight * found).backward()
        optimizer.step()
        schedule.step()
    extractor.eval().requires_grad_(False)
    extractor.spec = replace(SPEC, accuracy=held_out_accuracy(extractor, plan))
    save_classifier(path, extractor)
    return extractor


@torch.no_grad()
def held_out_accuracy(extractor: Classifier, plan: JudgePlan) -> dict[str, float]:
    """Share of fresh images that each head gets right."""
    device = next(extractor.parameters()).device
    hits = {name: 0 for name in extractor.spec.heads}
    for index, labels in enumerate(balanced(plan.held_out)):
        images, targets, _ = half_torn(labels, plan, runs.step_generator(9, index))
        for name, scores in extractor(quantized(images).to(device)).items():
            hits[name] += int((scores.argmax(1).cpu() == targets[name]).sum())
    return {name: count / plan.held_out for name, count in hits.items()}


def half_torn(labels: Tensor, plan: JudgePlan, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Images of which the second half is torn, the truth of every head, and where the seams are, (n, 16, 16)."""
    n, side = len(labels), data.SIZE // data.TOKEN
    shares = plan.torn * torch.rand(n, 1, 1, generator=generator) * (torch.arange(n) >= n // 2)[:, None, None]
    torn = torch.rand(n, side, side, generator=generator) < shares
    images, truth = data.images(labels, generator, torn)
    broken = truth.pop(SEAMS)
    return images, {CLASS: labels, SEAMS: broken.flatten(1).any(1).long()} | truth, broken


def balanced(count: int) -> tuple[Tensor, ...]:
    """Labels 0, 1, ... in turn, in batches."""
    return (torch.arange(count) % len(data.CLASS_NAMES)).split(100)


def fresh(count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``count`` images with balanced labels, in batches."""
    for index, labels in enumerate(balanced(count)):
        yield data.images(labels, runs.step_generator(seed, index))[0], labels


def write_reference(path: Path, extractor: Classifier, plan: JudgePlan = JudgePlan()) -> None:
    """What the extractor sees in fresh images: the real ones that generated ones are compared with."""
    judge = ClassifierFeatures(extractor)
    save_features(path, make_reference(judge, fresh(plan.reference, 8)), judge.identity)
