"""What each verb of the command line does: options in, a report out."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..checkpoints.checkpoint import Checkpoint, load_model, load_vae, read_checkpoint
from ..checkpoints.convert import convert
from ..models.lightgen import LightGenSpec
from ..models.mar import MARSpec
from ..models.vae import is_vae
from .options import print_report


def info(options: argparse.Namespace) -> None:
    """What a file holds, and what is wrong with it."""
    facts = describe(read_checkpoint(options.file, weights=options.weights))
    print_report(options, facts, "\n".join(f"{key:12} {value}" for key, value in facts.items() if key != "spec"))


def describe(checkpoint: Checkpoint) -> dict:
    """Family, variant, sizes, dtypes and weights of a checkpoint. Raises GtRError when it is not usable."""
    load = load_vae if is_vae(checkpoint.tensors) else load_model
    spec, tensors = load(checkpoint)
    family = {MARSpec: "MAR", LightGenSpec: "LightGen"}.get(type(spec), "KL VAE")
    facts = {
        "file": str(checkpoint.path),
        "family": family,
        "variant": f"f{spec.stride}" if load is load_vae else spec.name,
        "parameters": sum(t.numel() for t in tensors.values()),
        "tensors": len(tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
    }
    if load is load_model:
        facts |= {"image": list(spec.latent.size(spec.grid)), "grid": list(spec.grid), "weights": checkpoint.weights}
    if isinstance(spec, MARSpec):
        facts["classes"] = spec.classes
    if checkpoint.warning:
        facts["warning"] = checkpoint.warning
    return facts | {"spec": asdict(spec)}


def convert_file(options: argparse.Namespace) -> None:
    """Original checkpoint -> safetensors with metadata."""
    result = convert(
        options.source,
        options.target,
        weights=options.weights,
        dtype=options.dtype,
        heads=options.heads,
        overwrite=options.overwrite,
    )
    facts = describe(result)
    print_report(
        options,
        facts,
        f"wrote {options.target}: {facts['family']} {facts['variant']}, {facts['tensors']} tensors, "
        f"weights: {facts.get('weights', 'VAE')}",
    )
