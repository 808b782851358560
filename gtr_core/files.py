"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from .errors import GtRError, first_line


def replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a name beside ``path`` and rename what it made. Raises GtRError when that fails."""
    path = Path(path)
    if not path.name:
        raise GtRError(f"cannot write {path}: expected the name of a file")
    # Processes of several machines may share the folder: a process's number alone is not its own.
    beside = path.with_name(f".{path.name}.{os.getpid()}-{time.time_ns()}.part")
    try:
        write(beside)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise GtRError(
            f"cannot write {path} ({first_line(error)}): free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # what could not be made cannot be removed either
            beside.unlink()


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file of small tensors with metadata. Raises GtRError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda beside: beside.write_bytes(save(plain, dict(metadata))))


def digest(tensors: Mapping[str, Tensor], description: object = "") -> str:
    """A SHA-256 over names, dtypes, shapes and values: whether two sets of weights are the same."""
    total = hashlib.sha256(repr(description).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def make_folder(folder: Path) -> None:
    """Raises GtRError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GtRError(f"cannot make the folder {folder} ({error.strerror}): choose another") from error
