"""Training of the demo's VAE."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gtr_core.models.vae import KLVAE

from . import data, runs
from .models import new_vae, sample_posterior
from .muon import Muon


@dataclass(frozen=True)
class VAEPlan:
    """Small crops first (textures are local: more, cheaper steps), then larger ones and whole images.

    After ``warm_up`` steps the KL weight is steered so that the posterior width becomes ``sigma``. At last the encoder
    rests and the decoder gets errors instead of the posterior's noise.
    """

    # Steps, pixels, batch.
    phases: tuple[tuple[int, int, int], ...] = ((1000, 32, 8), (3500, 64, 8), (900, 128, 3))
    settle: int = 700  # steps of the decoder alone, at last, which learns to forgive a sampler's small errors
    errors: float = 0.15  # their largest deviation, in units of each channel's own
    tilt: float = 10.0  # degrees: more than the MAR has to learn
    rate: float = 1.5e-3
    muon_rate: float = 3e-3
    warm_up: int = 600
    mixed: float = 0.5  # largest share of tokens that come from another image, in half of the images
    kl: float = 1e-4
    most_kl: float = 0.1
    sigma: float = 0.2
    seed: int = 1
    log_every: int = 50
    save_every: int = 250

    @property
    def joint(self) -> int:
        """Steps of encoder and decoder together."""
        return sum(steps for steps, _, _ in self.phases)

    @property
    def steps(self) -> int:
        return self.joint + self.settle


def gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    return image.diff(dim=-1), image.diff(dim=-2)


def reconstruction_loss(out: Tensor, image: Tensor) -> Tensor:
    """L1 for sharpness, squared error for colour, L1 of the pixel differences for fine texture."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(out), gradients(image)))
    return F.l1_loss(out, image) + 4 * F.mse_loss(out, image) + 0.5 * edges


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def posterior_width(mean: Tensor, logvar: Tensor) -> float:
    """Root mean square posterior deviation, in units of the latents' own standard deviation."""
    return float(logvar.exp().mean().sqrt() / mean.std())


def psnr(out: Tensor, image: Tensor) -> float:
    """Peak signal to noise ratio in dB for images in [-1, 1]."""
    return 10 * math.log10(4 / float(F.mse_loss(out.clamp(-1, 1), image)))


def training_images(step: int, plan: VAEPlan, generator: torch.Generator) -> Tensor:
    """The images of one step: crops at token offsets (one corner per batch), or whole images."""
    for steps, side, count in plan.phases:
        if step < steps:
            break
        step -= steps
    else:
        side, count = 64, 8
    images = data.batch(count, generator, plan.tilt)[0]
    corners = (data.SIZE - side) // data.TOKEN + 1
    top, left = (data.TOKEN * torch.randint(corners, (2,), generator=generator, device=images.device)).tolist()
    return images[..., top : top + side, left : left + side].contiguous()


def mixed_tokens(n: int, size: tuple[int, int], share: float, generator: torch.Generator) -> Tensor:
    """Tokens (n, 1, *size) bool that come from another image.

    None in half of the images, in the others up to ``share`` of them. A decoder that never sees neighbours contradict
    each other smooths them until they fit, and what a sampler did wrong is not seen.
    """
    place = data.place(generator)
    odd = torch.arange(n, device=generator.device) % 2
    shares = share * torch.rand(n, 1, 1, 1, **place) * odd[:, None, None, None]
    return torch.rand(n, 1, *size, **place) < shares


def spliced(images: Tensor, mixed: Tensor) -> Tensor:
    """Images or latents (n, C, H, W) whose ``mixed`` tokens (n, 1, h, w) are those of the image before."""
    return torch.where(F.interpolate(mixed.to(images), size=images.shape[-2:]) > 0, images.roll(1, 0), images)


def optimizers_for(vae: KLVAE, plan: VAEPlan) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions between hidden channels, AdamW for the rest."""
    hidden = [p for p in vae.parameters() if p.dim() == 4 and min(p.shape[:2]) >= vae.spec.channels]
    chosen = set(map(id, hidden))
    rest = [p for p in vae.parameters() if id(p) not in chosen]
    return [torch.optim.AdamW(rest, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01), Muon(hidden, plan.muon_rate)]


def rate_factor(step: int, plan: VAEPlan) -> float:
    """50 steps of warm-up, then a cosine down to 2 %; a quarter for the decoder alone, down to nothing."""
    if step >= plan.joint:
        return 0.25 * (1 - (step - plan.joint) / plan.settle)
    return min(1.0, (step + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / plan.joint)))


def with_errors(latents: Tensor, plan: VAEPlan, generator: torch.Generator) -> Tensor:
    """Latents with noise, of a strength of its own for each image."""
    place = data.place(generator)
    strength = plan.errors * torch.rand(len(latents), 1, 1, 1, **place)
    noise = strength * torch.randn(latents.shape, **place)
    return latents + noise * latents.std((0, 2, 3), keepdim=True)


def train_vae(folder: Path, device: torch.device, plan: VAEPlan = VAEPlan()) -> KLVAE:
    """Train (or go on training) the VAE; checkpoint and log live in ``folder``."""
    path, log = folder / "vae.pt", folder / "vae.jsonl"
    vae = new_vae(runs.step_generator(plan.seed, -1)).to(device)
    optimizers = optimizers_for(vae, plan)
    first, kl, seconds = 0, plan.kl, 0.0
    if state := runs.load(path):
        vae.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        first, kl, seconds = state["step"], state["kl"], state["seconds"]
    runs.trim_log(log, first)
    means, started = runs.Means(), time.monotonic() - seconds
    for step in range(first, plan.steps):
        generator = runs.step_generator(plan.seed, step, device)
        image = training_images(step, plan, generator)
        for optimizer, rate in zip(optimizers, (plan.rate, plan.muon_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate * rate_factor(step, plan)
        settling = step >= plan.joint
        with runs.half_precision(device), torch.set_grad_enabled(not settling):
            mean, logvar = (moment.float() for moment in vae.moments(image))
        side = image.shape[-1] // data.TOKEN
        mixed = mixed_tokens(len(image), (side, side), plan.mixed, generator)
        latents = with_errors(mean, plan, generator) if settling else sample_posterior(mean, logvar, generator)
        with runs.half_precision(device):
            out = vae.decode(spliced(latents, mixed)).float()
        image = spliced(image, mixed)
        loss = reconstruction_loss(out, image)
        vae.zero_grad(set_to_none=True)
        (loss if settling else loss + kl * kl_loss(mean, logvar)).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            width = posterior_width(mean, logvar)
            means.add(loss=float(loss), kl=float(kl_loss(mean, logvar)), width=width, psnr=psnr(out, image))
        if step >= plan.warm_up and not settling:
            kl = min(plan.most_kl, kl * (1.01 if width < plan.sigma else 0.99))
        seconds = time.monotonic() - started
        if (step + 1) % plan.log_every == 0:
            runs.append_log(log, step=step + 1, seconds=seconds, kl_weight=kl, **means.take())
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            runs.save(
                path,
                {
                    "model": vae.state_dict(),
                    "step": step + 1,
                    "kl": kl,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "seconds": seconds,
                },
            )
    return vae.eval()
