"""The files of an evaluation, as plain data that can be sent to a worker."""

from __future__ import annotations

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
class EvaluationFiles:
    """Model, VAE, and what measures: a classifier's file, or with ``inception`` torch-fidelity's Inception, whose
    weights are downloaded where ``extractor`` names none. ``dtype`` is the transformer's."""

    model: Path
    vae: Path
    extractor: Path | None
    inception: bool = False
    dtype: torch.dtype = torch.float32
    accelerate: bool = False

    def open(self, device: str) -> Evaluation:
        """Everything on a device. Raises GtRError for files that cannot be read or do not fit each other."""
        model = load_model(self.model, device=device, dtype=self.dtype)
        runtime = Runtime(device, self.dtype, self.accelerate, preparations=Preparations())
        return Evaluation(model, load_vae(self.vae, device=device), self.open_extractor(device), runtime)

    def open_extractor(self, device: str) -> FeatureExtractor:
        """What measures, alone."""
        if self.inception:
            return inception_features(self.extractor, device=device)
        return ClassifierFeatures(load_classifier(self.extractor, device=device))
