"""``generate-many``: thousands of images by one method, on many workers, resumable."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from ..costs.bench import describe_machine
from ..jobs.generate_many import (
    FORMATS,
    MANIFESTS,
    GenerationJob,
    check_manifest,
    claim,
    generate_many,
    keys_of,
    strangers,
    write_manifest,
)
from ..jobs.resume import CHUNK
from .options import (
    Options,
    Parser,
    Verb,
    add_guidance_options,
    add_method_options,
    add_model_options,
    add_prompt_options,
    add_runtime_options,
    add_worker_options,
    conditions_of,
    grid_of,
    method_of,
    model_file,
    model_spec,
    pool_of,
    print_report,
    runtime_of,
    vae_file,
)
from .progress import WorkProgress


def add_options(sub: Parser) -> None:
    add_model_options(sub, "MAR, LightGen, Harmon or UniPic")
    sub.add_argument(
        "--classes",
        metavar="NAMES",
        default="all",
        help="indices or names, separated by commas, or all; they take turns",
    )
    sub.add_argument(
        "--prompt-embeds",
        metavar="FILE",
        help="LightGen: a .safetensors with 'prompt_embeds' (n, 128, 4096); its rows take turns",
    )
    add_prompt_options(sub)
    sub.add_argument(
        "--size", metavar="WIDTHxHEIGHT", help="in pixels, of LightGen and Harmon (default: the model's own)"
    )
    count = sub.add_mutually_exclusive_group()
    count.add_argument("--images", metavar="N", type=int, help="images in all")
    count.add_argument("--per-class", metavar="N", type=int, default=1, help="images of every class or prompt")
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="image k has the seed + k")
    sub.add_argument("--batch", metavar="N", type=int, default=16, help="images at a time, per worker")
    sub.add_argument(
        "--shard", metavar="N", type=int, default=CHUNK, help="images of one task, and of one safetensors file"
    )
    sub.add_argument("--format", choices=FORMATS, default="png", help="safetensors: images and latents")
    sub.add_argument("--manifest", choices=MANIFESTS, default="jsonl", help="parquet needs pyarrow, jsonl nothing")
    sub.add_argument("-o", "--output", metavar="DIR", default="gtr_many", help="a folder; a rerun goes on there")
    add_guidance_options(sub)
    add_worker_options(sub)
    add_method_options(sub)
    add_runtime_options(sub)


def run(options: Options) -> None:
    """Make what is missing of the images, then write the manifest of all."""
    check_manifest(options.manifest)
    pool, started = pool_of(options), time.perf_counter()
    with WorkProgress("images") as progress:
        progress.doing(f"reading {model_file(options.model).name}")
        job = job_of(options)
        keys = keys_of(job, pool.device)
        with claim(job):
            progress.doing("looking for images of an earlier run")
            on_share = partial(progress.within, size=job.shard)
            result = generate_many(job, keys, pool, progress.show, progress.begin, on_share)
            manifest = write_manifest(job, keys, result.rows, options.manifest)
            others = strangers(job)
    seconds, count = time.perf_counter() - started, len(result.rows)
    facts = {
        "command": options.command,
        "output": str(job.output),
        "manifest": str(manifest),
        "images": count,
        "made": result.made,
        "seconds": seconds,
        "settings": job.method.settings(),
        "strangers": others,
        "machine": describe_machine(options.device),
    }
    if others:
        print(
            f"note: {len(others)} files in {job.output} are of another job, not in the manifest (first: {others[0]}): "
            "a tool that counts the folder mixes both; delete them, or use a folder of its own for every job",
            file=sys.stderr,
        )
    print_report(
        options,
        facts,
        f"{manifest}: {count} images, {result.made} made now in {seconds:.1f} s, {count - result.made} were there",
    )


def job_of(options: Options) -> GenerationJob:
    """Raises GtRError."""
    vae, runtime = vae_file(options), runtime_of(options)
    spec = model_spec(str(model_file(options.model)))
    conditions = conditions_of(options, spec, options.classes)
    return GenerationJob(
        model=model_file(options.model).resolve(),
        vae=vae.resolve(),
        method=method_of(options),
        images=options.per_class * conditions.count if options.images is None else options.images,
        seed=options.seed,
        output=Path(options.output).resolve(),
        labels=conditions.labels,
        prompts=conditions.prompts and conditions.prompts.resolve(),
        ids=conditions.ids,
        grid=grid_of(options.size, spec),
        format=options.format,
        shard=max(options.shard, options.batch),
        batch=options.batch,
        dtype=runtime.dtype,
        accelerate=runtime.accelerate,
    )


GENERATE_MANY = Verb(
    "generate-many",
    "thousands of images on many workers, resumable",
    (
        "generate-many --classes all --per-class 50 --workers 2 -o images",
        "generate-many --model mar_h.safetensors --vae kl16.safetensors --images 50000 --engine ray -o /data/mar-h",
    ),
    add_options,
    run,
    resumable=True,
)
