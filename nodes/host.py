"""Everything that the pack asks of ComfyUI's model management, VAE, previews and progress bar."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.ldm.modules.attention as host_attention_module
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import torch
from comfy.cli_args import args
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor, nn

from ..gtr_core.checkpoints.checkpoint import load_model, load_vae, read_checkpoint
from ..gtr_core.costs.report import progress_text
from ..gtr_core.demo import DEMO_MAR, DEMO_VAE
from ..gtr_core.drawing.preview import preview_figure, state_of
from ..gtr_core.errors import GtRError
from ..gtr_core.models import Model, ModelSpec, build
from ..gtr_core.models.latents import preview_colours
from ..gtr_core.models.lightgen import LightGenSpec
from ..gtr_core.models.mar import MARSpec
from ..gtr_core.models.vae import VAESpec, regroup
from ..gtr_core.plans.regions import Region
from ..gtr_core.sampling.sampler import Progress

logger = logging.getLogger("gtr_mar")

DEMO = "demo (built-in)"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREFERRED = [torch.bfloat16, torch.float16, torch.float32]
PREVIEW_SECONDS, PREVIEW_PIXELS = 0.25, 512


LOADERS = {MARSpec: "Load MAR Model", LightGenSpec: "Load LightGen Model"}


@dataclass(frozen=True, eq=False)
class ModelHandle:
    """What a MAR_MODEL wire carries."""

    patcher: Any
    spec: ModelSpec
    name: str
    notes: tuple[str, ...] = ()
    """What the user should know about the file, for the sampler's report."""

    def is_dynamic(self) -> bool:
        """Asked by the host's cache and model tracker."""
        return self.patcher.is_dynamic()


class HostModel(nn.Module):
    """The attributes that ComfyUI's patcher expects around a model."""

    def __init__(self, model: Model, dtype: torch.dtype, manual_cast: torch.dtype | None):
        super().__init__()
        self.diffusion_model = model
        self.latent_format = latent_format(model.spec)
        self.manual_cast_dtype = manual_cast
        self.dtype = dtype
        self.device = None
        self.note: str | None = None

    def get_dtype(self) -> torch.dtype:
        return self.dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        return self.manual_cast_dtype or self.dtype


def latent_format(spec: ModelSpec) -> comfy.latent_formats.LatentFormat:
    """A model's latent as the host describes latents; LightGen's is Stable Diffusion 3's."""
    latent = spec.latent
    stock = comfy.latent_formats.SD3()
    if (latent.channels, latent.scale, latent.shift) == (stock.latent_channels, stock.scale_factor, stock.shift_factor):
        return stock
    result = comfy.latent_formats.LatentFormat()
    result.latent_channels, result.scale_factor = latent.channels, latent.scale
    result.spacial_downscale_ratio = latent.stride
    result.process_in = lambda samples: (samples - latent.shift) * latent.scale
    result.process_out = lambda samples: samples / latent.scale + latent.shift
    if latent.rgb is not None:
        result.latent_rgb_factors, result.latent_rgb_factors_bias = (
            [list(row) for row in latent.rgb[:-1]],
            list(latent.rgb[-1]),
        )
    return result


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The host's attention of choice, looked up at every call so that command line switches and overrides apply."""
    return host_attention_module.optimized_attention(q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True)


