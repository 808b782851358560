"""Latent statistics as training codes save them, read as data: a plain pickle of torch tensors or numpy arrays, or a
file of torch.save. Nothing in them is executed."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import GtRError, first_line
from ..models import AUTOENCODERS
from ..models.autoencoder import AutoencoderSpec, LatentStatistics
from .archives import legacy_storage, read_pickled
from .formats import Format, format_of
from .pickles import Opaque, Refused, interpret
from .safetensors_files import read_safetensors
from .stored import Stored

# The name under which l-DeTok's statistics are published.
PUBLISHED = "stats.pkl"
LARGEST_FILE = 1 << 20  # bytes
# l-DeTok's file: {tokenizer: {"single": (mean, std), "channel": (mean, std)}}, "channel" of means and log-variances.
CHANNEL = "channel"
MEAN, STD = "mean", "std"
NUMBERS = ("f2", "f4", "f8")


def fold_statistics(
    spec: AutoencoderSpec, tensors: Mapping[str, Tensor], path: Path | str, stem: str, key: str | None = None
) -> tuple[AutoencoderSpec, dict[str, Tensor]]:
    """A VAE or tokenizer with the statistics of a file folded in: see :func:`read_statistics`. Raises GtRError."""
    statistics = read_statistics(path, spec.embed_channels, stem, key)
    return replace(spec, normalised=True), AUTOENCODERS[spec.family].fold(tensors, statistics)


def read_statistics(path: Path | str, channels: int, stem: str, key: str | None = None) -> LatentStatistics:
    """Mean and deviation of ``channels`` channels.

    A file of several tokenizers is asked for ``key``, or for the one that the name ``stem`` of the tokenizer's file
    begins with. Raises GtRError.
    """
    path = Path(path)
    named = f"latent statistics: {path.name}"
    try:
        mean, std = (_numbers(values) for values in _pair(_content(path), stem, key))
    except Refused as error:
        raise GtRError(f"{named} {error} and was not executed: use the published stats.pkl") from error
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
        if isinstance(error, GtRError):
            raise GtRError(f"latent statistics: {error}") from error
        raise GtRError(
            f"{named} cannot be read ({first_line(error)}): expected mean and standard deviation per "
            "channel, such as l-DeTok's stats.pkl"
        ) from error
    for name, values in ((MEAN, mean), (STD, std)):
        if len(values) not in (channels, 2 * channels):
            raise GtRError(
                f"{named} has a {name} of {len(values)} channels, the latents have {channels}: choose the "
                "statistics of this file"
            )
    mean, std = mean[:channels], std[:channels]  # of twice as many the others are the log-variances'
    if not torch.isfinite(mean).all() or not torch.isfinite(std).all() or (std <= 0).any():
        raise GtRError(f"{named} holds a deviation that is not above 0, or infinite values: it is damaged")
    return LatentStatistics(mean, std)


def _bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2, which has no bytes, writes them. Raises ValueError."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("a text in another encoding")
    return text.encode("latin1")


# What stands for the functions that these pickles name.
CALLS = {("torch.storage", "_load_from_bytes"): legacy_storage, ("_codecs", "encode"): _bytes}


def _content(path: Path) -> Any:
    """Tables, tuples, and what :func:`_numbers` reads."""
    form = format_of(path)
    if path.stat().st_size > LARGEST_FILE:
        raise GtRError(f"{path.name} has {path.stat().st_size} bytes, expected at most {LARGEST_FILE}")
    if form is Format.SAFETENSORS:
        return read_safetensors(path)[0]
    data = path.read_bytes()
    if data[:2] == b"PK":
        return read_pickled(path)
    content, _ = interpret(data, 0, len(data), {}, calls=CALLS, longest_bytes=LARGEST_FILE)
    return read_pickled(path) if type(content) is int else content  # the magic number of torch's old format


def _pair(content: Any, stem: str, key: str | None) -> Sequence[Any]:
    """Mean and deviation, as they lie in the file."""
    if not isinstance(content, Mapping):
        raise ValueError("it holds no table")
    if MEAN in content and STD in content:
        return content[MEAN], content[STD]
    found = {name: entry for name, entry in content.items() if isinstance(entry, dict) and CHANNEL in entry}
    if not found:
        raise ValueError("it names no statistics")
    if key is None:
        fitting = [name for name in found if stem.startswith(name)]
        key = max(fitting, key=len) if fitting else next(iter(found)) if len(found) == 1 else None
    if key not in found:
        listed = ", ".join(f"'{name}'" for name in found)
        raise GtRError(f"it holds the statistics of {listed}: convert the tokenizer with --stats-key NAME")
    pair = found[key][CHANNEL]
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError("no mean and deviation per channel")
    return pair


def _numbers(value: Any) -> Tensor:
    """A vector, float64, of a tensor of torch, an array of numpy or a list of numbers."""
    if isinstance(value, Stored):
        return value.load().double().flatten()
    if isinstance(value, (list, tuple)):
        return torch.tensor([float(number) for number in value], dtype=torch.float64)
    if not isinstance(value, Opaque):
        raise ValueError("something else than numbers")
    if value.kind.endswith("multiarray._reconstruct"):
        _, _, dtype, _, data = value.state
    elif value.kind.endswith("numeric._frombuffer"):
        data, dtype = value.values[:2]
    else:
        raise ValueError(f"an object of {value}")
    if not isinstance(dtype, Opaque) or not isinstance(data, bytes):
        raise ValueError("an array without its numbers")
    form, order = dtype.values[0], dtype.state[1]
    if form not in NUMBERS or order != "<":
        raise ValueError("numbers that are not little-endian floating point")
    return torch.from_numpy(np.frombuffer(data, f"<{form}").astype(np.float64))
