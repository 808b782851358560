"""``info`` and ``convert``: what a model file holds, and original checkpoints as safetensors."""

from __future__ import annotations

from dataclasses import asdict

from ..checkpoints.checkpoint import Checkpoint, checked_model, checked_vae, read_checkpoint
from ..checkpoints.convert import convert
from ..device import DTYPES
from ..models.vae import is_vae
from .options import Options, Parser, Verb, print_report

WEIGHTS_HELP = "default: ema of MAR, model of LightGen"


def add_info_options(sub: Parser) -> None:
    sub.add_argument("file")
    sub.add_argument("--weights", choices=("ema", "model"), help=WEIGHTS_HELP)


def info(options: Options) -> None:
    """What a file holds, and what is wrong with it."""
    facts = describe(read_checkpoint(options.file, weights=options.weights))
    print_report(options, facts, "\n".join(f"{key:12} {value}" for key, value in facts.items() if key != "spec"))


def describe(checkpoint: Checkpoint) -> dict:
    """Family, variant, sizes, dtypes and weights of a checkpoint. Raises GtRError when it is not usable."""
    if is_vae(checkpoint.tensors):
        spec, tensors = checked_vae(checkpoint)
        identity, rest = {"family": "KL VAE", "variant": f"f{spec.stride}"}, {}
    else:
        spec, tensors = checked_model(checkpoint)
        identity = {"family": spec.family, "variant": spec.name}
        rest = {
            "image": list(spec.latent.size(spec.grid)),
            "grid": list(spec.grid),
            "weights": checkpoint.weights,
            **({"classes": spec.classes} if spec.condition == "label" else {}),
        }
    facts = {
        "file": str(checkpoint.path),
        **identity,
        "parameters": sum(t.numel() for t in tensors.values()),
        "tensors": len(tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        **rest,
    }
    if checkpoint.warning:
        facts["warning"] = checkpoint.warning
    return facts | {"spec": asdict(spec)}


def add_convert_options(sub: Parser) -> None:
    sub.add_argument("source", metavar="IN")
    sub.add_argument("target", metavar="OUT")
    sub.add_argument("--weights", choices=("ema", "model"), help=WEIGHTS_HELP)
    sub.add_argument("--dtype", choices=tuple(DTYPES), help="of the transformer; the diffusion head stays float32")
    sub.add_argument("--heads", type=int, help="attention heads, for widths other than MAR-B, L and H")
    sub.add_argument("--overwrite", action="store_true")


def convert_file(options: Options) -> None:
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


INFO = Verb("info", "what a model file holds", add_info_options, info)
CONVERT = Verb(
    "convert", "original .pth or .ckpt -> .safetensors; nothing in it is executed", add_convert_options, convert_file
)