def build_patcher(
    path: str, weight_dtype: str, weights: str | None, corrected_positions: bool, disable_dynamic: bool = False
):
    """A checkpoint as a model patcher: the host decides where its weights live and when they move."""
    checkpoint = read_checkpoint(path, weights=weights)
    spec, tensors = load_model(checkpoint)
    if corrected_positions:
        spec = replace(spec, corrected_positions=True)
    load, offload = mm.get_torch_device(), mm.unet_offload_device()
    dtype = DTYPES.get(weight_dtype) or mm.unet_dtype(
        load, sum(t.numel() for t in tensors.values()), PREFERRED, comfy.utils.weight_dtype(tensors)
    )
    cast = mm.unet_manual_cast(dtype, load, PREFERRED)
    operations = comfy.ops.pick_operations(dtype, cast, load_device=load)
    model = build(spec, operations=operations, attention=attention, device=offload, dtype=dtype)
    host = HostModel(model.eval().requires_grad_(False), dtype, cast)
    host.note = checkpoint.warning
    mm.archive_model_dtypes(host)
    # Looked up at call time: the host rebinds CoreModelPatcher at start-up.
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(host, load_device=load, offload_device=offload)
    model.load_state_dict(tensors, assign=patcher.is_dynamic())
    model.requires_grad_(False)
    patcher.cached_patcher_init = (build_patcher, (path, weight_dtype, weights, corrected_positions))
    return patcher


def load_handle(
    family: type[ModelSpec],
    name: str,
    weight_dtype: str,
    *,
    weights: str | None = None,
    corrected_positions: bool = False,
) -> ModelHandle:
    """The model of a loader's combo entry. Raises GtRError for a file of the other family."""
    path = model_path("diffusion_models", name)
    patcher = build_patcher(str(path), weight_dtype, weights, corrected_positions)
    spec = patcher.model.diffusion_model.spec
    if not isinstance(spec, family):
        raise GtRError(f"{name} is a {spec.name} checkpoint: use '{LOADERS[type(spec)]}' for it")
    note = patcher.model.note
    if note:
        logger.warning("%s", note)
    return ModelHandle(patcher, spec, name, (f"note: {note}",) if note else ())


def load_mar_vae(name: str) -> comfy.sd.VAE:
    """A KL VAE in LDM layout as the host's own VAE object, with the sizes that the host would guess wrong."""
    spec, tensors = regroup(*load_vae(read_checkpoint(model_path("vae", name))))
    vae = comfy.sd.VAE(sd=tensors, config={"params": vae_config(spec)})
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = spec.embed_channels, spec.stride, spec.stride
    pixels = spec.stride**2
    vae.memory_used_decode = lambda shape, dtype: 2178 * shape[2] * shape[3] * pixels * mm.dtype_size(dtype)
    return vae


def vae_config(spec: VAESpec) -> dict:
    """The host's AutoencoderKL settings; encoder and decoder differ in where they have attention."""
    nominal = 256
    shared = {
        "double_z": True,
        "z_channels": spec.latent_channels,
        "resolution": nominal,
        "out_ch": spec.image_channels,
        "in_channels": spec.image_channels,
        "ch": spec.channels,
        "ch_mult": list(spec.multipliers),
        "num_res_blocks": spec.blocks,
        "dropout": 0.0,
    }
    at = {"ddconfig": spec.encoder_attention, "decoder_ddconfig": spec.decoder_attention}
    parts = {key: shared | {"attn_resolutions": [nominal >> level for level in levels]} for key, levels in at.items()}
    return parts | {"embed_dim": spec.embed_channels}


def model_names(folder: str) -> list[str]:
    """The built-in demo model and the files of a model folder."""
    return [DEMO, *file_names(folder)]


def file_names(folder: str) -> list[str]:
    """The files of a model folder."""
    return folder_paths.get_filename_list(folder)


def model_path(folder: str, name: str) -> Path:
    """The file of a loader's combo entry."""
    if name == DEMO:
        return DEMO_MAR if folder == "diffusion_models" else DEMO_VAE
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def file_fingerprint(folder: str, name: str) -> tuple[int, int]:
    """Changes when the file behind a combo entry is replaced, so that the host loads it again."""
    status = model_path(folder, name).stat()
    return status.st_mtime_ns, status.st_size


