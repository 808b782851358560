"""What the pack asks of ComfyUI's memory management."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..gtr_core.device import Runtime
from ..gtr_core.pipeline import Decoding
from ._models import ModelHandle


def host_runtime(model: ModelHandle, accelerate: bool) -> Runtime:
    """Where the host computes with a model; ``accelerate`` is a wish, see :func:`bring_to_device`."""
    return Runtime(model.patcher.load_device, model.patcher.model.compute_dtype, accelerate, model.machine)


def bring_to_device(model: ModelHandle, decoding: Decoding, runtime: Runtime) -> Runtime:
    """Have the host bring the model to its device with room for the largest part of a decoding, and start measuring
    peak memory where the device can. The runtime that results accelerates nothing whose weights the host may move.
    Raises GtRError where main memory cannot hold a part."""
    mm.load_models_gpu([model.patcher], memory_required=decoding.needed_bytes(model.spec, runtime))
    if runtime.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    return replace(runtime, accelerate=runtime.accelerate and stays_resident(model.patcher))


def activation_budget(patcher: ModelPatcher) -> int:
    """Bytes of the model's device that are left beside its weights, once the host has moved everything else away."""
    return int(mm.get_total_memory(patcher.load_device) - mm.minimum_inference_memory() - patcher.model_size())


def stays_resident(patcher: ModelPatcher) -> bool:
    """Whether all weights lie on the device and stay at their addresses, after the model was loaded."""
    return not patcher.is_dynamic() and patcher.loaded_size() >= patcher.model_size()


def peak_bytes(patcher: ModelPatcher) -> int | None:
    """The most memory in use on a CUDA device since :func:`bring_to_device`."""
    return torch.cuda.max_memory_allocated(patcher.load_device) if patcher.load_device.type == "cuda" else None


def to_wire(latent: Tensor) -> Tensor:
    """A latent on the device and in the dtype that the host wants on wires."""
    return latent.to(device=mm.intermediate_device(), dtype=mm.intermediate_dtype())
