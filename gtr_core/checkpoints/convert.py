"""Converting published checkpoints to safetensors with metadata."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..device import dtype_named
from ..errors import GtRError
from ..files import check_writable, remove_abandoned, write_tensors
from ..models import recognise_autoencoder
from .checkpoint import Checkpoint, check_cast, check_tensors, checked_model, checked_vae, read_checkpoint
from .metadata import spec_metadata, vae_metadata
from .statistics import fold_statistics

HEAD = "diffloss"  # in the names of the diffusion head's weights
# Shares of a conversion's time, about: after reading, after checking and casting, after writing.
CHECKED_FROM, WRITTEN_FROM, WRITTEN_TO = 0.2, 0.5, 0.9


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    weights: str | None = None,
    dtype: torch.dtype | str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[str, float], None] | None = None,
    **told: Any,
) -> Checkpoint:
    """Write a checked model or VAE checkpoint as safetensors with metadata; the diffusion head stays float32.

    What the source does not tell is ``told`` and stored: ``heads``, and of a model ``grid`` (rows, columns), ``patch``,
    ``vae_stride``, ``class_names`` and ``latent`` (a name, SCALE or SCALE,SHIFT). Of a VAE or tokenizer ``stats`` is
    the file of its latents' mean and deviation per channel, which are folded in, and ``stats_key`` their name there.
    Equal sources and settings make equal files. Nothing is written unless all of it is good: the place is checked
    before anything is read, and the file is made beside it and renamed. ``on_progress`` is told what is being done and
    the share of the whole that is done, 0 to 1. The result is the target as it was read back,
    with the ``entry`` of the source. Raises GtRError.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target, overwrite)
    tell = on_progress or (lambda what, share: None)
    tell(f"reading {source.name}", 0.0)
    checkpoint = read_checkpoint(source, weights=weights)
    tell(f"checking {source.name}", CHECKED_FROM)
    given = {name: value for name, value in told.items() if value is not None}
    if recognise_autoencoder(checkpoint.tensors) is not None:
        checkpoint, metadata, exact = _vae(checkpoint, given)
    else:
        strange = next((name for name in ("stats", "stats_key") if name in given), None)
        if strange is not None:
            raise GtRError(
                f"{source.name} is a model, and statistics belong into its VAE or tokenizer: leave "
                f"--{strange.replace('_', '-')} out, and say with --latent what the model draws"
            )
        metadata, exact = spec_metadata(checked_model(checkpoint, **given)[0], checkpoint.weights), ()
    wanted = None if dtype is None else dtype_named(dtype)
    tensors = {
        name: tensor if name in exact else _cast(checkpoint, name, wanted)
        for name, tensor in checkpoint.tensors.items()
    }
    check_tensors(replace(checkpoint, tensors=tensors), checkpoint.tensors, "the conversion")
    remove_abandoned(target)
    span = WRITTEN_TO - WRITTEN_FROM

    def on_written(share: float) -> None:
        tell(f"writing {target.name}", WRITTEN_FROM + span * share)

    write_tensors(target, tensors, metadata, mode_of=source, on_written=on_written)
    written = read_checkpoint(target)
    return replace(written, entry=checkpoint.entry)


def _vae(checkpoint: Checkpoint, told: dict[str, Any]) -> tuple[Checkpoint, dict[str, str], tuple[str, ...]]:
    """A VAE or tokenizer with what is told of it, its metadata, and the tensors that stay in their dtype."""
    family = recognise_autoencoder(checkpoint.tensors)
    allowed = {"stats", "stats_key", *family.spec.stored}
    strange = next((name for name in told if name not in allowed), None)
    if strange is not None:
        raise GtRError(
            f"{checkpoint.path.name} is a VAE, which has no {strange.replace('_', ' ')}: leave the option out"
        )
    spec, tensors = checked_vae(checkpoint, told.get("heads"))
    if "stats" not in told:
        if "stats_key" in told:
            raise GtRError("--stats-key names statistics of a file: give the file with --stats")
        return checkpoint, vae_metadata(spec), ()
    if spec.normalised:
        raise GtRError(f"{checkpoint.path.name} holds statistics already: leave --stats out")
    spec, tensors = fold_statistics(spec, tensors, told["stats"], checkpoint.path.stem, told.get("stats_key"))
    return replace(checkpoint, tensors=tensors), vae_metadata(spec), family.folded


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
