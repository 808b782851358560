"""Latents in and out of the sampler."""

from __future__ import annotations

import comfy.sample
import torch
from torch import Tensor
from torch.nn import functional as F

from ..gtr_core.errors import GtRError
from ..gtr_core.spec import MARSpec
from . import host
from ._api import MarModel, io


class EmptyLatent(io.ComfyNode):
    """An empty LATENT of the model's size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_EmptyLatent", display_name="Empty MAR Latent", category="GtR/latent",
            description="An empty latent with the size and channels of the model.",
            search_aliases=["mar latent", "gtr"],
            inputs=[
                MarModel.Input("model"),
                io.Int.Input("width", default=0, min=0, max=4096, step=16, tooltip="Pixels; 0 = the model's own size."),
                io.Int.Input("height", default=0, min=0, max=4096, step=16, tooltip="Pixels; 0 = the model's own size."),
                io.Int.Input("batch_size", default=1, min=1, max=4096),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(cls, model, width: int, height: int, batch_size: int = 1) -> io.NodeOutput:
        spec = model.spec
        own_height, own_width = spec.image_size
        size = (height or own_height, width or own_width)
        if size != spec.image_size:
            raise GtRError(f"{spec.name} draws {own_width} x {own_height} pixels only, found {size[1]} x {size[0]}: "
                           "set width and height to 0 for the model's own size")
        cells = (size[0] // spec.latent.stride, size[1] // spec.latent.stride)
        samples = host.to_wire(torch.zeros(batch_size, spec.latent.channels, *cells))
        return io.NodeOutput({"samples": samples, "downscale_ratio_spacial": spec.latent.stride})


def latent_samples(latent: dict, patcher, spec: MARSpec) -> Tensor:
    """The samples (B, C, H, W) of a LATENT, checked; stock empty latents are fitted to the model. Raises GtRError."""
    samples = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"], latent.get("downscale_ratio_spacial"))
    if samples.ndim != 4 or samples.shape[0] < 1:
        raise GtRError(f"a latent of shape {tuple(samples.shape)}: expected a batch of at least 1 image")
    if samples.shape[1] != spec.latent.channels:
        raise GtRError(f"the latent has {samples.shape[1]} channels, {spec.name} needs {spec.latent.channels}: use "
                       "Empty MAR Latent, or encode the picture with the model's own VAE")
    cells = tuple(side * spec.latent.patch for side in spec.grid)
    if tuple(samples.shape[2:]) != cells:
        stride = spec.latent.stride
        raise GtRError(f"the latent is {samples.shape[3] * stride} x {samples.shape[2] * stride} pixels, {spec.name} draws "
                       f"{cells[1] * stride} x {cells[0] * stride}: use Empty MAR Latent, or scale the picture first")
    return samples


def unknown_tokens(latent: dict, batch: int, spec: MARSpec) -> Tensor:
    """Which tokens are to be drawn, (B, h, w) bool: all, or those with a pixel in ``noise_mask`` above one half."""
    mask = latent.get("noise_mask")
    if mask is None:
        return torch.ones(batch, *spec.grid, dtype=torch.bool)
    mask = mask.float().reshape(-1, 1, *mask.shape[-2:])
    tokens = F.adaptive_max_pool2d(mask, spec.grid)[:, 0] > 0.5
    return tokens[torch.arange(batch) % tokens.shape[0]].cpu()
