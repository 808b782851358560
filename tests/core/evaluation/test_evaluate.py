"""Evaluations: images in pairs, and pieces that survive a kill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation.classifier import Classifier
from gtr_pack.gtr_core.evaluation.evaluate import Effort, Evaluation, Kept, as_tensor, evaluate, tasks
from gtr_pack.gtr_core.evaluation.features import ClassifierFeatures, ImageFeatures
from gtr_pack.gtr_core.models import build
from gtr_pack.gtr_core.pipeline import decode_images, generate_latents
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_tests.evaluations import CLASSES
from gtr_tests.stand_ins import randomised, small_lightgen
from PIL import Image

IMAGES = 12


def same(a: ImageFeatures, b: ImageFeatures) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))


def test_labels_are_balanced_and_images_paired(complete):
    """The same label for image k whatever the method; other noise in every seed."""
    found, _ = complete
    assert list(found) == ["random", "gtr"] and [len(sets) for sets in found.values()] == [2, 2]
    for made in (*found["random"], *found["gtr"]):
        assert made.labels.tolist() == [k % CLASSES for k in range(IMAGES)] and torch.isfinite(made.features).all()
    assert not torch.allclose(found["random"][0].features, found["random"][1].features)
    assert not torch.allclose(found["random"][0].features, found["gtr"][0].features)


def test_images_are_those_of_the_generate_verb(evaluation, random_method, complete):
    """Image k of seed s has the image seed 2^32 s + k: it can be made again, alone, by any method."""
    latents = generate_latents(evaluation.model, random_method, [5], 2**32 + 5)
    images = as_tensor(decode_images(evaluation.vae, latents), "cpu")
    alone = evaluation.extractor.measure(images, torch.tensor([5]))
    assert torch.allclose(alone.features[0], complete[0]["random"][1].features[5], atol=1e-2)


def test_equal_methods_give_equal_images(evaluation, random_method):
    """Pairing to the bit: a method under another name starts from the same noise."""
    methods = (random_method, random_method.renamed("twin"))
    first, second = (evaluation.measure(tasks([method], [3], 4)[0], 4) for method in methods)
    assert same(first, second)


def test_the_batch_changes_rounding_only(evaluation, gtr_method):
    task = tasks([gtr_method], [0], 4)[0]
    one, four = evaluation.measure(task, 1), evaluation.measure(task, 4)
    assert torch.allclose(one.features, four.features, atol=1e-2) and torch.equal(one.labels, four.labels)


def test_a_deleted_result_is_made_again_exactly(evaluation, random_method, gtr_method, complete):
    found, work = complete
    results = sorted(work.iterdir())
    assert len(results) == 4
    before = {path.name: path.read_bytes() for path in results}
    results[1].unlink()
    results[2].write_bytes(results[2].read_bytes()[:-50])  # as a disk that was full
    results[3].write_bytes(before[results[0].name])  # a result of another key
    made = []
    effort = Effort(Kept(work), batch=4, on_task=lambda task, done, total: made.append((done, total)))
    again = evaluate(evaluation, [random_method, gtr_method], (0, 1), IMAGES, effort)
    assert made == [(2, 4), (3, 4), (4, 4)] and {path.name: path.read_bytes() for path in work.iterdir()} == before
    assert all(same(a, b) for name in found for a, b in zip(found[name], again[name]))


def test_a_longer_evaluation_goes_on_from_a_shorter_one(evaluation, random_method, tmp_path):
    """Whole chunks of a shorter evaluation are kept."""
    made = []
    effort = Effort(Kept(tmp_path), batch=4, chunk=4, on_task=lambda task, *_: made.append(task.start))
    evaluate(evaluation, [random_method], [0], 4, effort)
    made.clear()
    found = evaluate(evaluation, [random_method], [0], 8, effort)
    assert made == [4] and len(found["random"][0]) == 8


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, guidance=Guidance(3.0)),
        lambda m: replace(m, guidance=Guidance(2.0, "constant")),
        lambda m: replace(m, fts=FTS()),
        lambda m: replace(m, temperature=0.9),
        lambda m: replace(m, cache=LazyMAR()),
        lambda m: replace(m, schedule=replace(m.schedule, diffusion=(5, 4, 4))),
    ],
)
def test_keys_tell_settings_apart(change, evaluation, random_method):
    first, second = (tasks([method], [0], 4)[0] for method in (random_method, change(random_method)))
    assert evaluation.key(first) != evaluation.key(second)


def test_keys_tell_parts_and_pieces_apart(evaluation, extractor, random_method):
    task = tasks([random_method], [0], 4)[0]
    others = [
        evaluation.key(other) for other in (replace(task, seed=1), replace(task, start=4), replace(task, count=3))
    ]
    for part in (
        {"runtime": Runtime(dtype=torch.bfloat16)},
        {"runtime": Runtime(accelerate=True)},
        {"extractor": ClassifierFeatures(randomised(Classifier(extractor.spec), 2))},
        {"model": randomised(build(evaluation.model.spec), 3)},
    ):
        others.append(replace(evaluation, **part).key(task))
    assert len({evaluation.key(task), *others}) == 8
    assert evaluation.key(task) == Evaluation(evaluation.model, evaluation.vae, evaluation.extractor).key(task)


def test_kept_images_that_another_run_wrote_over_are_made_again(evaluation, random_method, tmp_path):
    kept = Kept(tmp_path / "work", tmp_path / "png")
    other = replace(random_method, guidance=Guidance(1.0))
    first, second = (tasks([method], [0], 4)[0] for method in (random_method, other))
    assert kept.image_files(first) == kept.image_files(second)
    evaluation.make(4, kept, first)
    made = kept.image(first, 0).read_bytes()
    evaluation.make(4, kept, second)
    assert kept.image(first, 0).read_bytes() != made
    assert evaluation.stored(first, kept) is None and evaluation.stored(second, kept) is not None
    evaluation.make(4, kept, first)
    assert kept.image(first, 0).read_bytes() == made


def test_kept_images_are_what_was_measured(evaluation, random_method, tmp_path):
    """One that is missing is made again."""
    task, kept = tasks([random_method], [0], 4)[0], Kept(tmp_path / "work", tmp_path / "png")
    assert evaluation.stored(task, kept) is None
    evaluation.make(2, kept, task)
    measured = evaluation.stored(task, kept)
    files = sorted((tmp_path / "png" / "random" / "seed-0").iterdir())
    assert [file.name for file in files] == [f"{k:06}.png" for k in range(4)]
    images = as_tensor(np.stack([np.array(Image.open(file)) for file in files]), "cpu")
    assert torch.allclose(evaluation.extractor.measure(images, measured.labels).features, measured.features, atol=1e-6)
    before = [file.read_bytes() for file in files]
    files[2].unlink()
    assert evaluation.stored(task, kept) is None
    evaluation.make(2, kept, task)
    assert [file.read_bytes() for file in files] == before and same(measured, evaluation.stored(task, kept))


def test_what_cannot_be_evaluated_is_refused(evaluation, extractor, random_method, tmp_path):
    with pytest.raises(GtRError, match="draws from text"):
        replace(evaluation, model=small_lightgen())
    with pytest.raises(GtRError, match="10 classes at 64 x 64 pixels"):
        replace(evaluation, extractor=ClassifierFeatures(Classifier(replace(extractor.spec, size=64))))
    with pytest.raises(GtRError, match="all of different names"):
        tasks([random_method, random_method], [0], 8)
    with pytest.raises(GtRError, match="at least 4 are needed"):
        tasks([random_method], [0], 3)
    (tmp_path / "file").touch()
    with pytest.raises(GtRError, match="cannot make the folder"):
        evaluate(evaluation, [random_method], [0], 4, Effort(Kept(tmp_path / "file" / "work")))
    with pytest.raises(GtRError, match="a batch of 0"):
        Effort(Kept(tmp_path), batch=0)
