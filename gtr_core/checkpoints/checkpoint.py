"""Reading model files safely.

A safetensors file is data; a file of torch.save is read as data too (``pickles``). What a file is, its bytes say
(``formats``), and which of its tensors are the model, one place knows (``wrappers``). Every size that a file states is
compared with the file and with the memory at hand before anything is allocated, and only what is taken is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..device import DTYPES, check_budget
from ..errors import GtRError
from ..models import FAMILIES, ModelSpec, build, build_autoencoder
from ..models.autoencoder import AutoencoderSpec
from ..models.spec import Traces
from .archives import read_pickled
from .formats import Format, format_of
from .metadata import WEIGHTS_KEY, read_spec, read_vae_spec
from .safetensors_files import joined, parts_of, parts_of_index, read_safetensors, readable
from .statistics import PUBLISHED, fold_statistics
from .vae_layouts import to_ldm
from .wrappers import VAE, choose, traces_of

# Sizes in bytes of published files known to hold the raw, not the averaged weights (docs/upstream.md 1.12).
KNOWN_NOT_EMA = {831_736_456: "mar-base.safetensors"}
Spec = TypeVar("Spec", ModelSpec, AutoencoderSpec)


@dataclass(frozen=True)
class Checkpoint:
    """A state dict with what is known about it.

    ``weights`` is ``ema``, ``model`` or ``unknown``; ``entry`` is where in the file it stood, empty where the file is
    nothing else, and ``entries`` are all that can be taken, where there are several; ``others`` tells what stands under
    a name that should be a tensor's, ``traces`` what else the file tells. A sharded file has ``parts``.
    """

    path: Path
    tensors: dict[str, Tensor] = field(repr=False)
    metadata: dict[str, str]
    weights: str
    entry: str = ""
    others: Mapping[str, str] = field(default_factory=dict, repr=False)
    parts: int = 1
    traces: Traces = Traces()
    entries: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The file's name for messages."""
        return self.path.name if self.parts == 1 else f"{self.path.name} (joined from {self.parts} parts)"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, were each stored in full."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def warning(self, spec: ModelSpec) -> str | None:
        """One line when the file of a model holds, or may hold, raw weights where the averaged ones are the usual."""
        if self.weights == "ema" or FAMILIES[spec.family].weights != "ema" or spec.raw_weights is None:
            return None
        certainty = "holds" if self.weights == "model" else "may hold"
        return (
            f"{self.title} {certainty} non-EMA weights, which give {spec.raw_weights}: convert the original training "
            "checkpoint, which has both"
        )


def read_checkpoint(path: str | os.PathLike, *, weights: str | None = None, kind: str | None = None) -> Checkpoint:
    """Read a safetensors file, whole or in parts, or one of torch.save; nothing in it is executed.

    Of a training checkpoint the ``weights`` are taken: ``ema``, ``model`` (the raw ones), the name of an entry, or by
    default what the original code samples with. ``kind`` is ``model`` or ``vae`` where only one of them will do.
    Raises GtRError for files that are missing, truncated, foreign or hold other objects.
    """
    path = Path(path)
    parts, content, metadata = _content(path)
    size = sum(part.stat().st_size for part in parts)
    stated = metadata.get(WEIGHTS_KEY, "model" if size in KNOWN_NOT_EMA else "unknown")
    try:
        state = choose(content, kind, weights, stated)
    except GtRError as error:
        raise GtRError(f"{path.name}: {error}") from error
    with readable(path):
        tensors = {name: tensor.load() for name, tensor in state.tensors.items()}
    if state.kind == VAE:
        tensors = to_ldm(tensors)
    checkpoint = Checkpoint(
        path, tensors, metadata, state.weights, state.entry, state.others, len(parts), traces_of(content), state.entries
    )
    if checkpoint.nbytes > size:
        raise GtRError(
            f"{checkpoint.title}: its tensors need {checkpoint.nbytes} bytes, the file has {size}: it is damaged or "
            "forged; download it again"
        )
    return checkpoint


def files_of(path: Path, *, vae: bool = False) -> list[Path]:
    """The files that are read for one: all its parts, and for a VAE the statistics that lie beside it. Raises GtRError
    for parts that are missing."""
    beside = path.with_name(PUBLISHED)
    return [*(parts_of(path) or [path]), *([beside] if vae and beside.is_file() else [])]


