"""What is kept of a set of images: features, class scores and spectra, of real images or of generated ones."""

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
from ..models.spec import ModelSpec
from .classifier import CLASS, Classifier
from .metrics import radial_spectrum

REFERENCE_KEY = "gtr.reference"


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """One row per image, on the CPU: features (n, F), class scores (n, classes), log spectra (n, K), labels (n,).

    ``confidence`` (n, factors) is the probability of the factor value found most likely: a blurred or contradictory
    object has a low one. ``coherent`` (n, 1) is 1 where the image is one object and not a mixture of two. Widths may be
    0 where an extractor does not measure something.
    """

    features: Tensor
    scores: Tensor
    confidence: Tensor
    coherent: Tensor
    spectra: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> ImageFeatures:
        """The given rows (indices or a mask)."""
        return ImageFeatures(*(getattr(self, field.name)[rows] for field in fields(self)))

    def balanced(self, count: int, seed: int) -> Tensor:
        """A mask (n,) of ``count`` random rows with the labels that evaluations of ``count`` images have."""
        classes = self.scores.shape[1]
        mask = torch.zeros(len(self), dtype=torch.bool)
        generator = torch.Generator().manual_seed(seed)
        for label in range(min(classes, count)):
            own, wanted = (self.labels == label).nonzero()[:, 0], len(range(label, count, classes))
            if len(own) < wanted:
                raise GtRError(
                    f"the reference has {len(own)} images of class {label}, {wanted} are needed: make a "
                    "larger one or lower --images"
                )
            mask[own[torch.randperm(len(own), generator=generator)[:wanted]]] = True
        return mask


@dataclass(frozen=True)
class ClassifierFeatures:
    """Measures images with a :class:`Classifier`."""

    classifier: Classifier

    @property
    def identity(self) -> str:
        """Changes with the classifier's weights and settings, not with its recorded accuracy."""
        spec = self.classifier.spec
        return digest(self.classifier.state_dict(), (spec.size, spec.widths, spec.heads, spec.contrast, spec.whole))

    @property
    def classes(self) -> int:
        return len(self.classifier.spec.classes)

    def check_model(self, spec: ModelSpec) -> None:
        """Raises GtRError for a model of other classes or of another size."""
        size, drawn = self.classifier.spec.size, spec.latent.size(spec.grid)
        if self.classes != spec.classes or (size, size) != drawn:
            raise GtRError(
                f"the extractor knows {self.classes} classes at {size} x {size} pixels, {spec.name} draws "
                f"{spec.classes} at {spec.latent.pixels(spec.grid)}: use the model's own extractor"
            )

    @torch.no_grad()
    def measure(self, images: Tensor, labels: Tensor) -> ImageFeatures:
        """Images (n, 3, H, W) in [-1, 1], quantized to 8 bits first, and labels (n,)."""
        images = quantized(images)
        features = self.classifier.features(images)
        scores = self.classifier.heads(features)
        factors = [scores[name].softmax(1).amax(1) for name, _ in self.classifier.spec.factors]
        confidence = torch.stack(factors, 1) if factors else features[:, :0]
        spectra = radial_spectrum(images).float()
        measured = (features, scores[CLASS], confidence, self._coherent(scores), spectra)
        return ImageFeatures(*(tensor.cpu() for tensor in measured), labels.cpu().long())

    def _coherent(self, scores: dict[str, Tensor]) -> Tensor:
        """(n, 1), or (n, 0) of a classifier that does not recognise mixtures."""
        whole = self.classifier.spec.whole
        if whole is None:
            return scores[CLASS][:, :0]
        factor, least = whole
        return (scores[factor].softmax(1).amax(1, keepdim=True) >= least).float()


def quantized(images: Tensor) -> Tensor:
    """What is left of images in [-1, 1] in a file of 8 bits per colour."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def joined(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    """All rows of all parts, in order."""
    return ImageFeatures(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(ImageFeatures)))


def make_reference(extractor: ClassifierFeatures, batches: Iterable[tuple[Tensor, Tensor]]) -> ImageFeatures:
    """Measure real images: batches of images (n, 3, H, W) in [-1, 1], on the extractor's device, and labels (n,)."""
    return joined([extractor.measure(images, labels) for images, labels in batches])


def save_features(
    path: str | os.PathLike, measured: ImageFeatures, key: str, *, dtype: torch.dtype = torch.float16
) -> None:
    """One safetensors file; ``key`` says what was measured by what, such as an extractor's identity."""
    tensors = {field.name: getattr(measured, field.name) for field in fields(measured)}
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor.int() for name, tensor in tensors.items()
    }
    write_tensors(path, tensors, {REFERENCE_KEY: json.dumps({"key": key})})


def load_features(path: str | os.PathLike, key: str, remedy: str) -> ImageFeatures:
    """The rows of a file, in float32. Raises GtRError, ending in ``remedy``, when it is not whole or not of ``key``."""
    checkpoint = read_checkpoint(path)
    name, tensors = checkpoint.path.name, checkpoint.tensors
    wanted = [field.name for field in fields(ImageFeatures)]
    if REFERENCE_KEY not in checkpoint.metadata or set(tensors) != set(wanted):
        raise GtRError(f"{name} does not hold measured images (tensors {', '.join(wanted)}): {remedy}")
    if checkpoint.metadata[REFERENCE_KEY] != json.dumps({"key": key}):
        raise GtRError(f"{name} was measured with another extractor or setting: {remedy}")
    labels = tensors["labels"].long()
    floats = [tensors[name].float() for name in wanted if name != "labels"]
    if labels.dim() != 1 or not len(labels) or any(t.dim() != 2 or len(t) != len(labels) for t in floats):
        raise GtRError(
            f"{name}: expected one row per image, found "
            f"{', '.join(f'{key} {tuple(t.shape)}' for key, t in tensors.items())}: {remedy}"
        )
    if not all(torch.isfinite(t).all() for t in floats) or labels.min() < 0:
        raise GtRError(f"{name} holds NaN, infinite values or negative labels: {remedy}")
    return ImageFeatures(*floats, labels)


def load_reference(path: str | os.PathLike, extractor: ClassifierFeatures) -> ImageFeatures:
    """The reference made with this extractor. Raises GtRError."""
    measured = load_features(path, extractor.identity, "make the reference with the extractor that is used")
    if measured.scores.shape[1] != extractor.classes or measured.labels.max() >= extractor.classes:
        raise GtRError(
            f"{path}: expected {extractor.classes} classes, found scores of {measured.scores.shape[1]} and "
            f"labels up to {int(measured.labels.max())}: make the reference again"
        )
    return measured
