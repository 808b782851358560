"""Evaluating methods: many pictures per method and seed, measured in small pieces that a killed run leaves behind.

Picture k of seed s has the same label and the same noise whatever the method, the batch and the number of pictures:
methods are compared in pairs, and a longer evaluation goes on from a shorter one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..drawing.png import write_png
from ..errors import GtRError
from ..files import digest, make_folder
from ..jobs.resume import CHUNK, MOST_IMAGES
from ..jobs.workers import Engine, MakeWorker, run_tasks
from ..models import Model
from ..models.mar import MARSpec
from ..models.vae import KLVAE
from ..pipeline import check_pair, decode_pictures, generate_latents
from ..plans.method import Method
from .features import Judge, Measured, joined, load_measured, save_measured

VERSION = 1


class PictureJudge(Protocol):
    """What looks at pictures; ``identity`` changes with everything that changes what it sees."""

    @property
    def identity(self) -> str: ...

    def measure(self, images: Tensor, labels: Tensor) -> Measured: ...


@dataclass(frozen=True)
class Task:
    """Pictures ``start`` to ``start + count - 1`` of one seed by one method. Plain data, to be sent anywhere."""

    method: Method
    seed: int
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class Studio:
    """What makes and measures pictures: one per process. ``device`` and ``dtype`` are the transformer's;
    ``accelerate`` is what :func:`gtr_core.sampler.sample` takes."""

    model: Model
    vae: KLVAE
    judge: PictureJudge
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    accelerate: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.model.spec, MARSpec):
            raise GtRError(f"{self.model.spec.name} draws from text: expected a class-conditional model to evaluate")
        check_pair(self.model, self.vae)
        spec = self.model.spec
        if isinstance(self.judge, Judge):
            own, made = self.judge.extractor.spec, spec.latent.size(spec.grid)
            if self.judge.classes != spec.classes or (own.size, own.size) != made:
                raise GtRError(
                    f"the extractor knows {self.judge.classes} classes at {own.size} x {own.size} pixels, "
                    f"{spec.name} draws {spec.classes} at {spec.latent.pixels(spec.grid)}: use the "
                    "model's own extractor"
                )

    @cached_property
    def identity(self) -> str:
        """Of model, VAE and judge with all their weights, of dtype and kind of device, and of acceleration."""
        parts = [digest(part.state_dict(), part.spec) for part in (self.model, self.vae)]
        return " ".join(
            [
                *parts,
                self.judge.identity,
                str(self.dtype),
                torch.device(self.device).type,
                *["accelerated"] * self.accelerate,
            ]
        )

    def key(self, task: Task) -> str:
        """A SHA-256 over everything that the task's result depends on (rounding aside: not the batch)."""
        facts = [VERSION, self.identity, task.method.settings(), task.seed, task.start, task.count]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


OnShard = Callable[[Task, int, int], None]


def tasks(methods: Sequence[Method], seeds: Iterable[int], images: int, chunk: int = CHUNK) -> list[Task]:
    """All tasks, seed by seed, so that a stopped evaluation has whole seeds. Raises GtRError."""
    seeds, names = list(seeds), [method.name for method in methods]
    if not methods or len(set(names)) != len(names):
        raise GtRError(f"methods {', '.join(names)}: expected at least one, all of different names")
    if not 4 <= images < MOST_IMAGES or not seeds or chunk < 1 or not all(0 <= seed < 2**31 for seed in seeds):
        raise GtRError(f"{images} images of {len(seeds)} seeds: expected at least 4 images and 1 seed from 0 to 2^31")
    return [
        Task(method, seed, start, min(chunk, images - start))
        for seed in seeds
        for method in methods
        for start in range(0, images, chunk)
    ]