class RunMonitor:
    """Sampler callback of one node execution: interrupt, progress bar, progress text and preview."""

    def __init__(self, model: ModelHandle, grid: tuple[int, int], steps: int):
        self.latent, self.grid, self.done = model.spec.latent, grid, 0
        form = model.patcher.model.latent_format
        self.rgb = form.latent_rgb_factors and [
            *form.latent_rgb_factors,
            form.latent_rgb_factors_bias or (0.0, 0.0, 0.0),
        ]
        self.bar = comfy.utils.ProgressBar(steps)
        self.previews = args.preview_method != latent_preview.LatentPreviewMethod.NoPreviews
        self.last_preview = 0.0
        self.marks: list[float] = []

    def enter(self, regions: Sequence[Region], current: int, canvas: Tensor) -> None:
        """The next run draws region ``current`` of ``regions``; ``canvas`` (L, C) holds its first image's tokens."""
        self.regions, self.current, self.canvas, self.spent = regions, current, canvas, None

    def take_seconds(self) -> list[float]:
        """Seconds of every AR step of the run that has just ended. On a GPU work is queued: only the sum is exact."""
        marks, self.marks = [*self.marks[:-1], time.monotonic()], []
        return [after - before for before, after in zip(marks, marks[1:])]

    def __call__(self, progress: Progress) -> None:
        mm.throw_exception_if_processing_interrupted()
        if progress.diffusion_step:
            return
        preview = None
        now = time.monotonic()
        self.marks.append(now)
        ended = progress.step == progress.steps
        if self.previews and progress.step and (now - self.last_preview > PREVIEW_SECONDS or ended):
            self.last_preview = now
            preview = ("JPEG", self._picture(progress), PREVIEW_PIXELS)
        self.bar.update_absolute(self.done + progress.step, preview=preview)
        if ended:
            self.done += progress.steps
            self.spent = progress.spent.cpu().numpy()
        else:
            plan = self.regions[self.current].plan
            show_text(progress_text(plan, progress.step, self.current + 1, len(self.regions)))

    def _picture(self, progress: Progress) -> Image.Image:
        """The first image in approximate colours, with what is still to come marked."""
        tokens = self.canvas.clone()
        tokens[self.regions[self.current].positions] = progress.tokens[0].cpu()
        colours = preview_colours(tokens[None], self.grid, self.latent, self.rgb)[0]
        state = state_of(self.regions, self.current, progress.step, self.grid)
        return Image.fromarray(preview_figure((colours * 255).round().byte().numpy(), state, PREVIEW_PIXELS))


def show_text(text: str) -> None:
    """Show ``text`` in the node that is being executed; outside of a server's execution there is none."""
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer

    PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)


def activation_budget(patcher) -> int:
    """Bytes of the model's device that are left beside its weights, once the host has moved everything else away."""
    return int(mm.get_total_memory(patcher.load_device) - mm.minimum_inference_memory() - patcher.model_size())


def stays_resident(patcher) -> bool:
    """Whether all weights lie on the device and stay at their addresses, after the model was loaded."""
    return not patcher.is_dynamic() and patcher.loaded_size() >= patcher.model_size()


def reset_peak(patcher) -> None:
    """Start measuring peak memory, where the device can."""
    if patcher.load_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(patcher.load_device)


def peak_bytes(patcher) -> int | None:
    """The most memory in use on a CUDA device since :func:`reset_peak`."""
    return torch.cuda.max_memory_allocated(patcher.load_device) if patcher.load_device.type == "cuda" else None


def to_wire(latent: Tensor) -> Tensor:
    """A latent on the device and in the dtype that the host wants on wires."""
    return latent.to(device=mm.intermediate_device(), dtype=mm.intermediate_dtype())


def picture_to_image(*pictures: np.ndarray) -> Tensor:
    """(H, W, 3) uint8, of one size -> the host's IMAGE (B, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).float() / 255


def image_to_pictures(image: Tensor) -> np.ndarray:
    """The host's IMAGE (B, H, W, C) in [0, 1] -> (B, H, W, 3) uint8."""
    return (image[..., :3].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
