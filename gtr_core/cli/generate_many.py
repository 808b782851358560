"""The ``generate-many`` verb: thousands of pictures by one method, on many workers, resumable."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from ..checkpoints import prompt_states
from ..demo import DEMO_VAE
from ..errors import GtRError
from ..jobs.generate_many import FORMATS, MANIFESTS, Order, check_manifest, make_many, write_manifest
from ..jobs.resume import CHUNK
from ..models import ModelSpec
from ..models.labels import parse_labels
from ..models.mar import MARSpec
from ..plans.method import Method
from .options import (
    AUTO,
    add_engine_options,
    add_guidance_options,
    cache_of,
    check_device,
    dtype_of,
    engine_of,
    fts_of,
    grid_of,
    guidance_of,
    model_file,
    model_spec,
    print_report,
    schedule_of,
)


def add_options(sub: argparse.ArgumentParser) -> None:
    """The verb's own options; those of schedule and device are common to several verbs."""
    sub.add_argument("--model", default="demo", help="a MAR or LightGen file, or demo")
    sub.add_argument("--vae", help="the model's VAE file (not needed for demo)")
    sub.add_argument("--classes", default="all", help="indices or names, separated by commas, or all; they take turns")
    sub.add_argument(
        "--prompt-embeds",
        metavar="FILE",
        help="LightGen: a .safetensors with 'prompt_embeds' (n, 128, 4096); its rows take turns",
    )
    sub.add_argument("--size", help="LightGen: width x height in pixels, such as 512x512")
    count = sub.add_mutually_exclusive_group()
    count.add_argument("--images", type=int, help="pictures in all")
    count.add_argument("--per-class", type=int, default=1, help="pictures of every class or prompt")
    sub.add_argument("--seed", type=int, default=0, help="picture k has the seed + k")
    sub.add_argument("--batch", type=int, default=16, help="pictures at a time, per worker")
    sub.add_argument("--shard", type=int, default=CHUNK, help="pictures of one task, and of one safetensors file")
    sub.add_argument("--format", choices=FORMATS, default="png", help="safetensors: pictures and latents")
    sub.add_argument("--manifest", choices=MANIFESTS, default="parquet", help="parquet needs pyarrow, jsonl nothing")
    sub.add_argument("--temperature", type=float, default=1.0)
    sub.add_argument("-o", "--output", default="gtr_many", help="a folder; a rerun goes on there")
    add_guidance_options(sub)
    add_engine_options(sub)


def generate_many(options: argparse.Namespace) -> None:
    """Make what is missing of the pictures, then write the manifest of all."""
    check_manifest(options.manifest)
    check_device(options.device)
    order, engine, started = order_of(options), engine_of(options), time.perf_counter()
    rows, made, keys = make_many(order, engine, _progress())
    manifest = write_manifest(order, keys, rows, options.manifest)
    seconds = time.perf_counter() - started
    facts = {
        "command": options.command,
        "output": str(order.output),
        "manifest": str(manifest),
        "pictures": len(rows),
        "made": made,
        "seconds": seconds,
        "settings": order.method.settings(),
    }
    print_report(
        options,
        facts,
        f"{manifest}: {len(rows)} pictures, {made} made now in {seconds:.1f} s, {len(rows) - made} were there",
    )


def order_of(options: argparse.Namespace) -> Order:
    """Raises GtRError."""
    if options.model != "demo" and not options.vae:
        raise GtRError("no VAE: give the model's VAE file with --vae (kl16 for the published MAR models)")
    spec = model_spec(str(model_file(options.model)))
    labels, conditions = _conditions(options, spec)
    prompts = Path(options.prompt_embeds).resolve() if options.prompt_embeds else None
    method = Method(schedule_of(options), guidance_of(options), fts_of(options), cache_of(options), options.temperature)
    return Order(
        Path(model_file(options.model)).resolve(),
        Path(options.vae or DEMO_VAE).resolve(),
        method,
        options.per_class * conditions if options.images is None else options.images,
        options.seed,
        Path(options.output).resolve(),
        labels,
        prompts,
        grid_of(options.size, spec) if options.size else None,
        options.format,
        max(options.shard, options.batch),
        options.batch,
        dtype_of(options),
        options.acceleration == AUTO,
    )


def _conditions(options: argparse.Namespace, spec: ModelSpec) -> tuple[tuple[int, ...], int]:
    """The labels, and the number of labels or prompts."""
    if not isinstance(spec, MARSpec):
        if not options.prompt_embeds:
            raise GtRError(f"{spec.name} draws from text: give its encoded prompts with --prompt-embeds FILE")
        return (), len(prompt_states(options.prompt_embeds, spec))
    if options.prompt_embeds:
        raise GtRError(f"{spec.name} draws from classes, not text: leave out --prompt-embeds")
    everything = options.classes.strip().lower() == "all"
    labels = tuple(range(spec.classes)) if everything else parse_labels(options.classes, spec)
    return labels, len(labels)


def _progress() -> Callable[[int, int], None]:
    """Pictures made, their rate and the time to go, on a line of stderr per piece."""
    started = time.perf_counter()

    def show(made: int, left: int) -> None:
        rate = made / (time.perf_counter() - started)
        print(
            f"{made} of {made + left} pictures, {rate:.3g} per second, {timedelta(seconds=round(left / rate))} to go",
            file=sys.stderr,
            flush=True,
        )

    return show
