"""The ``eval`` verb: quality of methods, with intervals over seeds."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..checkpoints import build_model, build_vae
from ..checkpoints.checkpoint import DTYPES
from ..costs.bench import describe_machine
from ..costs.flops import method_report
from ..demo import DEMO_JUDGE, DEMO_REFERENCE, DEMO_VAE
from ..drawing.bars import bar_chart, check_chart, write_chart
from ..errors import GtRError
from ..evaluation import fid as fidelity
from ..evaluation import tables as quality
from ..evaluation.classifier import load_extractor
from ..evaluation.evaluate import OnShard, PictureJudge, Studio, Task, evaluate, make_shard
from ..evaluation.features import Judge, Measured, load_reference
from ..evaluation.metrics import Interval
from ..jobs.workers import Engine, Worker
from ..plans.method import Method
from .options import (
    AUTO,
    add_engine_options,
    add_guidance_options,
    check_device,
    engine_of,
    fts_of,
    guidance_of,
    model_file,
    named_methods,
    print_report,
)

DEFAULT, FIDELITY = "default", ("fid", "is")


NOTHING = (
    "nothing to judge with: give a classifier of the model's pictures with --extractor and real pictures "
    "measured by it with --reference, or use --metrics fid,is"
)


Measure = Callable[[Measured, int], quality.Figures]


Floor = Callable[[range], dict]


Judged = tuple[PictureJudge, Measure, Floor]


def add_options(sub: argparse.ArgumentParser) -> None:
    """The verb's own options; those of FTS are common to all verbs."""
    add_judge_options(sub)
    sub.add_argument("--presets", default="origin,step-16,gtr-full", help="the others are compared with the first")
    sub.add_argument("--images", type=int, default=300, help="per seed; classes take turns")
    sub.add_argument("--seeds", type=int, default=3, help="how many; intervals are over them")
    sub.add_argument("--first-seed", type=int, default=0)
    add_guidance_options(sub)
    add_engine_options(sub)
    sub.add_argument("--temperature", type=float, default=1.0)
    sub.add_argument("--metrics", default=DEFAULT, help="default, or fid,is for real checkpoints (torch-fidelity)")
    sub.add_argument("--pictures", metavar="DIR", help="keep every picture as PNG")
    sub.add_argument("--png", metavar="FILE", help="draw the first metric of every method, as .png, .svg or .pdf")


def add_judge_options(sub: argparse.ArgumentParser) -> None:
    """What is judged, by what, and where intermediate results go."""
    sub.add_argument("--model", default="demo", help="a MAR file, or demo")
    sub.add_argument("--vae", help="the model's VAE file (not needed for demo)")
    sub.add_argument("--batch", type=int, default=16)
    sub.add_argument("--extractor", metavar="FILE", help="the classifier that judges (fid,is: Inception's weights)")
    sub.add_argument("--reference", metavar="FILE", help="real pictures, measured (fid: an .npz with mu and sigma)")
    sub.add_argument("--work", metavar="DIR", default="eval_work", help="intermediate results; a rerun goes on there")
    sub.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sub.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the transformer")
    sub.add_argument(
        "--acceleration",
        choices=(AUTO, "off"),
        default="off",
        help="auto: faster; what it does depends on the machine, and rounding with it",
    )


def evaluate_methods(options: argparse.Namespace) -> None:
    """Make and measure pictures by every preset, and report figures and differences with their intervals."""
    check_device(options.device)
    if options.png:
        if not Path(options.png).parent.is_dir():
            raise GtRError(f"no folder {Path(options.png).parent}: make it, or choose another")
        check_chart(options.png)
    judge_of, judged = (own_judge, default_judge) if options.metrics == DEFAULT else (_fidelity_judge, _fidelity)
    engine, studio, measure, floor = prepare(options, judged)
    methods = [
        Method(schedule, guidance_of(options), fts_of(options), cache, options.temperature)
        for schedule, cache in named_methods(options.presets, studio.model.spec)
    ]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    work, pictures = Path(options.work).resolve(), Path(options.pictures).resolve() if options.pictures else None
    make_worker = None if engine.alone else partial(studio_worker, judge_of, options, work, pictures)
    measured = evaluate(
        studio,
        methods,
        seeds,
        options.images,
        work,
        batch=options.batch,
        pictures=pictures,
        on_shard=progress(),
        engine=engine,
        make_worker=make_worker,
    )
    rows = quality.rows(measured, seeds, measure, {method.name: _cost(method, studio) for method in methods})
    result = {
        "command": options.command,
        "model": studio.model.spec.name,
        "metrics": options.metrics,
        "images": options.images,
        "seeds": list(seeds),
        "interval": "95 % Student t over the seeds",
        "settings": {method.name: method.settings() for method in methods},
        "dtype": options.dtype,
        "acceleration": options.acceleration,
        "machine": describe_machine(options.device),
        "rows": rows,
    } | floor(seeds)
    if options.png:
        write_chart(options.png, _draw(result))
    note = f"\n\nno row of real pictures: {result['floor_missing']}" if "floor_missing" in result else ""
    print_report(
        options,
        result,
        f"{quality.markdown(result)}{note}\n\n{result['model']}, mean ± half of the 95 % "
        f"interval over {options.seeds} seeds of {options.images} pictures; speed-up in "
        "FLOPs against the origin",
    )


