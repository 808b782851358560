"""What the pack asks of ComfyUI's memory management."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..gtr_core.device import Runtime
from ..gtr_core.models import Model
from ..gtr_core.openmp import waiting_is_chosen
from ..gtr_core.pipeline import Decoding
from ._models import ModelHandle

# Main memory that must be left, as a multiple of what is kept for the next prompt.
MEMORY_LEFT = 3
# Parameters times images up to which one thread is enough: four images of the demo model.
SMALL = 5 * 2**22


def host_runtime(model: ModelHandle, accelerate: bool) -> Runtime:
    """Where the host computes with a model; ``accelerate`` is a wish, see :func:`bring_to_device`."""
    patcher = model.patcher
    return Runtime(patcher.load_device, patcher.model.compute_dtype, accelerate, model.machine, model.preparations)


def bring_to_device(model: ModelHandle, decoding: Decoding, runtime: Runtime) -> tuple[Model, Runtime]:
    """Have the host bring the model to its device with room for the largest part of a decoding, and start measuring
    peak memory where the device can. Gives the network, and its runtime, which accelerates nothing whose weights the
    host may move while it runs: where that is the whole model (dynamic VRAM) or a part that did not fit, the network
    has a head of its own, which alone stays. Raises GtRError where main memory cannot hold a part."""
    needed, network = decoding.needed_bytes(model.spec, runtime), model.patcher.model.diffusion_model
    static = model.patcher
    if not has_own_head(model, runtime):
        mm.load_models_gpu([static], memory_required=needed)
    if runtime.accelerate and not stays_resident(static):
        static = model.head
        mm.load_models_gpu([model.patcher, static], memory_required=needed)
    stays = stays_resident(static)
    if stays and static is not model.patcher:
        network = network.with_head(static.model)
    if runtime.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    accelerate, whole = runtime.accelerate and stays, static is model.patcher
    return network, replace(runtime, accelerate=accelerate, transformer_stays=whole)


def has_own_head(model: ModelHandle, runtime: Runtime) -> bool:
    """Whether a run has a copy of the head beside the model."""
    return runtime.accelerate and model.is_dynamic()


def activation_budget(model: ModelHandle, runtime: Runtime) -> int:
    """Bytes of the model's device that are left beside its weights, once the host has moved everything else away."""
    patcher = model.patcher
    weights = patcher.model_size() + (model.head.model_size() if has_own_head(model, runtime) else 0)
    return int(mm.get_total_memory(patcher.load_device) - mm.minimum_inference_memory() - weights)


@contextmanager
def kept_for_the_next(model: ModelHandle, runtime: Runtime) -> Iterator[None]:
    """What a run prepares is freed afterwards, however it ends, unless there is ample memory beside it."""
    try:
        yield
    finally:
        prepared, left = model.preparations.value, runtime.available_bytes
        if prepared is not None and left is not None and left < MEMORY_LEFT * prepared.packed_bytes:
            model.preparations.clear()


@contextmanager
def fitting_threads(model: ModelHandle, images: int, runtime: Runtime) -> Iterator[None]:
    """One thread for a run on the processor that is too small for more; before and after the host's number holds.

    Threads that share so little work gain little, and with a browser on the same processor they wait for each other
    much longer than they compute. Where somebody has said how threads wait, nothing is changed.
    """
    threads = torch.get_num_threads()
    small = images * sum(parameter.numel() for parameter in model.patcher.model.parameters()) <= SMALL
    if threads == 1 or not small or runtime.type != "cpu" or waiting_is_chosen():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stays_resident(patcher: ModelPatcher) -> bool:
    """Whether all weights lie on the device and stay at their addresses, after the model was loaded."""
    return not patcher.is_dynamic() and patcher.loaded_size() >= patcher.model_size()


def peak_bytes(patcher: ModelPatcher) -> int | None:
    """The most memory in use on a CUDA device since :func:`bring_to_device`."""
    return torch.cuda.max_memory_allocated(patcher.load_device) if patcher.load_device.type == "cuda" else None


def to_wire(latent: Tensor) -> Tensor:
    """A latent on the device and in the dtype that the host wants on wires."""
    return latent.to(device=mm.intermediate_device(), dtype=mm.intermediate_dtype())
