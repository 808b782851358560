"""Model and VAE files as objects of ComfyUI's model management."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import comfy.latent_formats
import comfy.ldm.modules.attention as host_attention_module
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ..gtr_core.checkpoints.checkpoint import (
    Checkpoint,
    check_fit,
    checked_model,
    files_of,
    read_checkpoint,
    usable_vae,
)
from ..gtr_core.demo import DEMO_MAR, DEMO_VAE
from ..gtr_core.device import Machine, Preparations
from ..gtr_core.errors import GtRError
from ..gtr_core.models import AUTOENCODERS, Autoencoder, Model, ModelSpec, build, build_autoencoder
from ..gtr_core.models.vae import VAE_FAMILY, VAESpec, regroup

logger = logging.getLogger("gtr_mar")

DEMO = "demo (built-in)"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PREFERRED = [torch.bfloat16, torch.float16, torch.float32]
# The loader node of every family.
LOADERS = {"MAR": "Load MAR Model", "LightGen": "Load LightGen Model", "Harmon": "Load Harmon / UniPic Model"}


@dataclass(frozen=True, eq=False)
class ModelHandle:
    """What a MAR_MODEL wire carries."""

    patcher: comfy.model_patcher.ModelPatcher
    spec: ModelSpec
    name: str
    notes: tuple[str, ...] = ()
    """What the user should know about the file, for the sampler's report."""
    machine: Machine | None = None
    """What the hardware is good at; asked at every run unless it is stated."""
    preparations: Preparations = field(default_factory=Preparations)
    """What a run prepared, for the next prompt: the host frees it with the model."""

    def __post_init__(self) -> None:
        free_together(self.patcher, self.preparations)

    def is_dynamic(self) -> bool:
        """Asked by the host's cache and model tracker."""
        return self.patcher.is_dynamic()

    @cached_property
    def head(self) -> comfy.model_patcher.ModelPatcher:
        """A copy of the diffusion head as a model of its own, whose weights the host never moves while it is in use.

        For a host that does so with the whole model: its own head is then never read, and not brought to the device.
        """
        patcher = self.patcher
        head = patcher.model.diffusion_model.head.copied(torch.float32, patcher.offload_device)
        result = comfy.model_patcher.ModelPatcher(head, patcher.load_device, patcher.offload_device)
        free_together(result, self.preparations)
        return result


def free_together(patcher: comfy.model_patcher.ModelPatcher, preparations: Preparations) -> None:
    """Free what was prepared of a model when the host unloads it."""

    def on_detach(patcher: comfy.model_patcher.ModelPatcher, unpatch_all: bool) -> None:
        if unpatch_all:  # else the weights stay: the host does so before it brings the same model again
            preparations.clear()

    patcher.add_callback(CallbacksMP.ON_DETACH, on_detach)


class HostModel(nn.Module):
    """The attributes that ComfyUI's patcher expects around a model."""

    def __init__(self, model: Model, dtype: torch.dtype, manual_cast: torch.dtype | None):
        super().__init__()
        self.diffusion_model = model
        self.latent_format = latent_format(model.spec)
        self.manual_cast_dtype = manual_cast
        self.dtype = dtype
        self.device = None
        self.source: str | None = None
        self.warning: str | None = None

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
    path: str,
    family: str,
    weight_dtype: str,
    weights: str | None,
    corrected_positions: bool,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """A checkpoint as a model patcher: the host decides where its weights live and when they move. Raises GtRError for
    a file of another ``family``."""
    checkpoint = read_checkpoint(path, weights=weights, kind="model")
    spec, tensors = checked_model(checkpoint)
    if spec.family != family:
        raise GtRError(f"{Path(path).name} is a {spec.name} checkpoint: use '{LOADERS[spec.family]}' for it")
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
    host.source, host.warning = source_of(checkpoint), checkpoint.warning(spec)
    check_fit(checkpoint, model.state_dict())
    mm.archive_model_dtypes(host)
    # Looked up at call time: the host rebinds CoreModelPatcher at start-up.
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(host, load_device=load, offload_device=offload)
    model.load_state_dict(tensors, assign=patcher.is_dynamic())
    model.requires_grad_(False)
    patcher.cached_patcher_init = (build_patcher, (path, family, weight_dtype, weights, corrected_positions))
    return patcher


def load_handle(
    family: str, name: str, weight_dtype: str, *, weights: str | None = None, corrected_positions: bool = False
) -> ModelHandle:
    """The model of a loader's combo entry. Raises GtRError for a file of another family."""
    path = model_path("diffusion_models", name)
    patcher = build_patcher(str(path), family, weight_dtype, weights, corrected_positions)
    spec = patcher.model.diffusion_model.spec
    source, warning = patcher.model.source, patcher.model.warning
    for note in (source, *spec.assumptions):
        if note:
            logger.info("%s", note)
    if warning:
        logger.warning("%s", warning)
    return ModelHandle(patcher, spec, name, tuple(f"note: {note}" for note in (source, warning) if note))


def source_of(checkpoint: Checkpoint) -> str | None:
    """Which entry of a training checkpoint was taken."""
    kinds = {"ema": " (averaged weights)", "model": " (raw weights)"}
    entry = f"'{checkpoint.entry}' of {checkpoint.path.name} was loaded{kinds.get(checkpoint.weights, '')}"
    return entry if checkpoint.entry else None


class TokenizerVAE(comfy.sd.VAE):
    """An autoencoder that the host does not know, as its VAE object: stock nodes decode and encode with it.

    It is float32 and lies on its device as a whole: its layers are none of the host's.
    """

    def __init__(self, model: Autoencoder):
        # The stock stand-in for a VAE without layers brings all attributes that a host of this version looks for.
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
        spec = model.spec
        self.first_stage_model = model
        self.latent_channels, self.downscale_ratio, self.upscale_ratio = spec.embed_channels, spec.stride, spec.stride
        self.crop_input = False  # an image of another size is refused, not cropped
        self.disable_offload = True
        itemsize = mm.dtype_size(self.vae_dtype)
        self.memory_used_encode = lambda shape, dtype: spec.activation_values * itemsize
        self.memory_used_decode = self.memory_used_encode
        mm.archive_model_dtypes(model)
        self.patcher = comfy.model_patcher.ModelPatcher(
            model, load_device=self.device, offload_device=mm.vae_offload_device()
        )
        self.size = None
        self.model_size()


def load_mar_vae(name: str) -> comfy.sd.VAE:
    """A KL VAE or an l-DeTok tokenizer as the host's VAE object."""
    spec, tensors = usable_vae(read_checkpoint(model_path("vae", name), kind="vae"))
    if AUTOENCODERS[spec.family] is VAE_FAMILY:
        return host_kl_vae(*regroup(spec, tensors))
    model = build_autoencoder(spec)
    model.load_state_dict(tensors)
    return TokenizerVAE(model.eval().requires_grad_(False))


def host_kl_vae(spec: VAESpec, tensors: dict[str, Tensor]) -> comfy.sd.VAE:
    """A KL VAE in LDM layout by the host's own layers, with the sizes that the host would guess wrong."""
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


def file_fingerprint(folder: str, name: str) -> tuple[int, ...]:
    """Changes when a file is replaced that is read for a combo entry, so that the host loads it again."""
    states = [file.stat() for file in files_of(model_path(folder, name), vae=folder == "vae")]
    return tuple(number for state in states for number in (state.st_mtime_ns, state.st_size))