def prepare(
    options: argparse.Namespace, judged: Callable[[argparse.Namespace], Judged]
) -> tuple[Engine, Studio, Measure, Floor]:
    """The engine, the studio, what measures its pictures, and the row of real ones."""
    engine = engine_of(options)
    here = options if engine.alone else on_device(options, "cpu")  # weights are read for their identity only
    judge, measure, floor = judged(here)
    return engine, replace(make_studio(here, judge), device=options.device), measure, floor


def studio_worker(
    make_judge: Callable[[argparse.Namespace], PictureJudge],
    options: argparse.Namespace,
    work: Path,
    pictures: Path | None,
    device: str,
) -> Worker:
    """A studio of its own for a worker elsewhere."""
    own = on_device(options, device)
    return partial(make_shard, make_studio(own, make_judge(own)), work, options.batch, pictures)


def on_device(options: argparse.Namespace, device: str) -> argparse.Namespace:
    return argparse.Namespace(**vars(options) | {"device": device})


def default_judge(options: argparse.Namespace) -> Judged:
    """The judge with the project's own figures, and the row of real pictures."""
    judge, reference = own_judge(options), options.reference or (DEMO_REFERENCE if options.model == "demo" else None)
    if reference is None:
        raise GtRError(NOTHING)
    real = load_reference(reference, judge)

    def measure(made: Measured, seed: int) -> quality.Figures:
        return quality.figures(made, real, seed)

    def floor(seeds: range) -> dict:
        try:
            pairs = list(quality.floor_sets(real, options.images, seeds))
        except GtRError as error:
            return {"floor_missing": str(error)}
        values = [quality.figures(made, others, seed) for (made, others), seed in zip(pairs, seeds)]
        return {"floor": quality.row(quality.FLOOR, options.images, values)}

    real.balanced(options.images, 0)  # refuses more images than the reference can be compared with
    return judge, measure, floor


def own_judge(options: argparse.Namespace) -> Judge:
    path = options.extractor or (DEMO_JUDGE if options.model == "demo" else None)
    if path is None:
        raise GtRError(NOTHING)
    return Judge(load_extractor(path, device=options.device))


def _fidelity_judge(options: argparse.Namespace) -> fidelity.InceptionJudge:
    return fidelity.inception_judge(options.extractor, device=options.device)


def _fidelity(options: argparse.Namespace) -> Judged:
    """The judge with FID and Inception Score."""
    wanted = tuple(name.strip() for name in options.metrics.split(","))
    if not set(wanted) <= set(FIDELITY):
        raise GtRError(f"metrics '{options.metrics}': expected default, fid, is or fid,is")
    if "fid" in wanted and not options.reference:
        raise GtRError(
            "fid needs the statistics of the real pictures: give an .npz with mu and sigma (such as "
            "adm_in256_stats.npz) with --reference"
        )
    judge = _fidelity_judge(options)
    statistics = fidelity.read_statistics(options.reference) if "fid" in wanted else {}
    return judge, lambda made, _: fidelity.fid_figures(made, statistics, wanted), lambda _: {}


def make_studio(options: argparse.Namespace, judge: PictureJudge) -> Studio:
    if options.model != "demo" and not options.vae:
        raise GtRError("no VAE: give the model's VAE file with --vae (kl16 for the published MAR models)")
    model = build_model(model_file(options.model), device=options.device, dtype=DTYPES[options.dtype])
    vae = build_vae(options.vae or DEMO_VAE, device=options.device)
    return Studio(model, vae, judge, options.device, DTYPES[options.dtype], options.acceleration == AUTO)


def _cost(method: Method, studio: Studio) -> dict:
    report = method_report(method, studio.model.spec)
    return {"tflops": report["tflops"]["total"], "speedup": report["speedup"]}


def progress() -> OnShard:
    started = time.perf_counter()

    def show(task: Task, done: int, total: int) -> None:
        print(
            f"{done} of {total}: {task.method.name}, seed {task.seed}, pictures {task.start} to "
            f"{task.start + task.count - 1} ({time.perf_counter() - started:.0f} s)",
            file=sys.stderr,
            flush=True,
        )

    return show


def _draw(result: dict):
    rows = [*result["rows"], *([result["floor"]] if "floor" in result else [])]
    key = next(iter(rows[0]["figures"]))
    found = [Interval(**row["figures"][key]) for row in rows]
    return bar_chart(
        [(row["method"], interval.mean, str(interval)) for row, interval in zip(rows, found)],
        f"{result['model']}: {quality.FIGURES[key][0]}, {len(result['seeds'])} × {result['images']} images",
        [interval.half or 0.0 for interval in found],
    )
