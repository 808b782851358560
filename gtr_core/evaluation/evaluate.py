"""Evaluating methods: many images per method and seed, measured in small pieces that a killed run leaves behind.

Image k of seed s has the same label and the same noise whatever the method, the batch and the number of images:
methods are compared in pairs, and a longer evaluation goes on from a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..costs.report import image_facts
from ..device import Runtime
from ..drawing.png import write_png
from ..errors import GtRError
from ..files import digest, make_folder, remove_all_abandoned, replace_file
from ..jobs.resume import CHUNK, MOST_IMAGES, OnShare, key_of, resume, watch_batch
from ..jobs.workers import MakeWorker, Worker, WorkerPool
from ..models import Model
from ..models.autoencoder import Autoencoder
from ..models.spec import ModelSpec
from ..pipeline import check_pair, decode_images, generate_latents
from ..plans.method import Method
from .features import ImageFeatures, joined, load_features, save_features

VERSION = 1
# Of one seed: figures of fewer images have no spread. An image's own seed has the seed in its upper half.
FEWEST_IMAGES, LARGEST_SEED = 4, 2**31 - 1


class FeatureExtractor(Protocol):
    """What measures images; ``identity`` changes with everything that changes what it sees."""

    @property
    def identity(self) -> str: ...

    def check_model(self, spec: ModelSpec) -> None:
        """Raises GtRError for a model whose images it does not know."""

    def measure(self, images: Tensor, labels: Tensor) -> ImageFeatures: ...


@dataclass(frozen=True)
class Task:
    """Images ``start`` to ``start + count - 1`` of one seed by one method. Plain data, to be sent anywhere."""

    method: Method
    seed: int
    start: int
    count: int

    def __str__(self) -> str:
        return f"{self.method.name}, seed {self.seed}, from image {self.start} on"


@dataclass(frozen=True)
class Kept:
    """Where results are kept: measured features in ``work``, and every image as PNG in ``images``, if given."""

    work: Path
    images: Path | None = None

    def image(self, task: Task, index: int) -> Path:
        """One folder per method and seed."""
        name = "".join(c if c.isalnum() or c in "-._" else "_" for c in task.method.name)
        return self.images / name / f"seed-{task.seed}" / f"{index:06}.png"

    def image_files(self, task: Task) -> list[Path]:
        """Those of a task."""
        return [self.image(task, task.start + k) for k in range(task.count)] if self.images else []

    def key_file(self, task: Task) -> Path:
        """What the images of a task were made with, beside their folder: another run may have written over them."""
        folder = self.image(task, task.start).parent
        return folder.with_name(f"{folder.name}.{task.start:06}.key")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What makes and measures images: one per process. ``runtime`` is the model's."""

    model: Model
    vae: Autoencoder
    extractor: FeatureExtractor
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        spec = self.model.spec
        if spec.condition != "label":
            raise GtRError(f"{spec.name} draws from text: expected a class-conditional model to evaluate")
        check_pair(self.model, self.vae)
        self.extractor.check_model(spec)

    def for_device(self, device: str) -> Evaluation:
        """The same with another device in its keys: that of the workers that compute."""
        return replace(self, runtime=replace(self.runtime, device=device))

    @cached_property
    def identity(self) -> str:
        """Of model, VAE and extractor with all their weights, of dtype and kind of device, and of acceleration."""
        weights = [digest(part.state_dict(), part.spec) for part in (self.model, self.vae)]
        how = [str(self.runtime.dtype), self.runtime.type, *["accelerated"] * self.runtime.accelerate]
        return " ".join([*weights, self.extractor.identity, *how])

    def key(self, task: Task) -> str:
        """Of everything that the task's result depends on (rounding aside: not the batch)."""
        return key_of(VERSION, self.identity, task.method.settings(), task.seed, task.start, task.count)

    def path(self, task: Task, work: Path) -> Path:
        """The file of a task's result."""
        return work / f"{self.key(task)[:32]}.safetensors"

    def measure(
        self, task: Task, batch: int, kept: Kept | None = None, on_share: OnShare | None = None
    ) -> ImageFeatures:
        """Make and measure the images of a task, ``batch`` at a time; what is to be ``kept`` of them is written."""
        classes, parts = self.model.spec.classes, []
        for start in range(task.start, task.start + task.count, batch):
            indices = range(start, min(start + batch, task.start + task.count))
            labels = [index % classes for index in indices]
            seed = (task.seed << 32) + start
            watch = watch_batch(on_share, start - task.start, len(labels), task.count)
            latents = generate_latents(self.model, task.method, labels, seed, runtime=self.runtime, callback=watch)
            images = decode_images(self.vae, latents)
            if kept is not None and kept.images is not None:
                for index, image, label in zip(indices, images, labels):
                    facts = image_facts(self.model.spec, task.method, (task.seed << 32) + index, label)
                    write_png(kept.image(task, index), image, facts)
            parts.append(self.extractor.measure(as_tensor(images, self.runtime.device), torch.tensor(labels)))
        return joined(parts)

    def stored(self, task: Task, kept: Kept) -> ImageFeatures | None:
        """The result of a task, if it is there and whole, and so are the images to be kept."""
        path = self.path(task, kept.work)
        if not path.is_file() or not all(image.is_file() for image in kept.image_files(task)):
            return None
        try:
            if kept.images is not None and kept.key_file(task).read_text(encoding="utf-8") != self.key(task):
                return None
            return load_features(path, self.key(task), "delete the file")
        except (GtRError, OSError, UnicodeDecodeError):
            return None

    def make(self, batch: int, kept: Kept, task: Task, on_share: OnShare | None = None) -> None:
        """What a worker does with a task: the result stays in the folder. Processes may share the folder."""
        for folder in {kept.work, *(image.parent for image in kept.image_files(task))}:
            make_folder(folder)
        features = self.measure(task, batch, kept, on_share)
        if kept.images is not None:
            key = self.key(task)
            replace_file(kept.key_file(task), lambda beside: beside.write_text(key, encoding="utf-8"))
        save_features(self.path(task, kept.work), features, self.key(task), dtype=torch.float32)


