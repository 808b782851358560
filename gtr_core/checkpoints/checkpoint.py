"""Reading model files safely.

A safetensors file is data. Anything else goes through ``pickles``, which never calls what a file asks for. Every size
that a file states is compared with the file and with the memory at hand before anything is allocated.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..device import DTYPES, check_budget
from ..errors import GtRError, first_line
from ..models import ModelSpec, build, recognise
from ..models.vae import KLVAE, VAESpec
from .metadata import WEIGHTS_KEY, read_spec, read_vae_spec
from .pickles import read_pickle

# Sizes in bytes of published files known to hold the raw, not the averaged weights (docs/upstream.md 1.12).
KNOWN_NOT_EMA = {831_736_456: "mar-base.safetensors"}
DISTRIBUTED = "module."
LONGEST_HEADER, MOST_TENSORS = 16 << 20, 16_384  # bytes of a safetensors header; published models have about 1000
Spec = TypeVar("Spec", ModelSpec, VAESpec)


@dataclass(frozen=True)
class Checkpoint:
    """A state dict with what is known about it. ``weights`` is ``ema``, ``model`` or ``unknown``."""

    path: Path
    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, str]
    weights: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, were each stored in full."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def warning(self) -> str | None:
        """One line when the file holds, or may hold, weights that are not the EMA."""
        family = recognise(self.shapes)
        if self.weights == "ema" or family is None or family.weights != "ema":
            return None
        certainty = "holds" if self.weights == "model" else "may hold"
        return (
            f"{self.path.name} {certainty} non-EMA weights, which give worse images (FID 5.6 instead of 2.3 for "
            "MAR-B): convert the original checkpoint-last.pth, which has both"
        )


def read_checkpoint(path: str | os.PathLike, *, weights: str | None = None) -> Checkpoint:
    """Read a .safetensors, .pth, .pt or .ckpt file; nothing in it is executed.

    Of a training checkpoint {model, model_ema, ...} the ``weights`` (``ema`` or ``model``) are taken, by default what
    upstream uses: the EMA of MAR, the model itself of LightGen. A prefix ``module.`` is dropped. Raises
    GtRError for files that are missing, truncated, foreign or hold other objects.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise GtRError(f"no file at {path}: check the name, or put the model there")
    if path.suffix.lower() in (".safetensors", ".sft"):
        tensors, metadata = _read_safetensors(path)
        kind = metadata.get(WEIGHTS_KEY, "model" if path.stat().st_size in KNOWN_NOT_EMA else "unknown")
    else:
        tensors, kind = _unwrap(read_pickle(path), path, weights)
        metadata = {}
    checkpoint = Checkpoint(path, tensors, metadata, kind)
    if checkpoint.nbytes > path.stat().st_size:
        raise GtRError(
            f"{path.name}: its tensors need {checkpoint.nbytes} bytes, the file has {path.stat().st_size}: "
            "it is damaged or forged; download it again"
        )
    return checkpoint


