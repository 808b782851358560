"""Tensors as they lie in a file: known by their shapes, and loaded when they are taken."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MOST_DIMENSIONS = 32


class Stored:
    """A tensor of a file that is not loaded yet. ``place`` is equal for two names of one tensor."""

    shape: tuple[int, ...]
    place: Hashable

    def load(self) -> Tensor:
        """The tensor, mapped from the file where that is possible. Raises what its reader raises."""
        raise NotImplementedError


@dataclass(eq=False)
class Storage:
    """``count`` numbers of a file under a key; ``data`` is set when their place is known."""

    key: str
    count: int
    nbytes: int
    data: np.ndarray | None = None


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
        last = sum((side - 1) * step for side, step in zip(self.size, self.stride))
        end = self.offset + (last + 1 if all(self.size) else 0)
        if end * self.dtype.itemsize > self.storage.nbytes or max(numbers) >= 2**62:
            raise ValueError(f"a tensor of shape {self.size} that leaves its storage")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    @property
    def place(self) -> Hashable:
        return self.storage.key, self.dtype, self.offset, self.size, self.stride

    def load(self) -> Tensor:
        data = self.storage.data
        if data is None:
            raise ValueError(f"no storage '{self.storage.key}'")
        flat = torch.from_numpy(data[: len(data) // self.dtype.itemsize * self.dtype.itemsize])
        if flat.data_ptr() % self.dtype.itemsize:
            flat = flat.clone()
        return flat.view(self.dtype).as_strided(self.size, self.stride, self.offset)
