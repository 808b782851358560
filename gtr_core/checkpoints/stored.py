"""Tensors as they lie in a file: known by their shapes, and loaded when they are taken."""

from __future__ import annotations

import mmap
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MOST_DIMENSIONS = 32
SMALLEST_PART = 1 << 16  # bytes; systems limit the number of mapped parts


class Stored:
    """A tensor of a file that is not loaded yet. ``place`` is equal for two names of one tensor."""

    shape: tuple[int, ...]
    place: Hashable

    def load(self) -> Tensor:
        """The tensor, mapped from the file where that is possible. Raises what its reader raises."""
        raise NotImplementedError


class MappedFile:
    """A file whose bytes ``data`` are there to be read, and whose parts can be had to be changed, each for itself:
    what nobody asks for takes no memory."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")
        self.data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def part(self, start: int, end: int) -> np.ndarray:
        """Bytes as an array of uint8; what is written into it does not reach the file."""
        if end - start < SMALLEST_PART:
            return np.array(bytearray(self.data[start:end]), np.uint8)
        before = start % mmap.ALLOCATIONGRANULARITY
        access, offset = mmap.ACCESS_COPY, start - before
        part = mmap.mmap(self._file.fileno(), end - offset, access=access, offset=offset)
        return np.frombuffer(part, np.uint8)[before:]


class FileInMemory:
    """The same of bytes that were read already."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def part(self, start: int, end: int) -> np.ndarray:
        return np.array(bytearray(self.data[start:end]), np.uint8)


@dataclass(eq=False)
class Storage:
    """``count`` numbers of a file under a key; ``file`` and ``start`` are set when their place is known."""

    key: str
    count: int
    nbytes: int
    file: MappedFile | FileInMemory | None = None
    start: int = 0


@dataclass(frozen=True, eq=False)
class StoredView(Stored):
    """A view of a storage. Raises ValueError unless all of it lies inside."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.size) != len(self.stride) or len(self.size) > MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {len(self.size)} dimensions with {len(self.stride)} strides")
        numbers = (self.offset, *self.size, *self.stride)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a tensor whose sizes are not whole numbers of at least 0")
        if self.end * self.dtype.itemsize > self.storage.nbytes or max(numbers) >= 2**62:
            raise ValueError(f"a tensor of shape {self.size} that leaves its storage")

    @property
    def end(self) -> int:
        """Behind the last value in the storage."""
        last = sum((side - 1) * step for side, step in zip(self.size, self.stride))
        return self.offset + last + 1 if all(self.size) else self.offset

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    @property
    def place(self) -> Hashable:
        return self.storage.key, self.dtype, self.offset, self.size, self.stride

    def load(self) -> Tensor:
        storage = self.storage
        if storage.file is None:
            raise ValueError(f"no storage '{storage.key}'")
        if not all(self.size):
            return torch.empty(self.size, dtype=self.dtype)
        itemsize = self.dtype.itemsize
        start, end = (storage.start + place * itemsize for place in (self.offset, self.end))
        flat = torch.from_numpy(storage.file.part(start, end))
        if flat.data_ptr() % itemsize:
            flat = flat.clone()
        return flat.view(self.dtype).as_strided(self.size, self.stride)
