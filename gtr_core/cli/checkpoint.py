"""``info`` and ``convert``: what a model file holds, and original checkpoints as safetensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint, checked_model, checked_vae, read_checkpoint
from ..checkpoints.convert import convert
from ..device import DTYPES
from ..errors import GtRError, first_line
from ..models import recognise_autoencoder
from .options import Options, Parser, Verb, print_report
from .progress import StageProgress

LONGEST_NAMES = 4 << 20  # bytes of a file of class names
WEIGHTS_HELP = (
    "which weights of a training checkpoint: ema, model (the raw ones) or one of the entries that info lists; "
    "default: ema of MAR, model of LightGen"
)


def add_info_options(sub: Parser) -> None:
    sub.add_argument("file", metavar="FILE", help="a model, VAE or tokenizer: .pth, .ckpt or .safetensors")
    sub.add_argument("--weights", metavar="WHICH", help=WEIGHTS_HELP)


def info(options: Options) -> None:
    """What a file holds, and what is wrong with it."""
    facts = describe(read_checkpoint(options.file, weights=options.weights))
    print_report(options, facts, "\n".join(f"{key:12} {value}" for key, value in facts.items() if key != "spec"))


def describe(checkpoint: Checkpoint) -> dict:
    """Family, variant, sizes, dtypes and weights of a checkpoint. Raises GtRError when it is not usable."""
    warnings = []
    if recognise_autoencoder(checkpoint.tensors) is not None:
        spec, tensors = checked_vae(checkpoint)
        identity, rest = {"family": spec.family, "variant": spec.variant, "latents": spec.latents}, {}
        warnings += [spec.unusable]
    else:
        spec, tensors = checked_model(checkpoint)
        warnings += [checkpoint.warning(spec), *spec.assumptions]
        identity = {"family": spec.family, "variant": spec.name}
        rest = {
            "image": list(spec.latent.size(spec.grid)),
            "grid": list(spec.grid),
            "latents": spec.latent.kind,
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
    if checkpoint.entry:
        facts["entry"] = checkpoint.entry
    if checkpoint.entries:
        facts["entries"] = list(checkpoint.entries)
    found = [warning for warning in warnings if warning]
    if found:
        facts["warning"] = "; ".join(found)
    return facts | {"spec": asdict(spec)}


def add_convert_options(sub: Parser) -> None:
    sub.add_argument("source", metavar="IN", help="a checkpoint: .pth, .ckpt or .safetensors")
    sub.add_argument("target", metavar="OUT", help="a name that ends in .safetensors")
    sub.add_argument("--weights", metavar="WHICH", help=WEIGHTS_HELP)
    sub.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="of the transformer; the diffusion head stays float32 (default: as in IN)",
    )
    sub.add_argument("--heads", metavar="N", type=int, help="attention heads, for widths other than MAR-B, L and H")
    sub.add_argument("--grid", metavar="ROWSxCOLUMNS", help="tokens, for a MAR whose grid is not square")
    sub.add_argument(
        "--patch", metavar="N", type=int, help="latent cells along one side of a token, where they are not 1 (MAR)"
    )
    sub.add_argument(
        "--vae-stride",
        metavar="N",
        type=int,
        help="pixels along one side of a latent cell, where they are not 16 (MAR)",
    )
    sub.add_argument(
        "--latent",
        metavar="WHICH",
        help="the latents that a MAR draws, where the file does not say: kl-16, detok (l-DeTok), normalised (a VAE "
        "converted with --stats), or SCALE or SCALE,SHIFT: token = (latent - SHIFT) * SCALE",
    )
    sub.add_argument(
        "--stats",
        metavar="FILE",
        help="mean and deviation per latent channel, such as l-DeTok's stats.pkl: folded into the VAE or tokenizer",
    )
    sub.add_argument("--stats-key", metavar="NAME", help="whose statistics, where the file holds several")
    sub.add_argument("--class-names", metavar="FILE", help="a text file, UTF-8, with one name per class and line")
    sub.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")


def convert_file(options: Options) -> None:
    """Original checkpoint -> safetensors with metadata."""
    with StageProgress(silent=options.json) as progress:
        result = _convert(options, progress)
        facts = describe(result)
        progress.show(f"wrote {result.path.name}", 1.0)
    entry = f" (entry '{result.entry}')" if result.entry else ""
    print_report(
        options,
        facts,
        f"wrote {options.target}: {facts['family']} {facts['variant']}, {facts['tensors']} tensors, "
        f"weights: {facts.get('weights', 'VAE')}{entry}",
    )


def _convert(options: Options, progress: StageProgress) -> Checkpoint:
    return convert(
        options.source,
        options.target,
        weights=options.weights,
        dtype=options.dtype,
        heads=options.heads,
        grid=options.grid and rows_and_columns(options.grid),
        patch=options.patch,
        vae_stride=options.vae_stride,
        latent=options.latent,
        stats=options.stats,
        stats_key=options.stats_key,
        class_names=options.class_names and read_class_names(Path(options.class_names)),
        overwrite=options.overwrite,
        on_progress=progress.show,
    )


def rows_and_columns(text: str) -> tuple[int, int]:
    """The grid that a text such as 16x32 names. Raises GtRError."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.strip().isascii() and side.strip().isdigit() for side in sides):
        raise GtRError(f"--grid '{text}': expected ROWSxCOLUMNS, such as 16x32")
    return int(sides[0][:9]), int(sides[1][:9])


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a file, one per line. Raises GtRError."""
    try:
        if path.stat().st_size > LONGEST_NAMES:
            raise ValueError(f"more than {LONGEST_NAMES} bytes")
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise GtRError(
            f"--class-names {path}: cannot be read ({first_line(error)}): expected a text in UTF-8"
        ) from error
    twice = next((name for name, count in Counter(map(str.lower, names)).items() if count > 1), None)
    if not names or twice is not None:
        found = "none" if twice is None else f"'{twice}' twice"
        raise GtRError(f"--class-names {path}: expected one name per class and line, found {found}")
    return tuple(names)


INFO = Verb("info", "what a model file holds", ("info checkpoint-last.pth",), add_info_options, info)
CONVERT = Verb(
    "convert",
    "original .pth or .ckpt -> .safetensors; nothing in it is executed",
    (
        "convert checkpoint-last.pth mar-base-ema.safetensors --dtype bfloat16",
        "convert detok.pth detok.safetensors --stats stats.pkl",
    ),
    add_convert_options,
    convert_file,
)
