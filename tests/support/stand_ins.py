"""Small files in the form of the published ones, for workflows that name models nobody ships with a test."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import torch
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.diffusion.head import HeadSpec
from gtr_pack.gtr_core.models.detok import DeTok, DeTokSpec, ViTSpec
from gtr_pack.gtr_core.models.lightgen import LightGen, LightGenSpec
from gtr_pack.gtr_core.models.mar import MAR, MARSpec
from gtr_pack.gtr_core.models.vae import KLVAE, VAESpec
from safetensors.torch import save_file
from torch import Tensor, nn

from .harmon import HOST_HARMON, HOST_UNIPIC, seeded_harmon

MAR_FILE, VAE_FILE = "mar-base-ema.pth", "kl16.safetensors"
HARMON_FILE, UNIPIC_FILE = "harmon_1.5b.pth", "unipic_1.5b.bin"
LIGHTGEN_FILE, SD3_VAE_FILE = "lightgen-512.safetensors", "sd3.5_vae.safetensors"
DETOK_KEY = "detok-BB-gamm3.0-m0.7"
DETOK_MAR_FILE, DETOK_FILE = "detok-mar-base.pth", f"{DETOK_KEY}-decoder_tuned.pth"


def write_all(models: Path) -> frozenset[str]:
    """Write every stand-in below a ComfyUI models folder; returns the file names."""
    raw, ema = (small_mar(seed).state_dict() for seed in (1, 2))
    torch.save(
        {"model": raw, "model_ema": ema, "args": argparse.Namespace(model="mar_base")},
        models / "diffusion_models" / MAR_FILE,
    )
    vae = randomised(KLVAE(VAESpec(32, (1, 1, 1, 1, 1), 1, 16, 16, encoder_attention=(4,))), 3)
    save_file(vae.state_dict(), models / "vae" / VAE_FILE)
    lightgen = small_lightgen()
    save_file(lightgen.state_dict(), models / "diffusion_models" / LIGHTGEN_FILE, spec_metadata(lightgen.spec, "model"))
    save_file(sd3_decoder(), models / "vae" / SD3_VAE_FILE)
    write_detok(models, ema)
    for name, spec in ((HARMON_FILE, HOST_HARMON), (UNIPIC_FILE, HOST_UNIPIC)):
        weights = {key: tensor.half() for key, tensor in seeded_harmon(spec).state_dict().items()}
        save_file(weights, models / "diffusion_models" / name, spec_metadata(spec, "model"))
    return frozenset(
        (MAR_FILE, VAE_FILE, LIGHTGEN_FILE, SD3_VAE_FILE, DETOK_MAR_FILE, DETOK_FILE, HARMON_FILE, UNIPIC_FILE)
    )


def write_detok(models: Path, mar: dict[str, Tensor]) -> None:
    """A MAR as l-DeTok's training code saves it, a tokenizer of 256 px, and the statistics of its latents beside it."""
    torch.save({"model_ema": mar, "loss_scaler": {"scale": 65536.0}}, models / "diffusion_models" / DETOK_MAR_FILE)
    half = ViTSpec(dim=512, depth=1, heads=8, hidden=16)
    tokenizer = randomised(DeTok(DeTokSpec(half, half)), 6)
    torch.save({"model_ema": tokenizer.state_dict()}, models / "vae" / DETOK_FILE)
    channels = torch.zeros(32), torch.full((32,), 2.0)
    content = {DETOK_KEY: {"single": (0.0, 2.0), "channel": channels}}
    (models / "vae" / "stats.pkl").write_bytes(pickle.dumps(content, protocol=4))


def small_mar(seed: int) -> MAR:
    """MAR-B's width, grid, classes and buffer with one block each: its head count is known from the width."""
    spec = MARSpec(
        name="small",
        grid=(16, 16),
        dim=768,
        heads=12,
        encoder_depth=1,
        decoder_depth=1,
        classes=1000,
        buffer=64,
        head=HeadSpec(16, 768, 64, 1),
    )
    return randomised(MAR(spec), seed)


def small_lightgen() -> LightGen:
    """For text states of 64 values, as the tests' small T5 makes them."""
    return randomised(
        LightGen(
            LightGenSpec(
                name="small",
                dim=48,
                heads=3,
                encoder_depth=2,
                decoder_depth=2,
                cross_depth=2,
                aligner_depth=1,
                caption_dim=64,
                head=HeadSpec(64, 48, 48, 2),
            )
        ),
        4,
    )


def sd3_decoder() -> dict[str, Tensor]:
    """The decoder of an SD3-like VAE, a quarter as wide: the stock VAE loader takes its width from the file."""
    spec = VAESpec(32, (1, 2, 4, 4), 2, 16, 16, quant=False)
    weights = randomised(KLVAE(spec), 5).state_dict()
    return {name: tensor for name, tensor in weights.items() if name.startswith("decoder.")}


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """Weights of one over the square root of the fan-in, norms near 1, from the seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(_draw(parameter, generator) + (1 if _is_norm(name) else 0))
    return module.requires_grad_(False)


def _draw(parameter: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 1) ** 0.5


def _is_norm(name: str) -> bool:
    return name.endswith("weight") and any(word in name for word in ("norm", "ln_pre", "ln_post"))