OnTask = Callable[[Any, int, int], None]  # a task that was made, how many are done, of how many
Open = Callable[[str], Evaluation]  # of a device; sent to processes: a function of a module, or a partial of one


def check_amount(images: int, seeds: Sequence[int]) -> None:
    """Raises GtRError for a number of images or seeds that cannot be evaluated."""
    if images < FEWEST_IMAGES:
        raise GtRError(f"--images {images}: at least {FEWEST_IMAGES} are needed")
    if images >= MOST_IMAGES:
        raise GtRError(f"--images {images}: expected fewer than {MOST_IMAGES}")
    if not seeds:
        raise GtRError("--seeds 0: at least 1 is needed")
    strange = next((seed for seed in seeds if not 0 <= seed <= LARGEST_SEED), None)
    if strange is not None:
        raise GtRError(f"seed {strange}: expected 0 to {LARGEST_SEED}; correct --first-seed")


def check_names(methods: Sequence[Method]) -> None:
    """Raises GtRError for methods that their names do not tell apart, and for none."""
    names = [method.name for method in methods]
    if not names or len(set(names)) != len(names):
        raise GtRError(f"methods {', '.join(names)}: expected at least one, all of different names")


def tasks(methods: Sequence[Method], seeds: Iterable[int], images: int, chunk: int = CHUNK) -> list[Task]:
    """All tasks, seed by seed, so that a stopped evaluation has whole seeds. Raises GtRError."""
    seeds = list(seeds)
    check_names(methods)
    check_amount(images, seeds)
    if chunk < 1:
        raise GtRError(f"tasks of {chunk} images: expected at least 1")
    return [
        Task(method, seed, start, min(chunk, images - start))
        for seed in seeds
        for method in methods
        for start in range(0, images, chunk)
    ]


@dataclass(frozen=True)
class Effort:
    """How an evaluation is computed: ``batch`` images at a time, in tasks of ``chunk``, by the workers of ``pool``.

    Workers other than this process ``open`` an evaluation like the caller's, of their own. ``on_begin`` is told how
    many tasks are to be made, and ``on_share`` what is done of the one at hand, where this process makes it.
    """

    kept: Kept
    batch: int = 16
    chunk: int = CHUNK
    pool: WorkerPool = WorkerPool()
    open: Open | None = None
    on_task: OnTask | None = None
    on_begin: Callable[[int], None] | None = None
    on_share: OnShare | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise GtRError(f"a batch of {self.batch}: expected at least 1")


def evaluate(
    evaluation: Evaluation, methods: Sequence[Method], seeds: Sequence[int], images: int, effort: Effort
) -> dict[str, list[ImageFeatures]]:
    """Per method the measured images of every seed. ``effort.on_task(task, done, total)`` is called when one was
    made."""
    todo = tasks(methods, seeds, images, max(effort.chunk, effort.batch))

    def on_done(index: int, done: int) -> None:
        if effort.on_task is not None:
            effort.on_task(todo[index], done, len(todo))

    make_worker: MakeWorker = (
        partial(_worker, effort.open, effort.batch, effort.kept)
        if effort.open is not None
        else lambda device: partial(evaluation.make, effort.batch, effort.kept, on_share=effort.on_share)
    )
    remove_all_abandoned(effort.kept.work)
    found = resume(
        todo, lambda task: evaluation.stored(task, effort.kept), effort.pool, make_worker, on_done, effort.on_begin
    )
    features = dict(zip(todo, found.results))
    return {
        method.name: [
            joined([features[task] for task in todo if (task.method, task.seed) == (method, seed)]) for seed in seeds
        ]
        for method in methods
    }


def _worker(open_: Open, batch: int, kept: Kept, device: str) -> Worker:
    """An evaluation of its own for a worker elsewhere."""
    return partial(open_(device).make, batch, kept)


def as_tensor(images: np.ndarray, device: torch.device | str) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
