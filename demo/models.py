"""The demo's model sizes and their initial weights (constructors of gtr_core do not initialise)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gtr_core.diffusion.chain import DiffusionSpec
from gtr_core.diffusion.head import HeadSpec
from gtr_core.models.latents import LatentSpec
from gtr_core.models.mar import MAR, MARSpec
from gtr_core.models.vae import KLVAE, VAESpec

from .sprites import CLASS_NAMES

# 8 groups of 4 channels: with one channel a group (32 groups, as LDM has) the norms erase absolute colour.
VAE_SPEC = VAESpec(channels=32, multipliers=(1, 1, 1), blocks=1, latent_channels=4, embed_channels=4, groups=8)
INITIAL_LOGVAR = -6.0
# The MAR's tokens have this share of the posterior's deviation: the decoder forgives the rest, which is then left for
# the MAR's own errors. With all of it, smooth backgrounds are mottled.
POSTERIOR = 0.3
# The share of the tokens that the demo's templates draw again: such a small model misplaces some of the first ones.
REVISED = 0.25


def demo_mar_spec(latent: LatentSpec) -> MARSpec:
    """16 x 16 tokens; ``beta_cap`` 0.2 keeps the first reverse step from multiplying a small head's error by 300."""
    head = HeadSpec(channels=latent.token_dim, condition_dim=192, width=256, depth=3)
    return MARSpec(
        name="demo",
        grid=(16, 16),
        dim=192,
        heads=3,
        encoder_depth=4,
        decoder_depth=4,
        classes=len(CLASS_NAMES),
        buffer=8,
        head=head,
        latent=latent,
        diffusion=DiffusionSpec(beta_cap=0.2),
        class_names=CLASS_NAMES,
    )


def new_vae(generator: torch.Generator) -> KLVAE:
    """A VAE whose posterior starts narrow: with a wide one, half of the channels never wake up."""
    vae = KLVAE(VAE_SPEC)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
            nn.init.zeros_(module.bias)
    for block in (m for m in vae.modules() if hasattr(m, "conv2")):
        with torch.no_grad():
            block.conv2.weight.mul_(0.3)
    with torch.no_grad():
        vae.quant_conv.weight[VAE_SPEC.embed_channels :].mul_(0.1)
        vae.quant_conv.bias[VAE_SPEC.embed_channels :].fill_(INITIAL_LOGVAR)
    return vae


def new_mar(spec: MARSpec, generator: torch.Generator, **options) -> MAR:
    """MAR's own initialisation: xavier for Linear, std 0.02 for tables, zeros where the head starts as identity."""
    model = MAR(spec, **options)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    tables = (
        model.class_emb.weight,
        model.fake_latent,
        model.mask_token,
        model.encoder_pos_embed_learned,
        model.decoder_pos_embed_learned,
        model.diffusion_pos_embed_learned,
    )
    for table in tables:
        nn.init.normal_(table, std=0.02, generator=generator)
    head = model.head
    for layer in (head.time_embed.mlp[0], head.time_embed.mlp[2]):
        nn.init.normal_(layer.weight, std=0.02, generator=generator)
    modulations = [block.adaLN_modulation[1] for block in head.res_blocks] + [head.final_layer.adaLN_modulation[1]]
    for layer in (*modulations, head.final_layer.linear):
        nn.init.zeros_(layer.weight)
    return model


def sample_posterior(mean: Tensor, logvar: Tensor, generator: torch.Generator, share: float = 1.0) -> Tensor:
    """A latent drawn from the posterior with ``share`` of its deviation."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
    return mean + share * torch.exp(0.5 * logvar.to(mean)) * noise
