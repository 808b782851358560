"""What a run prepares to be faster: copies of layers and recorded graphs of its own, that nobody else sees. They go
with the run, or stay for the next where the runtime keeps them. The model stays as it is (docs/performance.md)."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass, replace

import torch

from ..device import Runtime
from ..diffusion.cuda_graphs import Capture, SingleStepGraphs, StepGraphs
from ..diffusion.head import DiffusionHead
from ..models import Model
from ..models.layers import Attention, sdpa
from ..plans.plan import Plan
from .attention import product_attention
from .memory import activation_bytes
from .packed_linear import FAILURES, packed, packed_bytes, unavailable_reason
from .transformer_graphs import TransformerGraphs

logger = logging.getLogger("gtr_mar")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model as a run evaluates it.

    ``low_precision`` is its head in 16 bit, ``graphs`` are those of the head that most diffusion steps use,
    ``exact_graphs`` those of the float32 head beside one in 16 bit, ``transformer`` those of the transformer;
    ``packed_bytes`` are what packed weights take.
    """

    model: Model
    low_precision: DiffusionHead | None = None
    graphs: StepGraphs | None = None
    exact_graphs: SingleStepGraphs | None = None
    transformer: TransformerGraphs | None = None
    packed_bytes: int = 0


def prepare(model: Model, plan: Plan, runtime: Runtime) -> Prepared:
    """What pays on the device for the plan's batch, and has room beside its activations."""
    cache = plan.method.cache
    if not runtime.accelerate or not (cache is None or cache.accelerated):
        return Prepared(model)
    if runtime.preparations is None:
        return _prepared(model, plan, runtime)
    prepared = runtime.preparations.get(_key(model, plan, runtime), lambda: _prepared(model, plan, runtime))
    if not prepared.packed_bytes and prepared.graphs is None:
        runtime.preparations.clear()  # nothing that takes time: the next run may have room for more
    return prepared


def _key(model: Model, plan: Plan, runtime: Runtime) -> tuple:
    """Equal for runs that can share what is prepared: the same weights in their places, and the same layers packed."""
    places = tuple(parameter.data_ptr() for parameter in model.parameters())
    packed_size = packed_bytes(model, runtime.dtype, _smallest_packed(plan, runtime))
    machine = runtime.hardware
    hardware = machine.fast_dtypes, machine.wide_vectors, machine.matrix_units
    parts = plan.method.cache is None, plan.method.own_head, runtime.transformer_stays
    return weakref.ref(model), places, (str(runtime.device), runtime.dtype, *hardware, packed_size, *parts)


def _prepared(model: Model, plan: Plan, runtime: Runtime) -> Prepared:
    method, low_precision = plan.method, None
    fast = runtime.dtype in runtime.hardware.fast_dtypes
    if not method.own_head and fast and runtime.dtype.itemsize == 2:
        low_precision = model.head.copied(runtime.dtype, joined=runtime.type == "cuda")
    prepared = Prepared(model, low_precision)
    if not method.own_head and runtime.type == "cuda":
        return _with_graphs(prepared, runtime, method.cache is None)
    if runtime.type == "cpu" and fast and runtime.hardware.wide_vectors:
        return _pack(prepared, plan, runtime)
    return prepared


def _with_graphs(plain: Prepared, runtime: Runtime, whole: bool) -> Prepared:
    """With CUDA graphs, which are recorded when they are first needed: those of the transformer only where it is
    evaluated as a ``whole``, its weights stay, and they serve other runs too, as one run has most shapes once."""
    model, low_precision, capture = plain.model, plain.low_precision, Capture()
    again = whole and runtime.preparations is not None and runtime.transformer_stays
    return replace(
        plain,
        graphs=StepGraphs(low_precision or model.head, capture),
        exact_graphs=None if low_precision is None else SingleStepGraphs(model.head, capture),
        transformer=TransformerGraphs(model, capture) if again else None,
    )


def _pack(plain: Prepared, plan: Plan, runtime: Runtime) -> Prepared:
    """With packed weights; after one line in the log without, where they have no room or cannot be had."""
    dtype, free = runtime.dtype, runtime.available_bytes
    smallest = _smallest_packed(plan, runtime)
    modules = [plain.model, *([] if plain.low_precision is None else [plain.low_precision])]
    size = sum(packed_bytes(module, dtype, smallest) for module in modules)
    if not size:
        return plain
    reason = next(filter(None, map(unavailable_reason, {torch.float32, dtype})), None)
    if free is not None and size + activation_bytes(plan, plain.model.spec, runtime) > free:
        reason = f"with {size / 2**30:.1f} GiB for them the run needs more than the {free / 2**30:.1f} GiB left"
    if reason is None:
        try:
            twins = (packed(module, dtype, smallest, _fastest_attention(runtime)) for module in modules)
            return Prepared(*twins, packed_bytes=size)
        except FAILURES as error:
            reason = str(error).partition("\n")[0]
    logger.warning("Weights are not packed for this run: %s", reason)
    return plain


def _fastest_attention(runtime: Runtime) -> Attention:
    """In 16 bit two products are faster than torch's attention, except where that has AMX (docs/performance.md)."""
    in_16_bit = runtime.dtype.itemsize == 2
    return product_attention if in_16_bit and not runtime.hardware.matrix_units else sdpa


def _smallest_packed(plan: Plan, runtime: Runtime) -> int:
    """Weights of the smallest layer that pays for the plan's batch."""
    return runtime.hardware.smallest_packed // plan.batch