def checked_model(checkpoint: Checkpoint, *, heads: int | None = None) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The spec and the checked tensors of a model checkpoint. Raises GtRError."""
    spec = _in_file(checkpoint, lambda: read_spec(checkpoint.shapes, checkpoint.metadata, heads=heads))
    check_tensors(checkpoint, build(spec, device="meta").state_dict(), spec.name)
    return spec, checkpoint.tensors


def checked_vae(checkpoint: Checkpoint) -> tuple[VAESpec, dict[str, Tensor]]:
    """The spec and the checked tensors of a KL VAE checkpoint. Raises GtRError."""
    spec = _in_file(checkpoint, lambda: read_vae_spec(checkpoint.shapes, checkpoint.metadata))
    with torch.device("meta"):
        expected = KLVAE(spec).state_dict()
    check_tensors(checkpoint, expected, f"KL VAE (f{spec.stride})")
    return spec, checkpoint.tensors


def check_tensors(checkpoint: Checkpoint, expected: Mapping[str, Tensor], name: str) -> None:
    """Compare names, shapes, dtypes and finiteness with what the architecture needs.

    Raises GtRError with the counts and the first offender.
    """
    found, file = checkpoint.tensors, checkpoint.path.name
    missing, surplus = [k for k in expected if k not in found], [k for k in found if k not in expected]
    if missing:
        raise GtRError(
            f"{file}: {len(missing)} of the {len(expected)} tensors of {name} are missing (first: "
            f"'{missing[0]}'): the file is incomplete; download it again"
        )
    if surplus:
        raise GtRError(
            f"{file}: {len(surplus)} tensors do not belong to {name} (first: '{surplus[0]}'): expected "
            f"{len(expected)}; choose a plain {name} file"
        )
    for key, tensor in found.items():
        if tensor.shape != expected[key].shape:
            raise GtRError(
                f"{file}: tensor '{key}' has shape {tuple(tensor.shape)}, {name} needs "
                f"{tuple(expected[key].shape)}: the file is of another model"
            )
        if tensor.dtype not in (*DTYPES.values(), torch.float64):
            raise GtRError(
                f"{file}: tensor '{key}' is {tensor.dtype}, expected floating point weights of 16 bits or more"
            )
        if not torch.isfinite(tensor.sum(dtype=torch.float32)):
            raise GtRError(
                f"{file}: tensor '{key}' holds NaN or infinite values: the file is damaged; "
                "download or convert it again"
            )


def _in_file(checkpoint: Checkpoint, infer: Callable[[], Spec]) -> Spec:
    """Run a spec inference for weights that fit into memory; its errors name the file."""
    try:
        check_budget(checkpoint.nbytes, "its tensors need")
        return infer()
    except GtRError as error:
        raise GtRError(f"{checkpoint.path.name}: {error}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    check_budget(path.stat().st_size, f"{path.name} needs")
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return _strip({name: file.get_tensor(name) for name in file.keys()}), dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise GtRError(
            f"{path.name} is not a readable safetensors file ({first_line(error)}): it is damaged or "
            "truncated; download it again"
        ) from error


def _check_header(path: Path) -> None:
    """What the format's own reader lets pass. Raises ValueError for a huge header, too many tensors or equal names."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes, expected at most {LONGEST_HEADER}")
        header = json.loads(file.read(length), object_pairs_hook=_unique)
    if len(header) > MOST_TENSORS:
        raise ValueError(f"{len(header)} tensors, expected at most {MOST_TENSORS}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object whose names differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _unwrap(content, path: Path, weights: str | None) -> tuple[dict[str, Tensor], str]:
    """The state dict inside what a training script saved, and which weights it holds."""
    if weights not in ("ema", "model", None):
        raise GtRError(f"weights '{weights}': expected ema or model")
    if isinstance(content, dict):
        states = {
            kind: _state_dict(content[key], path)
            for kind, key in (("model", "model"), ("ema", "model_ema"))
            if key in content
        }
        if states:
            return _choose(states, path, weights)
        if "state_dict" in content:
            return _state_dict(content["state_dict"], path), "unknown"
    return _state_dict(content, path), "unknown"


def _choose(states: dict[str, dict[str, Tensor]], path: Path, wanted: str | None) -> tuple[dict[str, Tensor], str]:
    """The wanted weights; unasked, those that upstream uses, or the only ones there are."""
    family = recognise({name: tuple(t.shape) for name, t in next(iter(states.values())).items()})
    usual = "ema" if family is None else family.weights
    kind = wanted or (usual if usual in states else next(iter(states)))
    if kind not in states:
        raise GtRError(f"{path.name} has no {kind} weights, only {', '.join(states)}: ask for those")
    return states[kind], kind


def _state_dict(content, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise GtRError(
            f"{path.name} holds a {type(content).__name__}, expected a table of named tensors: "
            "choose a model checkpoint"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise GtRError(
                f"{path.name}: entry {name if isinstance(name, str) else type(name).__name__!r} is a "
                f"{type(value).__name__}, expected named tensors: choose a model checkpoint"
            )
    return _strip(dict(content))


def _strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix that distributed training puts before every name."""
    while tensors and all(name.startswith(DISTRIBUTED) for name in tensors):
        tensors = {name.removeprefix(DISTRIBUTED): tensor for name, tensor in tensors.items()}
    return tensors
