"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .errors import GtRError, first_line

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None

# The names of the safetensors format.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def replace_file(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a name beside ``path`` and rename what it made. Raises GtRError when that fails."""
    path = Path(path)
    if not path.name:
        raise GtRError(f"cannot write {path}: expected the name of a file")
    # Processes of several machines may share the folder: a process's number alone is not its own.
    beside = path.with_name(f"{_start_of_parts(path)}{os.getpid()}-{time.time_ns()}.part")
    try:
        with _locked(beside):
            write(beside)
            os.replace(beside, path)
    except OSError as error:
        raise GtRError(
            f"cannot write {path} ({first_line(error)}): free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # what could not be made cannot be removed either
            beside.unlink()


def write_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    mode_of: Path | None = None,
    on_written: Callable[[float], None] | None = None,
) -> None:
    """A safetensors file: equal tensors and metadata make equal bytes. Raises GtRError.

    It is written tensor by tensor, in the order of their sizes and names as the format's own writer does, with the
    permissions of the file ``mode_of``. ``on_written`` is told the share that is done, 0 to 1. The format's own writer
    draws a new order of the metadata every time, and leaves hidden files when it is killed.
    """

    def write(beside: Path) -> None:
        with open(beside, "wb") as file:
            _write_tensors(file, tensors, metadata, on_written)
        if mode_of is not None:
            shutil.copymode(mode_of, beside)

    replace_file(path, write)


def _write_tensors(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    on_written: Callable[[float], None] | None,
) -> None:
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, dict] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name in order:
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        plain = tensors[name].detach().cpu().contiguous()
        file.write(plain.reshape(-1).view(torch.uint8).numpy().data)
        if on_written is not None:
            on_written(header[name]["data_offsets"][1] / max(position, 1))


def _start_of_parts(path: Path) -> str:
    """How names begin that files have while they are written; short, as file systems limit a name's length."""
    return f".{path.name[-40:]}."


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left beside ``path`` when they were writing it.

    A process holds a lock on the file that it writes, which the system ends with it; where files cannot be locked, an
    hour without a change tells.
    """
    _remove_parts(path.parent, re.escape(_start_of_parts(path)))


def remove_all_abandoned(folder: Path) -> None:
    """The same for all files of a folder; nothing where there is no folder."""
    _remove_parts(folder, r"\..{1,40}\.")


def _remove_parts(folder: Path, start: str) -> None:
    """Abandoned parts whose names begin so, a regular expression."""
    pattern = re.compile(start + r"\d+-\d+\.part")
    with suppress(OSError):
        for entry in os.scandir(folder):
            if pattern.fullmatch(entry.name) and _abandoned(Path(entry.path)):
                os.unlink(entry.path)


def _abandoned(part: Path) -> bool:
    unchanged = time.time() - part.stat().st_mtime
    if fcntl is None:
        return unchanged > 3600
    with open(part, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return unchanged > 3600
    return unchanged > 1  # a younger one may not have its lock yet


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A new file that tells others, by a lock, that this process is writing it; where there are no locks, nothing."""
    if fcntl is None:
        yield
        return
    with open(path, "xb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


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
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # raises for a name that is too long
        if path.is_dir():
            raise GtRError(f"{path} is a folder: expected the name of a file")
        if not path.parent.is_dir():
            raise GtRError(f"no folder {path.parent}: make it, or choose another")
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
