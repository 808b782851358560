"""What each verb of the command line does: options in, a report out."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from . import bench, flops, paper, pipeline
from .checkpoint import DTYPES, Checkpoint, convert, load_model, load_vae, read_checkpoint
from .classes import parse_labels
from .demo import DEMO_MAR, DEMO_VAE
from .engine import GUIDANCE_SCHEDULES, Guidance, Reference
from .errors import GtRError
from .fts import FTS
from .hardware import best_dtype
from .infer import is_vae
from .lazymar import LazyMAR
from .many import prompt_states
from .noise import image_seeds
from .picture import draw_bars, draw_plan
from .plan import make_plan
from .png import write_png
from .report import run_report
from .sampler import Callback, Progress
from .schedule import Schedule, preset
from .spec import LIGHTGEN, VARIANTS, LightGenSpec, MARSpec, ModelSpec, mar_spec
from .workers import ENGINES, Engine

LAZYMAR, REFERENCE, AUTO = "lazymar", "reference", "auto"
LARGEST_BATCH = 4096
DEVICES = ("cpu", "cuda", "mps", "xpu")


def info(options: argparse.Namespace) -> None:
    """What a file holds, and what is wrong with it."""
    facts = describe(read_checkpoint(options.file, weights=options.weights))
    print_report(options, facts, "\n".join(f"{key:12} {value}" for key, value in facts.items() if key != "spec"))


def describe(checkpoint: Checkpoint) -> dict:
    """Family, variant, sizes, dtypes and weights of a checkpoint. Raises GtRError when it is not usable."""
    load = load_vae if is_vae(checkpoint.tensors) else load_model
    spec, tensors = load(checkpoint)
    family = {MARSpec: "MAR", LightGenSpec: "LightGen"}.get(type(spec), "KL VAE")
    facts = {"file": str(checkpoint.path), "family": family,
             "variant": f"f{spec.stride}" if load is load_vae else spec.name,
             "parameters": sum(t.numel() for t in tensors.values()), "tensors": len(tensors),
             "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})}
    if load is load_model:
        facts |= {"image": list(spec.latent.size(spec.grid)), "grid": list(spec.grid), "weights": checkpoint.weights}
    if isinstance(spec, MARSpec):
        facts["classes"] = spec.classes
    if checkpoint.warning:
        facts["warning"] = checkpoint.warning
    return facts | {"spec": asdict(spec)}


def convert_file(options: argparse.Namespace) -> None:
    """Original checkpoint -> safetensors with metadata."""
    result = convert(options.source, options.target, weights=options.weights, dtype=options.dtype,
                     heads=options.heads, overwrite=options.overwrite)
    facts = describe(result)
    print_report(
        options,
        facts,
        f"wrote {options.target}: {facts['family']} {facts['variant']}, {facts['tensors']} tensors, "
        f"weights: {facts.get('weights', 'VAE')}",
    )


def schedule(options: argparse.Namespace) -> None:
    """The plan of a schedule on a grid, as text, JSON or picture."""
    plan = make_plan(schedule_of(options), _grid(options.grid), image_seeds(options.seed, 1))
    if options.png:
        write_png(options.png, draw_plan(plan, fts_of(options)))
    lines = [f"{index:4}  stage {step.stage}  {step.tokens:4} tokens  {step.diffusion_steps:4} diffusion steps"
             for index, step in enumerate(plan.steps)]
    print_report(options, plan.to_dict(), "\n".join(lines + ([options.png] if options.png else [])))


def count_flops(options: argparse.Namespace) -> None:
    """TFLOPs per image of a schedule and the ratio to the origin."""
    if options.all:
        table = paper.compare()
        return print_report(options, table, paper.markdown(table))
    facts = flops.report(schedule_of(options), model_spec(options.model), guided=not options.no_cfg,
                         fts=fts_of(options), cache=cache_of(options))
    parts = "  ".join(f"{part} {value:.3f}" for part, value in facts["tflops"].items())
    print_report(options, facts, f"{facts['model']} {facts['preset']}: {parts} TFLOPs per image (2 per multiply-add, "
                            f"{'no ' if options.no_cfg else ''}guidance, no VAE); origin {facts['origin_total']:.3f}; "
                            f"{facts['speedup']:.3f}x")


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
    model = pipeline.build_model(model_file(options.model), device=options.device, dtype=dtype_of(options))
    vae = pipeline.build_vae(options.vae or DEMO_VAE, device=options.device)
    pipeline.check_pair(model, vae)
    condition, grid = _condition(options, model.spec)
    schedule, guidance, marks = schedule_of(options), guidance_of(options), []
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
        callback=_watch(marks, silent=options.json),
    )
    plan = make_plan(schedule, grid, image_seeds(options.seed, len(condition)))
    text = run_report(plan, model.spec, guided=guidance.enabled, unguided=guidance.start, fts=fts_of(options),
                      cache=cache_of(options),
                      seconds=[after - before for before, after in zip(marks, marks[1:])])
    count = len(condition)
    paths = [output if count == 1 else output.with_stem(f"{output.stem}_{k:03}") for k in range(count)]
    for path, picture in zip(paths, pipeline.decode_pictures(vae, latents)):
        write_png(path, picture)
    facts = {"files": [str(path) for path in paths], "seconds": marks[-1] - marks[0], "report": text}
    if not isinstance(condition, torch.Tensor):
        facts["classes"] = list(condition)
    print_report(options, facts, "\n".join([text, *facts["files"]]))


def run_bench(options: argparse.Namespace) -> None:
    """Latency and memory of presets in one interleaved run; random weights unless the model is a file."""
    check_device(options.device)
    spec = model_spec(options.model)
    contenders = [_contender(name, options, spec) for name in _names(options.presets)]
    if not contenders or options.rounds < 1 or not 1 <= options.batch <= LARGEST_BATCH:
        raise GtRError("nothing to measure: expected at least 1 preset, 1 round and a batch of 1 to "
                       f"{LARGEST_BATCH}")
    grid = grid_of(options.size, spec) if options.size else None
    setting = bench.Setting(options.batch, grid, options.device, Guidance(options.cfg), fts_of(options),
                            options.acceleration == AUTO)
    known = {*VARIANTS.values(), LIGHTGEN.name}
    models = {
        dtype: bench.random_model(spec, options.device, dtype)
        if options.model in known
        else pipeline.build_model(model_file(options.model), device=options.device, dtype=dtype)
        for dtype in {contender.dtype for contender in contenders}
    }
    result = bench.bench(models, contenders, setting, rounds=options.rounds, on_run=lambda name, index: print(
        f"round {index + 1} of {options.rounds}: {name}", file=sys.stderr))
    if options.png:
        write_png(options.png, draw_bars([(row["preset"], row["seconds"], f"{row['seconds']:.2f} s {row['ratio']:.2f}x")
                                          for row in result["rows"]], f"{result['model']} seconds per batch (median)"))
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    print_report(options, result, f"{result['model']}, batch {result['batch']}; {machine}\n\n"
                             + bench.markdown(result))


def _contender(name: str, options: argparse.Namespace, spec: ModelSpec) -> bench.Contender:
    """A preset, in a dtype of its own where one follows an @."""
    preset_name, _, dtype = name.partition("@")
    if dtype and dtype not in DTYPES:
        raise GtRError(f"'{name}': expected one of {', '.join(DTYPES)} after the @")
    return bench.Contender(name, *named_method(preset_name, spec), DTYPES[dtype] if dtype else dtype_of(options))


def check_device(device: str) -> None:
    try:
        usable = torch.empty(0, device=device).device.type in DEVICES
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise GtRError(f"device '{device}' cannot be used here: expected cpu or an available accelerator")


def _condition(options: argparse.Namespace, spec: ModelSpec) -> tuple[torch.Tensor | tuple[int, ...], tuple[int, int]]:
    """Labels, or text states from a file, and the token grid."""
    grid = grid_of(options.size, spec) if options.size else spec.grid
    if isinstance(spec, MARSpec):
        return _labels(options, spec), grid
    if not options.prompt_embeds:
        raise GtRError(f"{spec.name} draws from text: give its encoded prompts with --prompt-embeds FILE")
    return prompt_states(options.prompt_embeds, spec).float(), grid


def dtype_of(options: argparse.Namespace) -> torch.dtype:
    """The transformer's."""
    return best_dtype(options.device) if options.dtype == AUTO else DTYPES[options.dtype]