def checked_model(checkpoint: Checkpoint, **told: Any) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The spec and the checked tensors of a model checkpoint. What its file does not tell is ``told``: see
    ``metadata.read_spec``. Raises GtRError."""
    spec = _in_file(checkpoint, lambda: read_spec(checkpoint.shapes, checkpoint.metadata, checkpoint.traces, **told))
    check_tensors(checkpoint, build(spec, device="meta").state_dict(), spec.name)
    return spec, checkpoint.tensors


def checked_vae(checkpoint: Checkpoint, heads: int | None = None) -> tuple[AutoencoderSpec, dict[str, Tensor]]:
    """The spec and the checked tensors of a VAE's or tokenizer's checkpoint. Raises GtRError."""
    spec = _in_file(checkpoint, lambda: read_vae_spec(checkpoint.shapes, checkpoint.metadata, heads))
    expected = build_autoencoder(spec, device="meta").state_dict()
    check_tensors(checkpoint, expected, f"{spec.family} ({spec.variant})")
    return spec, checkpoint.tensors


def usable_vae(checkpoint: Checkpoint) -> tuple[AutoencoderSpec, dict[str, Tensor]]:
    """:func:`checked_vae` of a file that decodes what models draw, if need be with the published statistics that lie
    beside it. Raises GtRError."""
    spec, tensors = checked_vae(checkpoint)
    beside = checkpoint.path.with_name(PUBLISHED)
    if spec.unusable is not None and beside.is_file():
        return fold_statistics(spec, tensors, beside, checkpoint.path.stem)
    if spec.unusable is not None:
        raise GtRError(f"{checkpoint.title}: {spec.unusable}")
    return spec, tensors


def check_tensors(checkpoint: Checkpoint, expected: Mapping[str, Tensor], name: str) -> None:
    """Compare names, shapes, dtypes and finiteness with what the architecture needs.

    Raises GtRError with the counts and the first offender.
    """
    found, file = checkpoint.tensors, checkpoint.title
    missing, surplus = [k for k in expected if k not in found], [k for k in found if k not in expected]
    odd = next((key for key in missing if key in checkpoint.others), None)
    if odd is not None:
        raise GtRError(
            f"{file}: '{odd}' is an object of {checkpoint.others[odd]}, which was not executed, expected a plain "
            "tensor: save the weights as plain tensors"
        )
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
        if not is_finite(tensor):
            raise GtRError(
                f"{file}: tensor '{key}' holds NaN or infinite values: the file is damaged; "
                "download or convert it again"
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are; their sum tells, unless it is too large itself."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def check_fit(checkpoint: Checkpoint, parameters: Mapping[str, Tensor]) -> None:
    """Raises GtRError where weights are beyond the dtype of the parameters that will hold them."""
    for name, parameter in parameters.items():
        check_cast(checkpoint, name, parameter.dtype)


def check_cast(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> None:
    """Raises GtRError where finite weights are beyond ``dtype``: they would become infinite."""
    tensor, largest = checkpoint.tensors[name], torch.finfo(dtype).max
    if largest < torch.finfo(tensor.dtype).max and tensor.numel() and tensor.abs().max() > largest:
        raise GtRError(
            f"{checkpoint.title}: weights beyond {str(dtype).removeprefix('torch.')} ('{name}' reaches "
            f"{float(tensor.abs().max()):.3g}, the largest number is {largest:.5g}): use bfloat16 or float32"
        )


def _content(path: Path) -> tuple[list[Path], Any, dict[str, str]]:
    """The file, or all parts of one; the tree of its tables, and its metadata."""
    form, places = format_of(path), None
    if form is Format.INDEX:
        parts, places = parts_of_index(path)
    else:
        parts = parts_of(path)
    if parts is None:
        return [path], *_file(path, form)
    read = {part: _file(part, format_of(part)) for part in parts}
    metadata = {key: value for _, stored in read.values() for key, value in stored.items()}
    return parts, joined(path, {part: content for part, (content, _) in read.items()}, places), metadata


def _file(path: Path, form: Format) -> tuple[Any, dict[str, str]]:
    if form is Format.INDEX:
        raise GtRError(f"{path.name} is the index of a sharded file, not one of its parts")
    return read_safetensors(path) if form is Format.SAFETENSORS else (read_pickled(path), {})


def _in_file(checkpoint: Checkpoint, infer: Callable[[], Spec]) -> Spec:
    """Run a spec inference for weights that fit into memory; its errors name the file."""
    try:
        check_budget(checkpoint.nbytes, "its tensors need")
        return infer()
    except GtRError as error:
        raise GtRError(f"{checkpoint.title}: {error}") from error
