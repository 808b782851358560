"""Images and latents in the form that ComfyUI passes them."""

from __future__ import annotations

import comfy.sample
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ._api import io


def fitted_samples(latent: io.Latent.Type, patcher: ModelPatcher) -> Tensor:
    """The samples of a LATENT; those of an empty stock latent get the channels and the size that the model needs."""
    return comfy.sample.fix_empty_latent_channels(patcher, latent["samples"], latent.get("downscale_ratio_spacial"))


def to_host_image(*images: np.ndarray) -> Tensor:
    """(H, W, 3) uint8, of one size -> the host's IMAGE (B, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).float() / 255


def from_host_image(image: Tensor) -> np.ndarray:
    """The host's IMAGE (B, H, W, C) in [0, 1] -> (B, H, W, 3) uint8."""
    return (image[..., :3].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
