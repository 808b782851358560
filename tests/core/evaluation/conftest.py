"""Fixtures of the evaluation tests: classifiers of random weights, random images that count as real, an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from gtr_pack.gtr_core.checkpoints import load_vae
from gtr_pack.gtr_core.evaluation.classifier import Classifier, ClassifierSpec
from gtr_pack.gtr_core.evaluation.evaluate import Effort, Evaluation, Kept, evaluate
from gtr_pack.gtr_core.evaluation.features import ClassifierFeatures, ImageFeatures
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_tests.evaluations import VAE, random_reference, small_classifier
from gtr_tests.stand_ins import randomised

IMAGES = 12


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    """Of 3 classes at 32 pixels, with contrast."""
    factors, accuracy = (("hue", 4), ("phase", 2)), {"class": 0.99, "hue": 1.0}
    return randomised(Classifier(ClassifierSpec(32, (8, 16), ("a", "b", "c"), factors, 12, 2.0, accuracy)), 1).eval()


@pytest.fixture(scope="session")
def extractor() -> Classifier:
    """Of what the golden MAR draws."""
    return small_classifier()


@pytest.fixture(scope="session")
def evaluation(tiny_mar, extractor) -> Evaluation:
    return Evaluation(tiny_mar, load_vae(VAE), ClassifierFeatures(extractor))


@pytest.fixture(scope="session")
def real(extractor) -> ImageFeatures:
    return random_reference(extractor)


@pytest.fixture(scope="session")
def random_method() -> Method:
    return Method(Schedule("random", "random", (3,), diffusion=(4, 4, 4)), Guidance(2.0))


@pytest.fixture(scope="session")
def gtr_method() -> Method:
    return Method(Schedule("gtr", "gtr", (2, 1, 1), diffusion=(4, 3, 3)), Guidance(2.0), FTS(0.5, 4))


@pytest.fixture(scope="session")
def complete(evaluation, random_method, gtr_method, tmp_path_factory) -> tuple[dict[str, list[ImageFeatures]], Path]:
    """Both methods, two seeds, 12 images of each; and the work folder."""
    work = tmp_path_factory.mktemp("work")
    return evaluate(evaluation, [random_method, gtr_method], (0, 1), IMAGES, Effort(Kept(work), batch=4)), work
