"""Many images by one method, in pieces that any worker can make, and a manifest of all of them.

Image k has the condition k modulo their number and the seed ``seed + k``, as in a batch of ``generate``: what it looks
like does not depend on how many there are or on who makes it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import load_model, load_vae, prompt_states
from ..checkpoints.checkpoint import checked_model, read_checkpoint, usable_vae
from ..costs.report import image_facts
from ..device import Preparations, Runtime
from ..drawing.png import write_png
from ..errors import GtRError, first_line
from ..files import digest, lock, make_folder, remove_all_abandoned, replace_file, write_tensors
from ..models import Model
from ..models.autoencoder import Autoencoder
from ..models.prompts import pad_prompts
from ..noise import image_seeds
from ..pipeline import check_pair, decode_images, generate_latents
from ..plans.method import Method
from .resume import CHUNK, MOST_IMAGES, OnShare, key_of, resume, watch_batch
from .workers import Worker, WorkerPool

VERSION, FORMATS, MANIFESTS = 1, ("png", "safetensors"), ("parquet", "jsonl")
RECORDS = ".records"  # the folder of what is known of every finished piece
# Columns of a manifest, and what is in them.
COLUMNS: dict[str, tuple[type, ...]] = {
    "index": (int,),
    "seed": (int,),
    "class": (int, type(None)),
    "prompt": (int, type(None)),
    "preset": (str,),
    "file": (str,),
    "row": (int,),
    "sha256": (str,),
}
SOURCES = {"label": "classes", "text": "encoded text", "prompt": "prompts"}
OUTPUT_NAME = re.compile(r"\d{6,}\.(png|safetensors)")


@dataclass(frozen=True)
class GenerationJob:
    """What is wanted. Plain data: paths are absolute; instead of ``labels`` there are token ``ids`` of prompts, or
    ``prompts`` is a file of text states.

    ``shard`` images are one task and one safetensors file; they are made ``batch`` at a time.
    """

    model: Path
    vae: Path
    method: Method
    images: int
    seed: int
    output: Path
    labels: tuple[int, ...] = ()
    prompts: Path | None = None
    ids: tuple[tuple[int, ...], ...] = ()
    grid: tuple[int, int] | None = None
    format: str = "png"
    shard: int = CHUNK
    batch: int = 16
    dtype: torch.dtype = torch.float32
    accelerate: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.images < MOST_IMAGES or not 1 <= self.batch <= self.shard:
            raise GtRError(
                f"{self.images} images in shards of {self.shard}, batch {self.batch}: expected at least 1 image, and a "
                "batch from 1 to the size of a shard"
            )
        if sum(map(bool, (self.labels, self.prompts, self.ids))) != 1:
            raise GtRError("expected classes, or prompts for a model that draws from text")

    @property
    def condition(self) -> str:
        """What the images are of, as in ``ModelSpec.condition``."""
        return "label" if self.labels else "text" if self.prompts else "prompt"

    @property
    def starts(self) -> range:
        """The first image of every piece."""
        return range(0, self.images, self.shard)

    def indices(self, start: int) -> range:
        """The images of the piece that begins with ``start``."""
        return range(start, min(start + self.shard, self.images))

    def name(self, index: int) -> str:
        """The file of an image, or of all those of its piece."""
        return f"{index:06}.png" if self.format == "png" else f"{index // self.shard * self.shard:06}.safetensors"

    def record(self, start: int) -> Path:
        """The file of what is known of a finished piece."""
        return self.output / RECORDS / f"{start:06}.json"


@dataclass(frozen=True)
class Keys:
    """Names every piece of a job by all that its images depend on (rounding aside: not the batch)."""

    facts: tuple
    conditions: tuple[str, ...]

    def of(self, job: GenerationJob, start: int) -> str:
        conditions = [self.conditions[index % len(self.conditions)] for index in job.indices(start)]
        return key_of(*self.facts, start, conditions)


def keys_of(job: GenerationJob, device: str) -> Keys:
    """Reads the weights and the prompts. Raises GtRError when they do not fit the job."""
    spec, tensors = checked_model(read_checkpoint(job.model))
    vae_spec, vae_tensors = usable_vae(read_checkpoint(job.vae))
    if spec.condition != job.condition:
        raise GtRError(f"{spec.name} draws from {SOURCES[spec.condition]}, not from {SOURCES[job.condition]}")
    if job.grid is not None:
        spec.check_grid(job.grid)
    conditions = tuple(map(str, job.labels or job.ids))
    if job.prompts:
        conditions = tuple(digest({"text": row}) for row in prompt_states(job.prompts, spec))
    settings = job.method.settings() | {"grid": job.grid or spec.grid, "format": job.format, "seed": job.seed}
    weights = [digest(tensors, spec), digest(vae_tensors, vae_spec)]
    return Keys((VERSION, *weights, settings, str(job.dtype), torch.device(device).type), conditions)


@dataclass(frozen=True, eq=False)
class Generator:
    """What makes pieces of a job on a device, in one process."""

    job: GenerationJob
    keys: Keys
    device: str
    on_share: OnShare | None = None

    @cached_property
    def model(self) -> Model:
        return load_model(self.job.model, device=self.device, dtype=self.job.dtype)

    @cached_property
    def runtime(self) -> Runtime:
        """For all pieces: what is prepared for one serves the next."""
        return Runtime(self.device, self.job.dtype, self.job.accelerate, preparations=Preparations())

    @cached_property
    def vae(self) -> Autoencoder:
        return load_vae(self.job.vae, device=self.device)

    @cached_property
    def states(self) -> Tensor | None:
        """Encoded prompts."""
        return prompt_states(self.job.prompts, self.model.spec) if self.job.prompts else None

    def condition(self, images: range) -> Tensor:
        """Of some images: labels, prompts or text states, in turn."""
        if self.job.ids:
            return pad_prompts([self.job.ids[index % len(self.job.ids)] for index in images])
        if self.states is None:
            return torch.tensor([self.job.labels[index % len(self.job.labels)] for index in images])
        return self.states[[index % len(self.states) for index in images]].float()

    def make(self, start: int) -> list[dict]:
        """A piece by its first image: its files, its record, and its rows of the manifest."""
        job, indices = self.job, self.job.indices(start)
        latents, images = [], []
        for first in range(start, indices.stop, job.batch):
            some = range(first, min(first + job.batch, indices.stop))
            latents.append(
                generate_latents(
                    self.model,
                    job.method,
                    self.condition(some),
                    job.seed + first,
                    grid=job.grid,
                    runtime=self.runtime,
                    callback=watch_batch(self.on_share, first - start, len(some), len(indices)),
                )
            )
            images.append(decode_images(self.vae, latents[-1]))
        made = np.concatenate(images)
        if job.format == "png":
            for index, image in zip(indices, made):
                label = job.labels[index % len(job.labels)] if job.labels else None
                facts = image_facts(self.model.spec, job.method, image_seeds(job.seed, [index])[0], label)
                write_png(job.output / job.name(index), image, facts)
        else:
            tensors = {"images": torch.from_numpy(made), "latents": torch.cat(latents).float().cpu()}
            write_tensors(job.output / job.name(start), tensors, {"gtr.first": str(start)})
        names = sorted({job.name(index) for index in indices})
        files = {name: _sha256((job.output / name).read_bytes()) for name in names}
        rows = [self._row(index, files, image) for index, image in zip(indices, made)]
        record = json.dumps({"key": self.keys.of(job, start), "files": files, "rows": rows}).encode()
        replace_file(job.record(start), lambda beside: beside.write_bytes(record))
        return rows

    def _row(self, index: int, files: dict[str, str], image: np.ndarray) -> dict:
        """A line of the manifest. The hash is that of a PNG file, or of the (H, W, 3) bytes in a file of several."""
        job, name, count = self.job, self.job.name(index), len(self.keys.conditions)
        condition = {"class": job.labels[index % count]} if job.labels else {"prompt": index % count}
        return {
            "index": index,
            "seed": image_seeds(job.seed, [index])[0],
            **{"class": None, "prompt": None},
            **condition,
            "preset": job.method.name,
            "file": name,
            "row": 0 if job.format == "png" else index % job.shard,
            "sha256": files[name] if job.format == "png" else _sha256(image.tobytes()),
        }


def make_worker(job: GenerationJob, keys: Keys, device: str, on_share: OnShare | None = None) -> Worker:
    """A worker of its own for a device, which has read its files."""
    generator = Generator(job, keys, device, on_share)
    check_pair(generator.model, generator.vae)
    return generator.make


def finished(job: GenerationJob, keys: Keys, start: int) -> list[dict] | None:
    """The rows of a piece whose files are all there and whole; None if it has to be made."""
    try:
        record = json.loads(job.record(start).read_bytes())
        files, rows, indices = record["files"], record["rows"], job.indices(start)
        whole = (
            record["key"] == keys.of(job, start)
            and [row["index"] for row in rows] == list(indices)
            and set(files) == {job.name(index) for index in indices}
            and all(_sha256((job.output / name).read_bytes()) == digest for name, digest in files.items())
        )
        return rows if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


@contextmanager
def claim(job: GenerationJob) -> Iterator[None]:
    """Hold the job's folder, made first if it is missing, without what killed workers left in it. Raises GtRError when
    another job is at work in it."""
    make_folder(job.output / RECORDS)
    with lock(job.output / RECORDS / "lock", "generate-many"):
        for folder in (job.output, job.output / RECORDS):
            remove_all_abandoned(folder)
        yield


def strangers(job: GenerationJob) -> list[str]:
    """Files of another job in the folder: they look like images of this one, and its manifest does not list them."""
    named = {job.name(index) for start in job.starts for index in job.indices(start)}
    return sorted(
        path.name for path in job.output.iterdir() if OUTPUT_NAME.fullmatch(path.name) and path.name not in named
    )


@dataclass(frozen=True)
class Made:
    """A job's manifest rows in order, and how many of its images were made now."""

    rows: list[dict]
    made: int


