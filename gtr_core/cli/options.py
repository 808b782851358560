"""What each verb of the command line does: options in, a report out."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoints.checkpoint import DTYPES, load_model, read_checkpoint
from ..costs import bench, flops
from ..demo import DEMO_MAR
from ..device import best_dtype
from ..errors import GtRError
from ..jobs.workers import ENGINES, Engine
from ..models import ModelSpec
from ..models.lightgen import LIGHTGEN
from ..models.mar import VARIANTS, mar_spec
from ..plans.fts import FTS
from ..plans.method import GUIDANCE_SCHEDULES, Guidance
from ..plans.presets import preset
from ..plans.schedule import Schedule
from ..sampling.lazymar import LazyMAR
from ..sampling.reference import Reference

LAZYMAR, REFERENCE, AUTO = "lazymar", "reference", "auto"


LARGEST_BATCH = 4096


DEVICES = ("cpu", "cuda", "mps", "xpu")


def check_device(device: str) -> None:
    try:
        usable = torch.empty(0, device=device).device.type in DEVICES
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise GtRError(f"device '{device}' cannot be used here: expected cpu or an available accelerator")


def dtype_of(options: argparse.Namespace) -> torch.dtype:
    """The transformer's."""
    return best_dtype(options.device) if options.dtype == AUTO else DTYPES[options.dtype]


def grid_of(text: str, spec: ModelSpec) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels -> the token grid."""
    values, pixels = numbers(text.lower().replace("x", ","), int), spec.latent.stride * spec.latent.patch
    if len(values) != 2 or any(value < 1 or value % pixels for value in values):
        raise GtRError(f"size '{text}': expected width x height in multiples of {pixels}, such as 512x512")
    return values[1] // pixels, values[0] // pixels


def schedule_of(options: argparse.Namespace) -> Schedule:
    """The preset with the given changes, or a custom GtR schedule when --steps or --rates are given."""
    changes = {
        "diffusion": numbers(options.diffusion, int),
        "partition": options.partition,
        "decoder_scope": options.scope,
    }
    changes = {key: value for key, value in changes.items() if value}
    if options.order != "gtr":
        steps = numbers(options.steps, int) or preset("origin").steps
        return Schedule(f"{options.order}-{steps[0]}", options.order, steps, **{"diffusion": (100, 100, 100)} | changes)
    if options.steps or options.rates:
        return Schedule(
            "custom",
            "gtr",
            steps=numbers(options.steps, int),
            rates=numbers(options.rates, float),
            **{"decoder_scope": "stage"} | changes,
        )
    chosen, _ = named_method(options.preset)
    return replace(chosen, name=f"{chosen.name} (changed)", **changes) if changes else chosen


def numbers(text: str | None, kind: type) -> tuple:
    """A list such as 24,6,2; empty for none."""
    try:
        return tuple(kind(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise GtRError(f"'{text}' is not a list of numbers such as 24,6,2") from error


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


def print_report(options: argparse.Namespace, facts: dict, text: str) -> None:
    print(json.dumps(facts) if options.json else text)
