"""The command line: ``python -m gtr_core VERB``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

import torch

from ..checkpoints.checkpoint import DTYPES
from ..device import is_out_of_memory
from ..errors import GtRError, first_line
from ..models.mar import VARIANTS
from ..plans.fts import SELECTIONS
from ..plans.partition import PARTITIONS
from ..plans.presets import PRESETS
from ..plans.schedule import ORDERS, SCOPES
from . import bench as verb_bench
from . import checkpoint as verb_checkpoint
from . import evaluate as verb_eval
from . import generate as verb_generate
from . import generate_many as verb_many
from . import options as verbs
from . import plan as verb_plan
from . import search as verb_search


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it worked, 2 with one line on stderr when the input was wrong or memory ran out."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.command = shlex.join(["python", "-m", "gtr_core", *arguments])
    try:
        options.run(options)
    except GtRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory ({first_line(error)}): make the batch or the size smaller", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gtr_core", description="Masked autoregressive image models with GtR."
    )
    subparsers = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, run, summary: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="report as JSON")
        return sub

    sub = verb("info", verb_checkpoint.info, "what a model file holds")
    sub.add_argument("file")
    sub.add_argument("--weights", choices=("ema", "model"), help="default: ema of MAR, model of LightGen")

    sub = verb(
        "convert", verb_checkpoint.convert_file, "original .pth or .ckpt -> .safetensors; nothing in it is executed"
    )
    sub.add_argument("source", metavar="IN")
    sub.add_argument("target", metavar="OUT")
    sub.add_argument("--weights", choices=("ema", "model"), help="default: ema of MAR, model of LightGen")
    sub.add_argument("--dtype", choices=tuple(DTYPES), help="of the transformer; the diffusion head stays float32")
    sub.add_argument("--heads", type=int, help="attention heads, for widths other than MAR-B, L and H")
    sub.add_argument("--overwrite", action="store_true")

    sub = verb("schedule", verb_plan.schedule, "the plan of a schedule")
    _schedule_options(sub)
    sub.add_argument("--grid", default="16x16", help="rows x columns of tokens")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--png", metavar="FILE", help="draw the plan")

    sub = verb("flops", verb_plan.count_flops, "TFLOPs per image, counted from the plan")
    _schedule_options(sub)
    sub.add_argument("--model", default="mar-h", help=f"{', '.join(VARIANTS.values())}, lightgen, demo or a file")
    sub.add_argument("--no-cfg", action="store_true", help="without guidance")
    sub.add_argument("--all", action="store_true", help="every method beside the paper's printed numbers")

    sub = verb("generate", verb_generate.generate, "make pictures")
    _schedule_options(sub)
    sub.add_argument("--model", default="demo", help="a MAR file, or demo")
    sub.add_argument("--vae", help="the model's VAE file (not needed for demo)")
    sub.add_argument("--class", dest="classes", default="0", help="indices or names, separated by commas")
    sub.add_argument(
        "--prompt-embeds", metavar="FILE", help="LightGen: a .safetensors with 'prompt_embeds' (n, 128, 4096)"
    )
    sub.add_argument("--size", help="LightGen: width x height in pixels, such as 512x512")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--batch", type=int, help="pictures (default: one per class)")
    verbs.add_guidance_options(sub)
    sub.add_argument("--temperature", type=float, default=1.0)
    _device_options(sub)
    sub.add_argument("-o", "--output", default="gtr.png")

    sub = verb("generate-many", verb_many.generate_many, "thousands of pictures on many workers, resumable")
    verb_many.add_options(sub)
    _schedule_options(sub)
    _device_options(sub)

    sub = verb("bench", verb_bench.run_bench, "measured latency and memory of presets, all in one run")
    sub.add_argument("--model", default="mar-b", help=f"{', '.join(VARIANTS.values())}, lightgen, demo or a file")
    sub.add_argument(
        "--presets",
        default="origin,gtr-paper,gtr-full",
        help="the others are compared with the first; also lazymar, and reference: the origin as upstream runs it; "
        "name@dtype has a --dtype of its own",
    )
    sub.add_argument("--rounds", type=int, default=3)
    sub.add_argument("--png", metavar="FILE", help="draw the seconds, as .png, .svg or .pdf")
    sub.add_argument("--batch", type=int, default=1)
    sub.add_argument("--size", help="LightGen: width x height in pixels")
    sub.add_argument("--cfg", type=float, default=3.0)
    _device_options(sub)
    _fts_options(sub)

    sub = verb("eval", verb_eval.evaluate_methods, "quality of methods over many pictures, resumable")
    verb_eval.add_options(sub)
    _fts_options(sub)

    sub = verb("search", verb_search.search_schedule, "the best schedule at a cost, by quality")
    verb_search.add_options(sub)
    return parser


def _schedule_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--preset", choices=(*PRESETS, verbs.LAZYMAR), default="gtr-paper")
    sub.add_argument(
        "--cache", choices=(verbs.LAZYMAR,), help="LazyMAR's caches; the preset of that name is the origin with them"
    )
    sub.add_argument("--order", choices=ORDERS, default="gtr", help="other than gtr: that order in --steps AR steps")
    sub.add_argument("--steps", help="custom GtR schedule: AR steps per stage, such as 24,6,2")
    sub.add_argument("--rates", help="or tokens per AR step of every stage, such as 2.67,10.67,64")
    sub.add_argument("--diffusion", help="diffusion steps: start, end, reconstruction, such as 50,20,20")
    sub.add_argument("--partition", choices=PARTITIONS)
    sub.add_argument("--scope", choices=SCOPES, help="mask tokens that the decoder sees (custom schedules: stage)")
    _fts_options(sub)


def _device_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sub.add_argument(
        "--dtype",
        choices=(*DTYPES, verbs.AUTO),
        default="float32",
        help="of the transformer; auto: the fastest that the device has units for",
    )
    sub.add_argument(
        "--acceleration",
        choices=(verbs.AUTO, "off"),
        default=verbs.AUTO,
        help="auto: what pays on the device: CUDA graphs of the diffusion head, packed weights, and with "
        "a 16-bit --dtype most of the head's steps in 16 bit",
    )


def _fts_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--fts",
        choices=(*SELECTIONS, "off"),
        default="high",
        help="which tokens of a reconstruction step get the detail steps",
    )
    sub.add_argument("--fts-fraction", type=float, default=0.1)
    sub.add_argument("--fts-steps", type=int, default=50)
