"""Many pictures by one method, in pieces that any worker can make, and a manifest of all of them.

Picture k has the condition k modulo their number and the image seed ``seed + k``, as in a batch of ``generate``: what
it looks like does not depend on how many there are or on who makes it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from ..checkpoints import build_model, build_vae, prompt_states
from ..checkpoints.checkpoint import load_model, load_vae, read_checkpoint
from ..drawing.png import write_png
from ..errors import GtRError, first_line
from ..files import digest, make_folder, replace_file, write_tensors
from ..models import Model
from ..models.lightgen import LightGenSpec
from ..models.vae import KLVAE
from ..noise import image_seeds
from ..pipeline import check_pair, decode_pictures, generate_latents
from ..plans.method import Method
from .resume import CHUNK, MOST_IMAGES
from .workers import Engine, Worker, run_tasks

VERSION, FORMATS, MANIFESTS = 1, ("png", "safetensors"), ("parquet", "jsonl")


RECORDS = ".records"  # the folder of what is known of every finished piece


@dataclass(frozen=True)
class Order:
    """What is wanted. Plain data: paths are absolute, ``prompts`` is a file of text states instead of ``labels``.

    ``shard`` pictures are one task and one safetensors file; they are made ``batch`` at a time.
    """

    model: Path
    vae: Path
    method: Method
    images: int
    seed: int
    output: Path
    labels: tuple[int, ...] = ()
    prompts: Path | None = None
    grid: tuple[int, int] | None = None
    format: str = "png"
    shard: int = CHUNK
    batch: int = 16
    dtype: torch.dtype = torch.float32
    accelerate: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.images < MOST_IMAGES or not 1 <= self.batch <= self.shard:
            raise GtRError(
                f"{self.images} pictures in shards of {self.shard}, batch {self.batch}: expected at least 1 "
                "picture, and a batch from 1 to the size of a shard"
            )
        if bool(self.labels) == bool(self.prompts):
            raise GtRError("expected classes, or encoded prompts for a model that draws from text")

    @property
    def starts(self) -> range:
        return range(0, self.images, self.shard)

    def indices(self, start: int) -> range:
        """The pictures of the piece that begins with ``start``."""
        return range(start, min(start + self.shard, self.images))

    def name(self, index: int) -> str:
        """The file of a picture, or of all those of its piece."""
        return f"{index:06}.png" if self.format == "png" else f"{index // self.shard * self.shard:06}.safetensors"


@dataclass(frozen=True)
class Keys:
    """Names every piece of an order by all that its pictures depend on (rounding aside: not the batch)."""

    facts: tuple
    conditions: tuple[str, ...]

    def of(self, order: Order, start: int) -> str:
        conditions = [self.conditions[index % len(self.conditions)] for index in order.indices(start)]
        return _sha256(json.dumps([*self.facts, start, conditions], sort_keys=True).encode())


def keys_of(order: Order, device: str) -> Keys:
    """Reads the weights and the prompts. Raises GtRError when they do not fit the order."""
    spec, tensors = load_model(read_checkpoint(order.model))
    vae_spec, vae_tensors = load_vae(read_checkpoint(order.vae))
    text = isinstance(spec, LightGenSpec)
    if text != bool(order.prompts):
        raise GtRError(f"{spec.name} draws from {'text: give its encoded prompts' if text else 'classes, not text'}")
    conditions = tuple(map(str, order.labels))
    if order.prompts:
        conditions = tuple(digest({"text": row}) for row in prompt_states(order.prompts, spec))
    settings = order.method.settings() | {"grid": order.grid or spec.grid, "format": order.format, "seed": order.seed}
    weights = [digest(tensors, spec), digest(vae_tensors, vae_spec)]
    return Keys((VERSION, *weights, settings, str(order.dtype), torch.device(device).type), conditions)


def make_worker(order: Order, keys: Keys, device: str) -> Worker:
    """What makes pieces of the order on a device, by their first picture; gives the piece's rows."""
    model, vae = build_model(order.model, device=device, dtype=order.dtype), build_vae(order.vae, device=device)
    check_pair(model, vae)
    states = prompt_states(order.prompts, model.spec) if order.prompts else None
    return partial(_make_piece, order, keys, model, vae, states, device)


