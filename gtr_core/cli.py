"""The command line: ``python -m gtr_core VERB``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from . import flops, pipeline
from .checkpoint import DTYPES, Checkpoint, convert, load_model, load_vae, read_checkpoint
from .classes import parse_labels
from .demo import DEMO_MAR, DEMO_VAE
from .errors import GtRError
from .fts import FTS, SELECTIONS
from .noise import image_seeds
from .partition import PARTITIONS
from .picture import draw_plan
from .plan import make_plan
from .png import write_png
from .sampler import GUIDANCE_SCHEDULES, Guidance, Progress
from .schedule import PRESETS, SCOPES, Schedule, preset
from .infer import is_vae
from .spec import LIGHTGEN, VARIANTS, LightGenSpec, MARSpec, ModelSpec, mar_spec


DEVICES = ("cpu", "cuda", "mps", "xpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 when it worked, 2 with one line on stderr when the input was wrong."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except GtRError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130
    return 0


def info(options: argparse.Namespace) -> None:
    """What a file holds, and what is wrong with it."""
    facts = describe(read_checkpoint(options.file, weights=options.weights))
    _report(options, facts, "\n".join(f"{key:12} {value}" for key, value in facts.items() if key != "spec"))


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
    _report(options, facts, f"wrote {options.target}: {facts['family']} {facts['variant']}, {facts['tensors']} tensors, "
                            f"weights: {facts.get('weights', 'VAE')}")


def schedule(options: argparse.Namespace) -> None:
    """The plan of a schedule on a grid, as text, JSON or picture."""
    plan = make_plan(_schedule(options), _grid(options.grid), image_seeds(options.seed, 1))
    if options.png:
        write_png(options.png, draw_plan(plan, _fts(options)))
    lines = [f"{index:4}  stage {step.stage}  {step.tokens:4} tokens  {step.diffusion_steps:4} diffusion steps"
             for index, step in enumerate(plan.steps)]
    _report(options, plan.to_dict(), "\n".join(lines + ([options.png] if options.png else [])))


def count_flops(options: argparse.Namespace) -> None:
    """TFLOPs per image of a schedule and the ratio to the origin."""
    facts = flops.report(_schedule(options), _spec(options.model), guided=not options.no_cfg, fts=_fts(options))
    parts = "  ".join(f"{part} {value:.3f}" for part, value in facts["tflops"].items())
    _report(options, facts, f"{facts['model']} {facts['preset']}: {parts} TFLOPs per image (2 per multiply-add, "
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
    if not output.parent.is_dir():
        raise GtRError(f"no folder {output.parent}: make it, or choose another")
    if options.device.partition(":")[0] not in DEVICES or (options.device.startswith("cuda")
                                                           and not torch.cuda.is_available()):
        raise GtRError(f"device '{options.device}' cannot be used here: expected cpu or an available accelerator")
    model = pipeline.build_model(DEMO_MAR if demo else options.model, device=options.device, dtype=DTYPES[options.dtype])
    vae = pipeline.build_vae(options.vae or DEMO_VAE, device=options.device)
    pipeline.check_pair(model, vae)
    labels = _labels(options, model.spec)
    started = time.perf_counter()
    latents = pipeline.generate_latents(
        model, _schedule(options), labels, options.seed, guidance=Guidance(options.cfg, options.cfg_schedule),
        temperature=options.temperature, fts=_fts(options), device=options.device, dtype=DTYPES[options.dtype],
        callback=None if options.json else _progress_bar)
    seconds = time.perf_counter() - started
    paths = [output if len(labels) == 1 else output.with_stem(f"{output.stem}_{k:03}") for k in range(len(labels))]
    for path, picture in zip(paths, pipeline.decode_pictures(vae, latents)):
        write_png(path, picture)
    facts = {"files": [str(path) for path in paths], "seconds": seconds, "classes": list(labels)}
    _report(options, facts, "\n".join([*facts["files"], f"{seconds:.1f} s for {len(labels)} without the VAE"]))


def _labels(options: argparse.Namespace, spec: MARSpec) -> tuple[int, ...]:
    """One label per image: the given classes, repeated in order up to the batch size."""
    labels = parse_labels(options.classes, spec)
    batch = len(labels) if options.batch is None else options.batch
    if batch < 1:
        raise GtRError(f"a batch of {batch}: expected at least 1")
    if batch < len(labels):
        raise GtRError(f"{len(labels)} classes for a batch of {batch}: give --batch {len(labels)} or fewer classes")
    return tuple(labels[k % len(labels)] for k in range(batch))


def _schedule(options: argparse.Namespace) -> Schedule:
    """The preset with the given changes, or a custom GtR schedule when --steps or --rates are given."""
    changes = {"diffusion": _numbers(options.diffusion, int), "partition": options.partition,
               "decoder_scope": options.scope}
    changes = {key: value for key, value in changes.items() if value}
    if options.steps or options.rates:
        return Schedule("custom", "gtr", steps=_numbers(options.steps, int), rates=_numbers(options.rates, float),
                        **{"decoder_scope": "stage"} | changes)
    chosen = preset(options.preset)
    return replace(chosen, name=f"{chosen.name} (changed)", **changes) if changes else chosen


def _numbers(text: str | None, kind: type) -> tuple:
    try:
        return tuple(kind(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise GtRError(f"'{text}' is not a list of numbers such as 24,6,2") from error


def _grid(text: str) -> tuple[int, int]:
    numbers = _numbers(text.lower().replace("x", ","), int)
    if len(numbers) != 2:
        raise GtRError(f"grid '{text}': expected rows x columns, such as 16x16")
    return numbers


def _spec(model: str) -> ModelSpec:
    if model in VARIANTS.values():
        return mar_spec(model)
    if model == LIGHTGEN.name:
        return LIGHTGEN
    return load_model(read_checkpoint(DEMO_MAR if model == "demo" else model))[0]


def _fts(options: argparse.Namespace) -> FTS | None:
    if options.fts == "off":
        return None
    return FTS(options.fts_fraction, options.fts_steps, options.fts)


def _progress_bar(progress: Progress) -> None:
    share = (progress.step + progress.diffusion_step / max(progress.diffusion_steps, 1)) / max(progress.steps, 1)
    bar = "#" * int(30 * min(share, 1.0))
    print(f"\r[{bar:30}] stage {progress.stage}/{progress.stages} step {progress.step}/{progress.steps}", end="",
          file=sys.stderr, flush=True)
    if progress.step == progress.steps:
        print(file=sys.stderr)


def _report(options: argparse.Namespace, facts: dict, text: str) -> None:
    print(json.dumps(facts) if options.json else text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gtr_core", description="Masked autoregressive image models with GtR.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, run, summary: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="report as JSON")
        return sub

    sub = verb("info", info, "what a model file holds")
    sub.add_argument("file")
    sub.add_argument("--weights", choices=("ema", "model"), help="default: ema of MAR, model of LightGen")

    sub = verb("convert", convert_file, "original .pth or .ckpt -> .safetensors; nothing in it is executed")
    sub.add_argument("source", metavar="IN")
    sub.add_argument("target", metavar="OUT")
    sub.add_argument("--weights", choices=("ema", "model"), help="default: ema of MAR, model of LightGen")
    sub.add_argument("--dtype", choices=tuple(DTYPES), help="of the transformer; the diffusion head stays float32")
    sub.add_argument("--heads", type=int, help="attention heads, for widths other than MAR-B, L and H")
    sub.add_argument("--overwrite", action="store_true")

    sub = verb("schedule", schedule, "the plan of a schedule")
    _schedule_options(sub)
    sub.add_argument("--grid", default="16x16", help="rows x columns of tokens")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--png", metavar="FILE", help="draw the plan")

    sub = verb("flops", count_flops, "TFLOPs per image, counted from the plan")
    _schedule_options(sub)
    sub.add_argument("--model", default="mar-h", help=f"{', '.join(VARIANTS.values())}, lightgen, demo or a file")
    sub.add_argument("--no-cfg", action="store_true", help="without guidance")

    sub = verb("generate", generate, "make pictures")
    _schedule_options(sub)
    sub.add_argument("--model", default="demo", help="a MAR file, or demo")
    sub.add_argument("--vae", help="the model's VAE file (not needed for demo)")
    sub.add_argument("--class", dest="classes", default="0", help="indices or names, separated by commas")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--batch", type=int, help="pictures (default: one per class)")
    sub.add_argument("--cfg", type=float, default=3.0)
    sub.add_argument("--cfg-schedule", choices=GUIDANCE_SCHEDULES, default="linear")
    sub.add_argument("--temperature", type=float, default=1.0)
    sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sub.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the transformer")
    sub.add_argument("-o", "--output", default="gtr.png")
    return parser


def _schedule_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--preset", choices=tuple(PRESETS), default="gtr-paper")
    sub.add_argument("--steps", help="custom GtR schedule: AR steps per stage, such as 24,6,2")
    sub.add_argument("--rates", help="or tokens per AR step of every stage, such as 2.67,10.67,64")
    sub.add_argument("--diffusion", help="diffusion steps: start, end, reconstruction, such as 50,20,20")
    sub.add_argument("--partition", choices=PARTITIONS)
    sub.add_argument("--scope", choices=SCOPES, help="mask tokens that the decoder sees (custom schedules: stage)")
    sub.add_argument("--fts", choices=(*SELECTIONS, "off"), default="high",
                     help="which tokens of a reconstruction step get the detail steps")
    sub.add_argument("--fts-fraction", type=float, default=0.1)
    sub.add_argument("--fts-steps", type=int, default=50)
