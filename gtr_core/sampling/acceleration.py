"""What a run prepares to be faster: copies of layers and recorded graphs of its own, that nobody else sees and that go
with it. The model stays as it is (docs/performance.md)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from ..device import available_bytes, cpu_has_wide_vectors, fast_dtypes
from ..diffusion.cuda_graphs import StepGraphs
from ..diffusion.head import DiffusionHead
from ..models import Model
from .packed_linear import FAILURES, packed, packed_bytes, trouble

logger = logging.getLogger("gtr_mar")


# Weights of a layer times images of the batch: with less a product is over before oneDNN has found what to run.
SMALLEST = 2**18


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model as a run evaluates it: ``rounded`` is its head in 16 bit, ``graphs`` are those of the head that most
    diffusion steps use."""

    model: Model
    rounded: DiffusionHead | None = None
    graphs: StepGraphs | None = None


def prepare(
    model: Model, device: torch.device, dtype: torch.dtype, images: int, needed: int, *, cached: bool = False
) -> Prepared:
    """What pays on ``device`` for ``images`` at once and a transformer that computes in ``dtype``, beside activations
    of ``needed`` bytes. A ``cached`` run evaluates the head in its own way: in float32, without graphs."""
    fast, rounded, graphs = dtype in fast_dtypes(device), None, None
    if not cached:
        rounded = model.head.rounded(dtype) if fast and dtype.itemsize == 2 else None
        graphs = StepGraphs(rounded or model.head) if device.type == "cuda" else None
    prepared = Prepared(model, rounded, graphs)
    if device.type == "cpu" and fast and cpu_has_wide_vectors():
        return _pack(prepared, dtype, SMALLEST // images, needed)
    return prepared


def _pack(plain: Prepared, dtype: torch.dtype, smallest: int, needed: int) -> Prepared:
    """With packed weights; after one line in the log without, where they have no room or cannot be had."""
    modules = [plain.model, *([] if plain.rounded is None else [plain.rounded])]
    size, free = sum(packed_bytes(module, dtype, smallest) for module in modules), available_bytes()
    if not size:
        return plain
    reason = next(filter(None, map(trouble, {torch.float32, dtype})), None)
    if free is not None and size + needed > free:
        reason = f"with {size / 2**30:.1f} GiB for them the run needs more than the {free / 2**30:.1f} GiB left"
    if reason is None:
        try:
            return Prepared(*(packed(module, dtype, smallest) for module in modules))
        except FAILURES as error:
            reason = str(error).partition("\n")[0]
    logger.warning("Weights are not packed for this run: %s", reason)
    return plain
