"""Measuring images that ``generate-many`` made: a folder and its manifest, in pieces that a stopped run leaves."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..checkpoints.checkpoint import read_checkpoint
from ..errors import GtRError
from ..files import make_folder
from ..jobs.resume import OnShare, key_of, resume
from ..jobs.workers import Worker
from .evaluate import Effort, FeatureExtractor, as_tensor
from .features import ImageFeatures, joined, load_features, save_features
from .files import ExtractorFile

VERSION = 1
REMEDY = "run generate-many again, which makes anew what is damaged"


@dataclass(frozen=True)
class Piece:
    """Some images of a folder: rows of its manifest. Plain data, to be sent anywhere."""

    folder: Path
    rows: tuple[dict, ...]

    def __str__(self) -> str:
        return f"{self.folder.name}, images {self.rows[0]['index']} to {self.rows[-1]['index']}"

    @property
    def labels(self) -> list[int]:
        """Of every image; 0 where it was drawn from text."""
        return [row["class"] or 0 for row in self.rows]

    def key(self, extractor: FeatureExtractor, device: str) -> str:
        """Of everything that the measured features depend on."""
        contents = [row["sha256"] for row in self.rows]
        return key_of(VERSION, extractor.identity, torch.device(device).type, contents, self.labels)


def measure_folder(folder: Path, rows: Sequence[dict], file: ExtractorFile, effort: Effort) -> ImageFeatures:
    """All images that the ``rows`` of the folder's manifest name, measured, by an earlier run where the same images
    are still there. ``effort.on_task(piece, done, total)`` is called when a piece was. Raises GtRError for an image
    that is missing or not the one that was made."""
    size = max(effort.chunk, effort.batch)
    pieces = [Piece(folder, tuple(rows[start : start + size])) for start in range(0, len(rows), size)]
    extractor, device = file.open(effort.pool.device if effort.pool.alone else "cpu"), effort.pool.device

    def on_done(index: int, done: int) -> None:
        if effort.on_task is not None:
            effort.on_task(pieces[index], done, len(pieces))

    def stored(piece: Piece) -> ImageFeatures | None:
        return _stored(effort.kept.work, piece.key(extractor, device))

    for piece in pieces:
        if _path(effort.kept.work, piece.key(extractor, device)).is_file():  # others are checked when they are measured
            check_images(piece)
    here = effort.on_share if effort.pool.alone else None  # it cannot be sent to another process
    make_worker = partial(_worker, file, effort.kept.work, effort.batch, device, on_share=here)
    return joined(resume(pieces, stored, effort.pool, make_worker, on_done, effort.on_begin).results)


def _stored(work: Path, key: str) -> ImageFeatures | None:
    path = _path(work, key)
    try:
        return load_features(path, key, "delete the file") if path.is_file() else None
    except GtRError:
        return None


def _path(work: Path, key: str) -> Path:
    return work / f"{key[:32]}.safetensors"


def _worker(
    file: ExtractorFile, work: Path, batch: int, kind: str, device: str, on_share: OnShare | None = None
) -> Worker:
    """What measures pieces on a device, with an extractor of its own."""
    extractor = file.open(device)

    def make(piece: Piece) -> None:
        make_folder(work)
        images, labels, parts = list(read_images(piece)), torch.tensor(piece.labels), []
        for start in range(0, len(images), batch):
            some = np.stack(images[start : start + batch])
            parts.append(extractor.measure(as_tensor(some, device), labels[start : start + batch]))
            if on_share is not None:
                on_share(min(start + batch, len(images)) / len(images))
        key = piece.key(extractor, kind)
        save_features(_path(work, key), joined(parts), key, dtype=torch.float32)

    return make


def check_images(piece: Piece) -> None:
    """Raises GtRError where an image of a piece is not what the manifest says."""
    for name, group in groupby(piece.rows, key=lambda row: row["file"]):
        path, rows = piece.folder / name, list(group)
        with _named(path, rows):
            for _ in _contents(path, rows):
                pass


def read_images(piece: Piece) -> Iterator[np.ndarray]:
    """The images (H, W, 3) uint8 of a piece. Raises GtRError where one is not what the manifest says, or of another
    size than the first."""
    shape: tuple[int, ...] = ()
    for name, rows in groupby(piece.rows, key=lambda row: row["file"]):
        for image in _read(piece.folder / name, list(rows)):
            shape = shape or image.shape
            if image.shape != shape:
                raise GtRError(f"{piece.folder}: images of {shape[:2]} and {image.shape[:2]}: expected one size")
            yield image


def _read(path: Path, rows: list[dict]) -> Iterator[np.ndarray]:
    """The images of one file."""
    with _named(path, rows):
        for content in _contents(path, rows):
            if isinstance(content, np.ndarray):
                yield content
            else:
                with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                    yield np.array(image.convert("RGB"))


def _contents(path: Path, rows: list[dict]) -> Iterator[bytes | np.ndarray]:
    """What the manifest has the hashes of: a PNG's bytes, or the images (H, W, 3) in a file of several."""
    if path.suffix == ".png":
        data = path.read_bytes()
        _check(path, data, rows[0])
        yield data
        return
    if not path.is_file():
        raise FileNotFoundError(path)
    images = read_checkpoint(path).tensors["images"].numpy()
    for row in rows:
        image = images[row["row"]]
        _check(path, image.tobytes(), row)
        yield image


@contextmanager
def _named(path: Path, rows: list[dict]) -> Iterator[None]:
    """Turns the errors of reading a file into one line."""
    try:
        yield
    except GtRError:
        raise
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise GtRError(f"{path}: no image {rows[0]['index']} ({type(error).__name__}): {REMEDY}") from error


def _check(path: Path, data: bytes, row: dict) -> None:
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise GtRError(f"{path}: image {row['index']} is not the one that the manifest names: {REMEDY}")