def _make_piece(
    order: Order, keys: Keys, model: Model, vae: KLVAE, states: Tensor | None, device: str, start: int
) -> list[dict]:
    method, indices = order.method, order.indices(start)
    latents, pictures = [], []
    for first in range(start, indices.stop, order.batch):
        own = range(first, min(first + order.batch, indices.stop))
        condition = (
            [order.labels[index % len(order.labels)] for index in own]
            if states is None
            else states[[index % len(states) for index in own]].float()
        )
        latents.append(
            generate_latents(
                model,
                method.schedule,
                condition,
                order.seed + first,
                guidance=method.guidance,
                grid=order.grid,
                temperature=method.temperature,
                cache=method.cache,
                fts=method.fts,
                accelerate=order.accelerate,
                device=device,
                dtype=order.dtype,
            )
            .float()
            .cpu()
        )
        pictures.append(decode_pictures(vae, latents[-1].to(device)))
    made = np.concatenate(pictures)
    if order.format == "png":
        for index, picture in zip(indices, made):
            write_png(order.output / order.name(index), picture)
    else:
        write_tensors(
            order.output / order.name(start),
            {"pictures": torch.from_numpy(made), "latents": torch.cat(latents)},
            {"gtr.first": str(start)},
        )
    names = sorted({order.name(index) for index in indices})
    files = {name: _sha256((order.output / name).read_bytes()) for name in names}
    rows = [_row(order, index, len(keys.conditions), files, picture) for index, picture in zip(indices, made)]
    record = json.dumps({"key": keys.of(order, start), "files": files, "rows": rows}).encode()
    replace_file(_record(order, start), lambda beside: beside.write_bytes(record))
    return rows


def _row(order: Order, index: int, prompts: int, files: dict[str, str], picture: np.ndarray) -> dict:
    """A line of the manifest. The hash is that of a PNG file, or of the (H, W, 3) bytes in a file of several."""
    name = order.name(index)
    kind = "class" if order.labels else "prompt"
    condition = order.labels[index % len(order.labels)] if order.labels else index % prompts
    return {
        "index": index,
        "seed": image_seeds(order.seed, [index])[0],
        "class": None,
        "prompt": None,
        kind: condition,
        "preset": order.method.name,
        "file": name,
        "row": 0 if order.format == "png" else index % order.shard,
        "sha256": files[name] if order.format == "png" else _sha256(picture.tobytes()),
    }


def finished(order: Order, keys: Keys, start: int) -> list[dict] | None:
    """The rows of a piece whose files are all there and whole; None if it has to be made."""
    try:
        record = json.loads(_record(order, start).read_bytes())
        files, rows, indices = record["files"], record["rows"], order.indices(start)
        whole = (
            record["key"] == keys.of(order, start)
            and [row["index"] for row in rows] == list(indices)
            and set(files) == {order.name(index) for index in indices}
            and all(_sha256((order.output / name).read_bytes()) == own for name, own in files.items())
        )
        return rows if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def make_many(
    order: Order, engine: Engine, on_piece: Callable[[int, int], None] | None = None
) -> tuple[list[dict], int, Keys]:
    """The manifest's rows in order, how many pictures were made for them now, and the order's keys.

    ``on_piece(made, left)`` counts pictures. Pieces that are there and whole are kept.
    """
    keys = keys_of(order, engine.device)
    make_folder(order.output / RECORDS)
    rows = {start: finished(order, keys, start) for start in order.starts}
    missing = [start for start in order.starts if rows[start] is None]
    left = sum(len(order.indices(start)) for start in missing)
    made = 0

    def on_done(index: int, piece: list[dict]) -> None:
        nonlocal made
        rows[missing[index]], made = piece, made + len(piece)
        if on_piece is not None:
            on_piece(made, left - made)

    run_tasks(engine, partial(make_worker, order, keys), missing, on_done)
    return [row for start in order.starts for row in rows[start]], made, keys


def write_manifest(order: Order, keys: Keys, rows: Sequence[dict], kind: str) -> Path:
    """``manifest.parquet`` or ``manifest.jsonl``: equal rows make equal bytes. Raises GtRError."""
    path = order.output / f"manifest.{kind}"
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


def _record(order: Order, start: int) -> Path:
    return order.output / RECORDS / f"{start:06}.json"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