def grid_of(text: str, spec: ModelSpec) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels -> the token grid."""
    values, pixels = numbers(text.lower().replace("x", ","), int), spec.latent.stride * spec.latent.patch
    if len(values) != 2 or any(value < 1 or value % pixels for value in values):
        raise GtRError(f"size '{text}': expected width x height in multiples of {pixels}, such as 512x512")
    return values[1] // pixels, values[0] // pixels


def _labels(options: argparse.Namespace, spec: MARSpec) -> tuple[int, ...]:
    """One label per image: the given classes, repeated in order up to the batch size."""
    labels = parse_labels(options.classes, spec)
    batch = len(labels) if options.batch is None else options.batch
    if not 1 <= batch <= LARGEST_BATCH:
        raise GtRError(f"a batch of {batch}: expected at least 1 and at most {LARGEST_BATCH}")
    if batch < len(labels):
        raise GtRError(f"{len(labels)} classes for a batch of {batch}: give --batch {len(labels)} or fewer classes")
    return tuple(labels[k % len(labels)] for k in range(batch))


def schedule_of(options: argparse.Namespace) -> Schedule:
    """The preset with the given changes, or a custom GtR schedule when --steps or --rates are given."""
    changes = {"diffusion": numbers(options.diffusion, int), "partition": options.partition,
               "decoder_scope": options.scope}
    changes = {key: value for key, value in changes.items() if value}
    if options.order != "gtr":
        steps = numbers(options.steps, int) or preset("origin").steps
        return Schedule(f"{options.order}-{steps[0]}", options.order, steps, **{"diffusion": (100, 100, 100)} | changes)
    if options.steps or options.rates:
        return Schedule("custom", "gtr", steps=numbers(options.steps, int), rates=numbers(options.rates, float),
                        **{"decoder_scope": "stage"} | changes)
    chosen, _ = named_method(options.preset)
    return replace(chosen, name=f"{chosen.name} (changed)", **changes) if changes else chosen


def numbers(text: str | None, kind: type) -> tuple:
    """A list such as 24,6,2; empty for none."""
    try:
        return tuple(kind(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise GtRError(f"'{text}' is not a list of numbers such as 24,6,2") from error


def _grid(text: str) -> tuple[int, int]:
    values = numbers(text.lower().replace("x", ","), int)
    if len(values) != 2:
        raise GtRError(f"grid '{text}': expected rows x columns, such as 16x16")
    return values


def model_file(model: str) -> str | Path:
    """The file behind --model."""
    return DEMO_MAR if model == "demo" else model


def model_spec(model: str) -> ModelSpec:
    if model in VARIANTS.values():
        return mar_spec(model)
    if model == LIGHTGEN.name:
        return LIGHTGEN
    return load_model(read_checkpoint(model_file(model)))[0]


def add_guidance_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--cfg", type=float, default=3.0)
    sub.add_argument("--cfg-schedule", choices=GUIDANCE_SCHEDULES, default="linear")
    sub.add_argument("--cfg-start", type=float, default=0.0, help="part of the tokens that is drawn without guidance")


def add_engine_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--engine", choices=ENGINES, default="local", help="ray: RAY_ADDRESS, or a cluster started here")
    sub.add_argument("--workers", type=int, help="default: this process alone; ray: as many as there is room for")
    sub.add_argument("--threads", type=int, default=1, help="of every worker, whatever their number")


def engine_of(options: argparse.Namespace) -> Engine:
    return Engine(options.engine, options.workers, options.threads, options.device)


def guidance_of(options: argparse.Namespace) -> Guidance:
    return Guidance(options.cfg, options.cfg_schedule, options.cfg_start)


def fts_of(options: argparse.Namespace) -> FTS | None:
    if options.fts == "off":
        return None
    return FTS(options.fts_fraction, options.fts_steps, options.fts)


def named_method(name: str, spec: ModelSpec | None = None) -> bench.Method:
    """A preset by name; ``lazymar`` is the origin with LazyMAR's caches, ``reference`` the model's origin as upstream
    runs it."""
    if name == REFERENCE and spec is not None:
        return replace(flops.origin_of(spec), name=REFERENCE), Reference()
    if name == LAZYMAR:
        return replace(preset("origin"), name=LAZYMAR), LazyMAR()
    return preset(name, (LAZYMAR,) if spec is None else (LAZYMAR, REFERENCE)), None


def named_methods(names: str, spec: ModelSpec) -> list[bench.Method]:
    """A list of them, such as gtr-paper,lazymar."""
    return [named_method(name, spec) for name in _names(names)]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def cache_of(options: argparse.Namespace) -> LazyMAR | None:
    return LazyMAR() if options.cache == LAZYMAR else named_method(options.preset)[1]


def _watch(marks: list[float], *, silent: bool) -> Callback:
    """Notes when every AR step begins and the last one ends, and shows a progress bar unless ``silent``."""

    def callback(progress: Progress) -> None:
        if progress.diffusion_step == 0:
            marks.append(time.perf_counter())
        if not silent:
            _progress_bar(progress)

    return callback


def _progress_bar(progress: Progress) -> None:
    share = (progress.step + progress.diffusion_step / max(progress.diffusion_steps, 1)) / max(progress.steps, 1)
    bar = "#" * int(30 * min(share, 1.0))
    print(f"\r[{bar:30}] stage {progress.stage}/{progress.stages} step {progress.step}/{progress.steps}", end="",
          file=sys.stderr, flush=True)
    if progress.step == progress.steps:
        print(file=sys.stderr)


def print_report(options: argparse.Namespace, facts: dict, text: str) -> None:
    print(json.dumps(facts) if options.json else text)
