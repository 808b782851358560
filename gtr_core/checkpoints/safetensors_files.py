"""Safetensors files, whole and in parts."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..device import check_budget
from ..errors import GtRError, first_line
from .stored import Stored

LONGEST_HEADER, MOST_TENSORS = 16 << 20, 16_384  # bytes of a header; published models have about 1000 tensors
MOST_PARTS = 1000
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True, eq=False)
class StoredTensor(Stored):
    """A tensor of a safetensors file."""

    file: Any
    name: str
    shape: tuple[int, ...]

    @property
    def place(self) -> Hashable:
        return id(self.file), self.name

    def load(self) -> Tensor:
        return self.file.get_tensor(self.name)


def read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a file and its metadata. Raises GtRError."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise GtRError(f"{path}: its name is not UTF-8, which a safetensors file needs: rename it") from error
    check_budget(path.stat().st_size, f"{path.name} needs")
    with readable(path):
        _check_header(path)
        file = safe_open(path, framework="pt")
        names = file.keys()
        tensors = {name: StoredTensor(file, name, tuple(file.get_slice(name).get_shape())) for name in names}
        return tensors, dict(file.metadata() or {})


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what the format's reader raises into a GtRError that names the file."""
    try:
        yield
    except GtRError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise GtRError(
            f"{path.name} is not a readable safetensors file ({first_line(error)}): it is damaged or truncated; "
            "download it again"
        ) from error


def _check_header(path: Path) -> None:
    """What the format's own reader lets pass. Raises ValueError for a huge header, too many tensors or equal names."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes, expected at most {LONGEST_HEADER}")
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    if len(header) > MOST_TENSORS:
        raise ValueError(f"{len(header)} tensors, expected at most {MOST_TENSORS}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object whose names differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


# Files in parts


def parts_of(path: Path) -> list[Path] | None:
    """All parts of a file of which this is one by its name; None for a whole file. Raises GtRError for missing ones."""
    match = PART.fullmatch(path.name)
    if match is None or match["count"] == "00001":
        return None
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= MOST_PARTS:
        return None
    names = [f"{match['stem']}-{number:05d}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1)]
    return _present(path, f"is one part of {count}", names)


def parts_of_index(path: Path) -> tuple[list[Path], dict[str, str]]:
    """The parts that an index names, and which of them holds which tensor. Raises GtRError."""
    try:
        if path.stat().st_size > LONGEST_HEADER:
            raise ValueError(f"more than {LONGEST_HEADER} bytes")
        places = json.loads(path.read_bytes())["weight_map"]
        if not isinstance(places, dict) or not places or len(places) > MOST_TENSORS:
            raise ValueError("no table of names")
        names = sorted(set(places.values()))
        if len(names) > MOST_PARTS or not all(name and Path(name).name == name and "\\" not in name for name in names):
            raise ValueError("parts that do not lie beside it")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise GtRError(
            f"{path.name} is the index of a sharded file, but cannot be read ({first_line(error)}): download it again, "
            "with all its parts"
        ) from error
    return _present(path, "is the index of a sharded file", names), places


def _present(path: Path, what: str, names: list[str]) -> list[Path]:
    missing = [name for name in names if not path.with_name(name).exists()]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise GtRError(f"{path.name} {what}; missing beside it: {listed}: put all its parts into one folder")
    return [path.with_name(name) for name in names]


def joined(path: Path, parts: Mapping[Path, Mapping[str, Any]], places: Mapping[str, str] | None) -> dict[str, Any]:
    """The tables of all parts as one; ``places`` says where each tensor must be. Raises GtRError."""
    found: dict[str, Any] = {}
    for part, table in parts.items():
        if not isinstance(table, dict):
            raise GtRError(f"{part.name} is not one part of a sharded file: put the parts of one file into the folder")
        twice = next((name for name in table if name in found), None)
        if twice is not None:
            raise GtRError(f"{part.name} holds '{twice}', which another part holds too: the parts are of two files")
        found |= table
    lost = next((name for name in places or {} if name not in parts[path.with_name(places[name])]), None)
    if lost is not None:
        raise GtRError(f"{places[lost]} lacks '{lost}', which {path.name} says it holds: download all parts again")
    return {name: found[name] for name in places} if places else found
