"""Converting published checkpoints to safetensors with metadata."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..device import DTYPES
from ..errors import GtRError
from ..files import replace_file
from ..models.vae import is_vae
from .checkpoint import Checkpoint, check_tensors, checked_model, checked_vae, read_checkpoint
from .metadata import spec_metadata, vae_metadata

HEAD_PREFIX = "diffloss."


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    weights: str | None = None,
    dtype: str | None = None,
    heads: int | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Write a checked model or VAE checkpoint as safetensors with metadata; the diffusion head stays float32.

    Nothing is written unless all of it is good: the file is made beside the target and renamed. Raises GtRError.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise GtRError(f"output '{target.name}': expected a name that ends in .safetensors")
    checkpoint = read_checkpoint(source, weights=weights)
    if os.path.exists(target) and (not overwrite or target.samefile(source)):
        raise GtRError(f"{target} exists: choose another name" + ("" if overwrite else " or give --overwrite"))
    if is_vae(checkpoint.tensors):
        metadata = vae_metadata(checked_vae(checkpoint)[0])
    else:
        spec, _ = checked_model(checkpoint, heads=heads)
        metadata = spec_metadata(spec, checkpoint.weights)
    wanted = DTYPES[dtype] if dtype else None
    tensors = {name: _cast(name, tensor, wanted).contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    check_tensors(
        replace(checkpoint, tensors=tensors), checkpoint.tensors, f"the conversion to {dtype or 'the same dtype'}"
    )
    _save(tensors, target, metadata, like=source)
    return read_checkpoint(target)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if name.startswith(HEAD_PREFIX):
        return tensor.float()
    return tensor if dtype is None else tensor.to(dtype)


def _save(tensors: dict[str, Tensor], target: Path, metadata: dict[str, str], *, like: Path) -> None:
    """Write a safetensors file with the permissions of ``like``."""

    def write(beside: Path) -> None:
        save_file(tensors, beside, metadata=metadata)
        shutil.copymode(like, beside)

    replace_file(target, write)