def evaluate_shard(studio: Studio, task: Task, batch: int, pictures: Path | None = None) -> Measured:
    """Make and measure the pictures of a task, ``batch`` at a time; written to the folder ``pictures`` if given."""
    parts, spec, method = [], studio.model.spec, task.method
    for start in range(task.start, task.start + task.count, batch):
        indices = range(start, min(start + batch, task.start + task.count))
        labels = [index % spec.classes for index in indices]
        latents = generate_latents(
            studio.model,
            method.schedule,
            labels,
            (task.seed << 32) + start,
            guidance=method.guidance,
            temperature=method.temperature,
            cache=method.cache,
            fts=method.fts,
            device=studio.device,
            dtype=studio.dtype,
            accelerate=studio.accelerate,
        )
        images = decode_pictures(studio.vae, latents)
        for index, image in zip(indices, images if pictures else ()):
            write_png(picture_path(pictures, task, index), image)
        parts.append(studio.judge.measure(as_images(images, studio.device), torch.tensor(labels)))
    return joined(parts)


def shard(studio: Studio, task: Task, work: Path, batch: int, pictures: Path | None = None) -> tuple[Measured, bool]:
    """The result of a task from the folder ``work``, computed and stored first if it is not there; whether it was.

    A shard that is damaged or of another key is made again. Processes may share the folder.
    """
    found = stored(studio, task, work, pictures)
    if found is not None:
        return found, True
    for folder in {work, *(picture.parent for picture in _wanted(task, pictures))}:
        make_folder(folder)
    measured = evaluate_shard(studio, task, batch, pictures)
    key = studio.key(task)
    save_measured(_shard_path(work, key), measured, key, dtype=torch.float32)
    return measured, False


def stored(studio: Studio, task: Task, work: Path, pictures: Path | None = None) -> Measured | None:
    """The result of a task from the folder ``work``, if it and the kept pictures are there and whole."""
    key = studio.key(task)
    path = _shard_path(work, key)
    if not path.is_file() or not all(picture.is_file() for picture in _wanted(task, pictures)):
        return None
    try:
        return load_measured(path, key, "delete the file")
    except GtRError:
        return None


def make_shard(studio: Studio, work: Path, batch: int, pictures: Path | None, task: Task) -> None:
    """What a worker does with a task: the result stays in the folder ``work``."""
    shard(studio, task, work, batch, pictures)


def evaluate(
    studio: Studio,
    methods: Sequence[Method],
    seeds: Sequence[int],
    images: int,
    work: Path,
    *,
    batch: int = 16,
    pictures: Path | None = None,
    on_shard: OnShard | None = None,
    engine: Engine = Engine(),
    make_worker: MakeWorker | None = None,
) -> dict[str, list[Measured]]:
    """Per method the measured pictures of every seed. ``on_shard(task, done, total)`` is called when one was made.

    Workers other than this process make shards by ``make_worker``: what gives a partial of :func:`make_shard` with a
    studio like this one, of their own.
    """
    if batch < 1:
        raise GtRError(f"a batch of {batch}: expected at least 1")
    todo = tasks(methods, seeds, images, max(CHUNK, batch))
    rows = {task: stored(studio, task, work, pictures) for task in todo}
    missing = [task for task in todo if rows[task] is None]
    done = len(todo) - len(missing)

    def on_done(index: int, _: None) -> None:
        nonlocal done
        done += 1
        if on_shard is not None:
            on_shard(missing[index], done, len(todo))

    own = partial(make_shard, studio, work, batch, pictures)
    run_tasks(engine, make_worker or (lambda _: own), missing, on_done)
    for task in missing:
        rows[task] = stored(studio, task, work, pictures)
        if rows[task] is None:
            raise GtRError(
                f"a worker left no result of {task.method.name}, seed {task.seed}, from {task.start} on: "
                f"expected it in {work}; all workers must see the same files"
            )
    return {
        method.name: [
            joined([rows[task] for task in todo if (task.method, task.seed) == (method, seed)]) for seed in seeds
        ]
        for method in methods
    }


def _shard_path(work: Path, key: str) -> Path:
    return work / f"{key[:32]}.safetensors"


def _wanted(task: Task, pictures: Path | None) -> list[Path]:
    """The kept pictures of a task."""
    return [picture_path(pictures, task, task.start + k) for k in range(task.count)] if pictures else []


def as_images(pictures: np.ndarray, device: torch.device | str) -> Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture_path(folder: Path, task: Task, index: int) -> Path:
    """Where picture ``index`` of a task goes: one folder per method and seed."""
    name = "".join(c if c.isalnum() or c in "-._" else "_" for c in task.method.name)
    return folder / name / f"seed-{task.seed}" / f"{index:06}.png"
