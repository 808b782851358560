"""A pool of images as latents, made once: encoding on the fly would cost a CPU a quarter of the training time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gtr_core.models.latents import LatentSpec
from gtr_core.models.vae import KLVAE

from . import data, runs
from .models import POSTERIOR

PATCH = 2
CHUNK, CPU_CHUNK = 256, 4  # images at a time, on a CPU few enough for its caches
FITTED = 7000  # images whose latents give the scale


@dataclass(frozen=True)
class Pool:
    """Posterior mean and log-variance (n, C, h, w) float16, labels (n,) int64, all on one device."""

    mean: Tensor
    logvar: Tensor
    labels: Tensor

    def take(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """n random rows of mean, logvar and labels."""
        rows = torch.randint(len(self.labels), (n,), generator=generator, device=generator.device)
        return self.mean[rows], self.logvar[rows], self.labels[rows]


@torch.no_grad()
def make_pool(vae: KLVAE, size: int, device: torch.device, seed: int = 3) -> Pool:
    """Encode ``size`` fresh images; they stay on the device."""
    vae, rows = vae.to(device, memory_format=torch.channels_last), []
    chunk = CPU_CHUNK if device.type == "cpu" else CHUNK
    for start in range(0, size, chunk):
        images, labels = data.batch(min(chunk, size - start), runs.step_generator(seed, start, device))
        with runs.half_precision(device):
            mean, logvar = vae.moments(images.to(memory_format=torch.channels_last))
        rows.append((mean.half(), logvar.half(), labels))
    return Pool(*(torch.cat(column) for column in zip(*rows)))


def load_pool(path: Path, vae: KLVAE, size: int, device: torch.device) -> Pool:
    """The pool stored at ``path``, made first if it is missing, on the device."""
    state = runs.load(path)
    if state is None:
        pool = make_pool(vae, size, device)
        runs.save(path, {name: tensor.cpu() for name, tensor in vars(pool).items()})
        return pool
    return Pool(**{name: tensor.to(device) for name, tensor in state.items()})


def measure_latent(pool: Pool, images: Tensor, mean: Tensor, stride: int) -> LatentSpec:
    """Scale, shift and preview colours; the colours are fitted to ``images`` (n, 3, H, W) and their ``mean`` latents.

    Tokens are samples, so a part of the posterior's variance is in the unit variance.
    """
    latents, logvar = (part[:FITTED].float() for part in (pool.mean, pool.logvar))
    shift = float(latents.mean())
    scale = float((latents.var() + POSTERIOR**2 * logvar.exp().mean()).rsqrt())
    tokens = ((mean - shift) * scale).permute(0, 2, 3, 1).flatten(0, 2)
    colours = torch.nn.functional.avg_pool2d(images, stride).permute(0, 2, 3, 1).flatten(0, 2)
    inputs = torch.cat([tokens, torch.ones_like(tokens[:, :1])], dim=1)
    rows = torch.linalg.lstsq(inputs, colours).solution
    return LatentSpec(
        channels=mean.shape[1],
        stride=stride,
        patch=PATCH,
        scale=round(scale, 5),
        shift=round(shift, 5),
        rgb=tuple(tuple(round(x, 4) for x in row) for row in rows.tolist()),
    )
