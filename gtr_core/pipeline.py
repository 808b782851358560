"""From files to pictures: what the command line's ``generate`` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import GtRError
from .models import Model
from .models.latents import tokens_to_latent
from .models.vae import KLVAE
from .noise import SeededNoise, image_seeds
from .plans.fts import FTS
from .plans.method import Cache, Guidance
from .plans.plan import make_plan
from .plans.schedule import Schedule
from .sampling.memory import check_run
from .sampling.sampler import Callback, sample


def check_pair(model: Model, vae: KLVAE) -> None:
    """Raises GtRError when the VAE's latents are not what the model generates."""
    latent, spec = model.spec.latent, vae.spec
    if (latent.channels, latent.stride) != (spec.embed_channels, spec.stride):
        raise GtRError(
            f"{model.spec.name} makes latents of {latent.channels} channels at 1/{latent.stride} size, the VAE "
            f"decodes {spec.embed_channels} channels at 1/{spec.stride}: use the model's own VAE"
        )


def generate_latents(
    model: Model,
    schedule: Schedule,
    condition: Tensor | Sequence[int],
    seed: int,
    *,
    guidance: Guidance,
    grid: tuple[int, int] | None = None,
    temperature: float = 1.0,
    cache: Cache | None = None,
    fts: FTS | None = None,
    accelerate: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    callback: Callback | None = None,
) -> Tensor:
    """VAE-scale latents (B, C, H, W), one image per label or text; image k has the seed ``seed + k``."""
    spec, seeds = model.spec, image_seeds(seed, len(condition))
    grid = grid or spec.grid
    plan = make_plan(schedule, grid, seeds)
    check_run(
        plan, spec, guided=guidance.enabled, itemsize=dtype.itemsize, device=device, fts=fts, cached=cache is not None
    )
    tokens = sample(
        model,
        plan,
        torch.as_tensor(condition),
        SeededNoise(seeds, spec.head.channels),
        guidance=guidance,
        temperature=temperature,
        fts=fts,
        cache=cache,
        accelerate=accelerate,
        device=device,
        dtype=dtype,
        callback=callback,
    )
    return tokens_to_latent(tokens, grid, spec.latent)


@torch.no_grad()
def decode_pictures(vae: KLVAE, latents: Tensor) -> np.ndarray:
    """VAE-scale latents (B, C, H, W) -> pictures (B, H, W, 3) uint8, one at a time to bound memory."""
    images = torch.cat([vae.decode(latent[None]).clamp(-1, 1) for latent in latents])
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