def generate_many(
    job: GenerationJob,
    keys: Keys,
    pool: WorkerPool,
    on_piece: Callable[[int, int], None] | None = None,
    on_begin: Callable[[int], None] | None = None,
    on_share: OnShare | None = None,
) -> Made:
    """Make what is missing of a job with these :func:`keys_of` it. Pieces that are there and whole are kept.

    ``on_begin(left)`` and ``on_piece(made, left)`` count images, ``on_share`` is told what is done of the piece at
    hand, where this process makes it. To be called while :func:`claim` holds the folder.
    """
    starts = list(job.starts)
    kept = {start: finished(job, keys, start) for start in starts}
    left = sum(len(job.indices(start)) for start in starts if kept[start] is None)
    made = []
    if on_begin is not None:
        on_begin(left)

    def on_done(index: int, done: int) -> None:
        made.append(len(job.indices(starts[index])))
        if on_piece is not None:
            on_piece(sum(made), left - sum(made))

    here = on_share if pool.alone else None  # it cannot be sent to another process
    result = resume(starts, kept.get, pool, partial(make_worker, job, keys, on_share=here), on_done)
    return Made([row for rows in result.results for row in rows], sum(made))


def write_manifest(job: GenerationJob, keys: Keys, rows: Sequence[dict], kind: str) -> Path:
    """``manifest.parquet`` or ``manifest.jsonl``: equal rows make equal bytes. Raises GtRError."""
    path = job.output / f"manifest.{kind}"
    if kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        replace_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))
        return path
    arrow, parquet = _arrow("pyarrow"), _arrow("pyarrow.parquet")
    kinds = {
        "index": arrow.int64(),
        "seed": arrow.uint64(),
        "class": arrow.int32(),
        "prompt": arrow.int64(),
        "preset": arrow.string(),
        "file": arrow.string(),
        "row": arrow.int32(),
        "sha256": arrow.string(),
    }
    schema = arrow.schema(list(kinds.items()), metadata={"gtr": json.dumps(keys.facts, sort_keys=True)})
    table = arrow.Table.from_pylist(list(rows), schema=schema)
    replace_file(path, lambda beside: parquet.write_table(table, beside))
    return path


