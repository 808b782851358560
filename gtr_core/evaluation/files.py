"""The files of an evaluation, as plain data that can be sent to a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoints import load_model, load_vae
from ..device import Preparations, Runtime
from .classifier import load_classifier
from .evaluate import Evaluation, FeatureExtractor
from .features import ClassifierFeatures
from .fid import inception_features


@dataclass(frozen=True)
class ExtractorFile:
    """What measures: a classifier's ``file``, or with ``inception`` torch-fidelity's Inception, whose weights are
    downloaded where there is no file."""

    file: Path | None
    inception: bool = False

    def open(self, device: str) -> FeatureExtractor:
        """On a device. Raises GtRError for a file that is none."""
        if self.inception:
            return inception_features(self.file, device=device)
        return ClassifierFeatures(load_classifier(self.file, device=device))


@dataclass(frozen=True)
class EvaluationFiles:
    """Model, VAE, and what measures, as in :class:`ExtractorFile`. ``dtype`` is the transformer's."""

    model: Path
    vae: Path
    extractor: Path | None
    inception: bool = False
    dtype: torch.dtype = torch.float32
    accelerate: bool = False

    def open(self, device: str, on_file: Callable[[Path], None] = lambda file: None) -> Evaluation:
        """Everything on a device. ``on_file`` is told of every file before it is read. Raises GtRError for files that
        cannot be read or do not fit each other."""
        on_file(self.model)
        model = load_model(self.model, device=device, dtype=self.dtype)
        on_file(self.vae)
        vae = load_vae(self.vae, device=device)
        if self.extractor is not None:
            on_file(self.extractor)
        runtime = Runtime(device, self.dtype, self.accelerate, preparations=Preparations())
        return Evaluation(model, vae, self.open_extractor(device), runtime)

    def open_extractor(self, device: str) -> FeatureExtractor:
        """What measures, alone."""
        return ExtractorFile(self.extractor, self.inception).open(device)
