"""What is kept of a set of pictures: features, class scores and spectra, of real pictures or of generated ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..checkpoints.checkpoint import read_checkpoint
from ..errors import GtRError
from ..files import digest, write_tensors
from .classifier import CLASS, Extractor
from .metrics import radial_spectrum

REFERENCE_KEY = "gtr.reference"


@dataclass(frozen=True, eq=False)
class Measured:
    """One row per picture, on the CPU: features (n, F), class scores (n, classes), log spectra (n, K), labels (n,).

    ``confidence`` (n, factors) is the probability of the factor value found most likely: a blurred or contradictory
    object has a low one. Widths may be 0 where a judge does not measure something.
    """

    features: Tensor
    scores: Tensor
    confidence: Tensor
    spectra: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Measured:
        """The given rows (indices or a mask)."""
        return Measured(*(getattr(self, field.name)[rows] for field in fields(self)))

    def balanced(self, count: int, seed: int) -> Tensor:
        """A mask (n,) of ``count`` random rows with the labels that evaluations of ``count`` pictures have."""
        classes = self.scores.shape[1]
        mask = torch.zeros(len(self), dtype=torch.bool)
        generator = torch.Generator().manual_seed(seed)
        for label in range(min(classes, count)):
            own, wanted = (self.labels == label).nonzero()[:, 0], len(range(label, count, classes))
            if len(own) < wanted:
                raise GtRError(
                    f"the reference has {len(own)} pictures of class {label}, {wanted} are needed: make a "
                    "larger one or lower --images"
                )
            mask[own[torch.randperm(len(own), generator=generator)[:wanted]]] = True
        return mask


@dataclass(frozen=True)
class Judge:
    """Measures pictures with an :class:`Extractor`."""

    extractor: Extractor

    @property
    def identity(self) -> str:
        """Changes with the extractor's weights, not with its name or recorded accuracy."""
        spec = self.extractor.spec
        return digest(self.extractor.state_dict(), (spec.size, spec.widths, spec.heads))

    @property
    def classes(self) -> int:
        return len(self.extractor.spec.classes)

    @torch.no_grad()
    def measure(self, images: Tensor, labels: Tensor) -> Measured:
        """Images (n, 3, H, W) in [-1, 1], rounded to 8 bits first, and labels (n,)."""
        images = rounded(images)
        features = self.extractor.features(images)
        scores = self.extractor.heads(features)
        factors = [scores[name].softmax(1).amax(1) for name, _ in self.extractor.spec.factors]
        confidence = torch.stack(factors, 1) if factors else features[:, :0]
        measured = (features, scores[CLASS], confidence, radial_spectrum(images).float())
        return Measured(*(tensor.cpu() for tensor in measured), labels.cpu().long())


def rounded(images: Tensor) -> Tensor:
    """What is left of images in [-1, 1] in a file of 8 bits per colour."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def joined(parts: Sequence[Measured]) -> Measured:
    """All rows of all parts, in order."""
    return Measured(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Measured)))


def make_reference(judge: Judge, batches: Iterable[tuple[Tensor, Tensor]]) -> Measured:
    """Measure real pictures: batches of images (n, 3, H, W) in [-1, 1], on the judge's device, and labels (n,)."""
    return joined([judge.measure(images, labels) for images, labels in batches])


def save_measured(path: str | os.PathLike, measured: Measured, key: str, *, dtype: torch.dtype = torch.float16) -> None:
    """One safetensors file; ``key`` says what was measured by whom, such as a judge's identity. Raises GtRError."""
    tensors = {field.name: getattr(measured, field.name) for field in fields(measured)}
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor.int() for name, tensor in tensors.items()
    }
    write_tensors(path, tensors, {REFERENCE_KEY: json.dumps({"key": key})})


def load_measured(path: str | os.PathLike, key: str, remedy: str) -> Measured:
    """The rows of a file, in float32. Raises GtRError, ending in ``remedy``, when it is not whole or not of ``key``."""
    checkpoint = read_checkpoint(path)
    name, tensors = checkpoint.path.name, checkpoint.tensors
    wanted = [field.name for field in fields(Measured)]
    if REFERENCE_KEY not in checkpoint.metadata or set(tensors) != set(wanted):
        raise GtRError(f"{name} does not hold measured pictures (tensors {', '.join(wanted)}): {remedy}")
    if checkpoint.metadata[REFERENCE_KEY] != json.dumps({"key": key}):
        raise GtRError(f"{name} was measured with another extractor or setting: {remedy}")
    labels = tensors["labels"].long()
    floats = [tensors[name].float() for name in wanted if name != "labels"]
    if labels.dim() != 1 or not len(labels) or any(t.dim() != 2 or len(t) != len(labels) for t in floats):
        raise GtRError(
            f"{name}: expected one row per picture, found "
            f"{', '.join(f'{key} {tuple(t.shape)}' for key, t in tensors.items())}: {remedy}"
        )
    if not all(torch.isfinite(t).all() for t in floats) or labels.min() < 0:
        raise GtRError(f"{name} holds NaN, infinite values or negative labels: {remedy}")
    return Measured(*floats, labels)


def load_reference(path: str | os.PathLike, judge: Judge) -> Measured:
    """The reference made with this judge's extractor. Raises GtRError."""
    measured = load_measured(path, judge.identity, "make the reference with the extractor that is used")
    if measured.scores.shape[1] != judge.classes or measured.labels.max() >= judge.classes:
        raise GtRError(
            f"{path}: expected {judge.classes} classes, found scores of {measured.scores.shape[1]} and "
            f"labels up to {int(measured.labels.max())}: make the reference again"
        )
    return measured
