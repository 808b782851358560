"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
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


def check_writable(path: str | os.PathLike) -> None:
    """Raises GtRError when a file cannot be written there: to be called before the work whose result it will hold."""
    path = Path(path)
    if path.is_dir():
        raise GtRError(f"{path} is a folder: expected the name of a file")
    if not path.parent.is_dir():
        raise GtRError(f"no folder {path.parent}: make it, or choose another")
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name[:32]}.", suffix=".part", dir=path.parent)
    except (OSError, UnicodeError) as error:
        raise GtRError(f"cannot write into {path.parent} ({first_line(error)}): choose another folder") from error
    os.close(handle)
    os.unlink(beside)


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a folder for one process by a file in it: two would mix their files. Raises GtRError when it is held.

    The system ends the lock with the process that holds it.
    """
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise GtRError(
            f"{path.parent} is in use by another {what}: wait until it has ended, or choose another folder"
        ) from error
    except OSError as error:
        raise GtRError(f"cannot write {path} ({first_line(error)}): choose another folder") from error
    try:
        yield
    finally:
        held.release()


def make_folder(folder: Path) -> None:
    """Raises GtRError when that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GtRError(f"cannot make the folder {folder} ({error.strerror}): choose another") from error
