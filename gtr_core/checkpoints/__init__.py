"""From files to pictures: what the command line's ``generate`` does."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ..errors import GtRError
from ..models import Model, build
from ..models.lightgen import LightGenSpec
from ..models.vae import KLVAE
from .checkpoint import load_model, load_vae, read_checkpoint


def build_model(
    path: str | os.PathLike, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Model:
    """A model in evaluation mode from a checkpoint; ``dtype`` is the transformer's, the head is float32."""
    spec, tensors = load_model(read_checkpoint(path))
    model = build(spec, device=device, dtype=dtype)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def build_vae(path: str | os.PathLike, *, device: torch.device | str = "cpu") -> KLVAE:
    """A KL VAE in evaluation mode, float32."""
    spec, tensors = load_vae(read_checkpoint(path))
    vae = KLVAE(spec)
    vae.load_state_dict(tensors)
    return vae.to(device).eval().requires_grad_(False)


def prompt_states(path: Path | str, spec: LightGenSpec) -> Tensor:
    """Encoded prompts (n, text_length, caption_dim) of a file, in its dtype. Raises GtRError."""
    states = read_checkpoint(path).tensors.get("prompt_embeds")
    wanted = (spec.text_length, spec.caption_dim)
    if states is None or states.shape[1:] != wanted or not len(states):
        raise GtRError(
            f"{path}: expected a tensor 'prompt_embeds' of shape (prompts, {wanted[0]}, {wanted[1]}), found "
            f"{None if states is None else tuple(states.shape)}"
        )
    return states
