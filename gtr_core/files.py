"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

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
