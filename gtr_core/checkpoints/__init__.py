"""From files to models: what is read is checked, and nothing in a file is executed."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from ..device import dtype_named
from ..errors import GtRError
from ..models import Autoencoder, Model, build, build_autoencoder
from ..models.spec import ModelSpec
from .checkpoint import check_fit, checked_model, read_checkpoint, usable_vae


def load_model(
    path: str | os.PathLike,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    weights: str | None = None,
) -> Model:
    """A model in evaluation mode from a checkpoint (.safetensors, .pth, .pt, .ckpt).

    ``dtype`` is the transformer's, by name or as torch's; the diffusion head is float32. ``weights`` of a training
    checkpoint are ``ema``, ``model`` (the raw ones) or the name of an entry, by default what the original code
    samples with. Raises GtRError for a file that is missing, damaged or not a model.
    """
    dtype = dtype_named(dtype)
    checkpoint = read_checkpoint(path, weights=weights, kind="model")
    spec, tensors = checked_model(checkpoint)
    model = build(spec, device=device, dtype=dtype)
    check_fit(checkpoint, model.state_dict())
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def load_vae(path: str | os.PathLike, *, device: torch.device | str = "cpu") -> Autoencoder:
    """A KL VAE or an l-DeTok tokenizer in evaluation mode, float32.

    Raises GtRError for a file that is missing, damaged, not one of these, or a tokenizer without its statistics.
    """
    spec, tensors = usable_vae(read_checkpoint(path, kind="vae"))
    vae = build_autoencoder(spec)
    vae.load_state_dict(tensors)
    return vae.to(device).eval().requires_grad_(False)


def prompt_states(path: Path | str, spec: ModelSpec) -> Tensor:
    """Encoded prompts (n, text_length, caption_dim) of a file, in its dtype. Raises GtRError."""
    states = read_checkpoint(path).tensors.get("prompt_embeds")
    wanted = (spec.text_length, spec.caption_dim)
    if states is None or states.shape[1:] != wanted or not len(states):
        raise GtRError(
            f"{path}: expected a tensor 'prompt_embeds' of shape (prompts, {wanted[0]}, {wanted[1]}), found "
            f"{None if states is None else tuple(states.shape)}"
        )
    return states
