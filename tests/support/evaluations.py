"""Small parts of an evaluation: a classifier of random weights, and random images that it calls real."""

from __future__ import annotations

from pathlib import Path

import torch
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.evaluation.classifier import Classifier, ClassifierSpec, save_classifier
from gtr_pack.gtr_core.evaluation.features import ClassifierFeatures, ImageFeatures, make_reference, save_features
from gtr_pack.gtr_core.models.mar import MAR
from safetensors.torch import save_file

from .stand_ins import randomised

CLASSES = 10
VAE = Path(__file__).resolve().parents[1] / "golden" / "vae_tiny_fp16.safetensors"


def small_classifier() -> Classifier:
    """Of what the golden MAR draws: 10 classes at 128 pixels."""
    names = tuple(f"class {label}" for label in range(CLASSES))
    return randomised(Classifier(ClassifierSpec(128, (8, 8, 16, 16), names, (("hue", 3),), 6)), 1).eval()


def random_reference(classifier: Classifier) -> ImageFeatures:
    """80 images, 8 of every class."""
    generator = torch.Generator().manual_seed(7)
    batches = ((torch.rand(40, 3, 128, 128, generator=generator) * 2 - 1, torch.arange(40) % CLASSES) for _ in range(2))
    return make_reference(ClassifierFeatures(classifier), batches)


def write_model(folder: Path, model: MAR) -> list[str]:
    """The options that name a file of the model, and the golden VAE."""
    save_file(model.state_dict(), folder / "mar.safetensors", spec_metadata(model.spec, "ema"))
    return ["--model", str(folder / "mar.safetensors"), "--vae", str(VAE)]


def write_judge(folder: Path, classifier: Classifier, real: ImageFeatures) -> list[str]:
    """The options that name files of the classifier and of the real images."""
    save_classifier(folder / "judge.safetensors", classifier)
    save_features(folder / "real.safetensors", real, ClassifierFeatures(classifier).identity)
    return ["--extractor", str(folder / "judge.safetensors"), "--reference", str(folder / "real.safetensors")]
