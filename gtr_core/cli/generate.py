"""What each verb of the command line does: options in, a report out."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from .. import pipeline
from ..checkpoints import build_model, build_vae, prompt_states
from ..costs.report import run_report
from ..demo import DEMO_VAE
from ..drawing.png import write_png
from ..errors import GtRError
from ..models import ModelSpec
from ..models.labels import parse_labels
from ..models.mar import MARSpec
from ..noise import image_seeds
from ..plans.plan import make_plan
from ..sampling.sampler import Callback, Progress
from .options import (
    AUTO,
    LARGEST_BATCH,
    cache_of,
    check_device,
    dtype_of,
    fts_of,
    grid_of,
    guidance_of,
    model_file,
    print_report,
    schedule_of,
)


def generate(options: argparse.Namespace) -> None:
    """Pictures from a model file or the demo model."""
    demo = options.model == "demo"
    if not demo and not options.vae:
        raise GtRError("no VAE: give the model's VAE file with --vae (kl16 for the published MAR models)")
    output = Path(options.output)
    if output.suffix.lower() != ".png":
        raise GtRError(f"output '{output.name}': expected a name that ends in .png")
    if not os.path.isdir(output.parent):
        raise GtRError(f"no folder {output.parent}: make it, or choose another")
    check_device(options.device)
    model = build_model(model_file(options.model), device=options.device, dtype=dtype_of(options))
    vae = build_vae(options.vae or DEMO_VAE, device=options.device)
    pipeline.check_pair(model, vae)
    condition, grid = _condition(options, model.spec)
    schedule, guidance, marks = schedule_of(options), guidance_of(options), []
    with _progress_bar(silent=options.json) as bar:
        latents = pipeline.generate_latents(
            model,
            schedule,
            condition,
            options.seed,
            guidance=guidance,
            accelerate=options.acceleration == AUTO,
            cache=cache_of(options),
            grid=grid,
            temperature=options.temperature,
            fts=fts_of(options),
            device=options.device,
            dtype=dtype_of(options),
            callback=_watch(marks, bar),
        )
    plan = make_plan(schedule, grid, image_seeds(options.seed, len(condition)))
    text = run_report(
        plan,
        model.spec,
        guided=guidance.enabled,
        unguided=guidance.start,
        fts=fts_of(options),
        cache=cache_of(options),
        seconds=[after - before for before, after in zip(marks, marks[1:])],
    )
    count = len(condition)
    paths = [output if count == 1 else output.with_stem(f"{output.stem}_{k:03}") for k in range(count)]
    for path, picture in zip(paths, pipeline.decode_pictures(vae, latents)):
        write_png(path, picture)
    facts = {"files": [str(path) for path in paths], "seconds": marks[-1] - marks[0], "report": text}
    if not isinstance(condition, torch.Tensor):
        facts["classes"] = list(condition)
    print_report(options, facts, "\n".join([text, *facts["files"]]))


def _condition(options: argparse.Namespace, spec: ModelSpec) -> tuple[torch.Tensor | tuple[int, ...], tuple[int, int]]:
    """Labels, or text states from a file, and the token grid."""
    grid = grid_of(options.size, spec) if options.size else spec.grid
    if isinstance(spec, MARSpec):
        return _labels(options, spec), grid
    if not options.prompt_embeds:
        raise GtRError(f"{spec.name} draws from text: give its encoded prompts with --prompt-embeds FILE")
    return prompt_states(options.prompt_embeds, spec).float(), grid


def _labels(options: argparse.Namespace, spec: MARSpec) -> tuple[int, ...]:
    """One label per image: the given classes, repeated in order up to the batch size."""
    labels = parse_labels(options.classes, spec)
    batch = len(labels) if options.batch is None else options.batch
    if not 1 <= batch <= LARGEST_BATCH:
        raise GtRError(f"a batch of {batch}: expected at least 1 and at most {LARGEST_BATCH}")
    if batch < len(labels):
        raise GtRError(f"{len(labels)} classes for a batch of {batch}: give --batch {len(labels)} or fewer classes")
    return tuple(labels[k % len(labels)] for k in range(batch))


def _watch(marks: list[float], bar: tqdm) -> Callback:
    """Notes when every AR step begins and the last one ends, and moves the progress bar."""

    def callback(progress: Progress) -> None:
        if progress.diffusion_step == 0:
            marks.append(time.perf_counter())
        bar.total = progress.steps
        bar.set_description_str(
            f"stage {progress.stage}/{progress.stages}, step {progress.step}/{progress.steps}", refresh=False
        )
        bar.update(progress.step + progress.diffusion_step / max(progress.diffusion_steps, 1) - bar.n)

    return callback


def _progress_bar(*, silent: bool) -> tqdm:
    """On standard error, where that is a terminal; a log file gets nothing."""
    layout = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"
    return tqdm(total=1, bar_format=layout, disable=True if silent else None)
