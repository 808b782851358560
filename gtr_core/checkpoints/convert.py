"""Converting published checkpoints to safetensors with metadata."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..device import dtype_named
from ..errors import GtRError
from ..files import check_writable, remove_abandoned, write_tensors
from ..models.vae import is_vae
from .checkpoint import Checkpoint, check_cast, check_tensors, checked_model, checked_vae, read_checkpoint
from .metadata import spec_metadata, vae_metadata

HEAD = "diffloss"  # in the names of the diffusion head's weights


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    weights: str | None = None,
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
    **told: Any,
) -> Checkpoint:
    """Write a checked model or VAE checkpoint as safetensors with metadata; the diffusion head stays float32.

    What the source does not tell is ``told`` and stored: ``heads``, ``grid`` (rows, columns), ``patch``,
    ``vae_stride`` and ``class_names``.
    Equal sources and settings make equal files. Nothing is written unless all of it is good: the place is checked
    before anything is read, and the file is made beside it and renamed. The result is the source as it was read, with
    the tensors that were written. Raises GtRError.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target, overwrite)
    checkpoint = read_checkpoint(source, weights=weights)
    if is_vae(checkpoint.tensors):
        strange = next((name for name, value in told.items() if value is not None), None)
        if strange is not None:
            raise GtRError(f"{source.name} is a VAE, which has no {strange.replace('_', ' ')}: leave the option out")
        metadata = vae_metadata(checked_vae(checkpoint)[0])
    else:
        metadata = spec_metadata(checked_model(checkpoint, **told)[0], checkpoint.weights)
    wanted = None if dtype is None else dtype_named(dtype)
    tensors = {name: _cast(checkpoint, name, wanted) for name in checkpoint.tensors}
    check_tensors(replace(checkpoint, tensors=tensors), checkpoint.tensors, "the conversion")
    remove_abandoned(target)
    write_tensors(target, tensors, metadata, mode_of=source)
    written = read_checkpoint(target)
    return replace(written, entry=checkpoint.entry)


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    """Raises GtRError where the file cannot be written, or must not."""
    if target.suffix != ".safetensors":
        raise GtRError(f"output '{target.name}': expected a name that ends in .safetensors")
    try:
        os.fspath(target).encode("utf-8")
    except UnicodeEncodeError as error:
        raise GtRError(
            f"output '{target}': the name is not UTF-8, which a safetensors file needs: choose another"
        ) from (error)
    if os.path.exists(target):
        if not overwrite or (source.exists() and target.samefile(source)):
            raise GtRError(f"{target} exists: choose another name" + ("" if overwrite else " or give --overwrite"))
    check_writable(target)


def _cast(checkpoint: Checkpoint, name: str, dtype: torch.dtype | None) -> Tensor:
    dtype = torch.float32 if HEAD in name.split(".") else dtype
    if dtype is None:
        return checkpoint.tensors[name]
    check_cast(checkpoint, name, dtype)
    return checkpoint.tensors[name].to(dtype)