def read_manifest(folder: Path) -> list[dict]:
    """The rows of the manifest in a folder; the newer one where there are two. Raises GtRError."""
    there = [path for path in (folder / "manifest.jsonl", folder / "manifest.parquet") if path.is_file()]
    if not there:
        raise GtRError(f"no manifest.jsonl or manifest.parquet in {folder}: expected a folder of generate-many")
    try:
        newest = max(there, key=lambda path: path.stat().st_mtime_ns)
        if newest.suffix == ".jsonl":
            rows = [json.loads(line) for line in newest.read_text(encoding="utf-8").splitlines()]
        else:
            rows = _arrow("pyarrow.parquet").read_table(newest).to_pylist()
        whole = [_known(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GtRError(f"the manifest in {folder} is damaged ({first_line(error)}): run generate-many again") from error
    if not whole:
        raise GtRError(f"the manifest in {folder} names no image: run generate-many again")
    return whole


def _known(row: dict) -> dict:
    """The columns of a row that are known. Raises KeyError, TypeError, ValueError."""
    known = {name: row[name] for name in COLUMNS}
    if not all(isinstance(known[name], kinds) for name, kinds in COLUMNS.items()):
        raise TypeError("a column holds something else")
    if not OUTPUT_NAME.fullmatch(known["file"]) or known["row"] < 0 or (known["class"] or 0) < 0:
        raise ValueError(f"row {known['index']} names no image")
    return known


def check_manifest(kind: str) -> None:
    """Raises GtRError when this kind cannot be written here."""
    if kind == "parquet":
        _arrow("pyarrow")


def _arrow(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise GtRError(
            f"a Parquet manifest needs pyarrow ({first_line(error)}): pip install pyarrow (the extra "
            "'scale'), or use --manifest jsonl"
        ) from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
