"""``eval``: quality of methods over many images, with intervals over seeds."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from ..costs.bench import describe_machine
from ..costs.flops import report
from ..demo import DEMO_JUDGE, DEMO_REFERENCE
from ..device import DTYPES
from ..drawing.bars import bar_chart, check_chart, write_chart
from ..errors import GtRError
from ..evaluation import tables
from ..evaluation.evaluate import Effort, Evaluation, Kept, OnTask, Task, evaluate
from ..evaluation.features import load_reference
from ..evaluation.fid import FidMeasures, read_statistics
from ..evaluation.files import EvaluationFiles
from ..evaluation.metrics import Interval
from ..files import check_writable
from ..models import ModelSpec
from ..plans.method import Method
from ..plans.presets import preset
from .options import (
    AUTO,
    DEMO,
    Options,
    Parser,
    Verb,
    add_fts_options,
    add_guidance_options,
    add_model_options,
    add_runtime_options,
    add_worker_options,
    check_device,
    fts_of,
    guidance_of,
    model_file,
    named,
    names,
    pool_of,
    print_report,
    vae_file,
)

DEFAULT, FIDELITY = "default", ("fid", "is")
NOTHING = (
    "nothing to judge with: give a classifier of the model's images with --extractor and real images measured by it "
    "with --reference, or use --metrics fid,is"
)


def add_options(sub: Parser) -> None:
    add_evaluation_options(sub)
    sub.add_argument("--presets", default="origin,step-16,gtr-full", help="the others are compared with the first")
    sub.add_argument("--images", type=int, default=300, help="per seed; classes take turns")
    sub.add_argument("--seeds", type=int, default=3, help="how many; intervals are over them")
    sub.add_argument("--first-seed", type=int, default=0)
    add_guidance_options(sub)
    sub.add_argument("--metrics", default=DEFAULT, help="default, or fid,is for real checkpoints (torch-fidelity)")
    sub.add_argument("--save-images", metavar="DIR", help="keep every image as PNG")
    sub.add_argument("--png", metavar="FILE", help="draw the first metric of every method, as .png, .svg or .pdf")
    add_fts_options(sub)


def add_evaluation_options(sub: Parser) -> None:
    """What is evaluated, by what, where intermediate results go, and who computes."""
    add_model_options(sub, "MAR")
    sub.add_argument("--batch", type=int, default=16)
    sub.add_argument("--extractor", metavar="FILE", help="the classifier that measures (fid,is: Inception's weights)")
    sub.add_argument("--reference", metavar="FILE", help="real images, measured (fid: an .npz with mu and sigma)")
    sub.add_argument("--work", metavar="DIR", default="eval_work", help="intermediate results; a rerun goes on there")
    add_runtime_options(sub, automatic=False)
    add_worker_options(sub)


def run(options: Options) -> None:
    """Make and measure images by every preset, and report figures and differences with their intervals."""
    check_device(options.device)
    if options.png:
        check_writable(options.png)
        check_chart(options.png)
    fid = None if options.metrics == DEFAULT else fid_measures(options)
    files = files_of(options, inception=fid is not None)
    evaluation = open_evaluation(options, files)
    measures = fid or measures_of(options, evaluation)
    base = Method(preset("origin"), guidance_of(options), fts_of(options), temperature=options.temperature)
    methods = [named(name, base, evaluation.model.spec) for name in names(options.presets)]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    image_folder = Path(options.save_images).resolve() if options.save_images else None
    features = evaluate(evaluation, methods, seeds, options.images, effort_of(options, files, image_folder))
    costs = {method.name: _cost(method, evaluation.model.spec) for method in methods}
    result = {
        "command": options.command,
        "model": evaluation.model.spec.name,
        "metrics": options.metrics,
        "images": options.images,
        "seeds": list(seeds),
        "interval": "95 % Student t over the seeds",
        "settings": {method.name: method.settings() for method in methods},
        "dtype": options.dtype,
        "acceleration": options.acceleration,
        "machine": describe_machine(options.device),
        "rows": tables.rows(features, seeds, measures, costs),
    } | measures.floor(seeds)
    if options.png:
        write_chart(options.png, _draw(result))
    note = f"\n\nno row of real images: {result['floor_missing']}" if "floor_missing" in result else ""
    print_report(
        options,
        result,
        f"{tables.markdown(result)}{note}\n\n{result['model']}, mean ± half of the 95 % interval over "
        f"{options.seeds} seeds of {options.images} images; speed-up in FLOPs against the origin",
    )


def files_of(options: Options, *, inception: bool = False) -> EvaluationFiles:
    """Raises GtRError when something to measure with is missing."""
    extractor = Path(options.extractor) if options.extractor else None
    if extractor is None and not inception:
        if options.model != DEMO:
            raise GtRError(NOTHING)
        extractor = DEMO_JUDGE
    return EvaluationFiles(
        model_file(options.model).resolve(),
        vae_file(options).resolve(),
        extractor and extractor.resolve(),
        inception,
        DTYPES[options.dtype],
        options.acceleration == AUTO,
    )


def open_evaluation(options: Options, files: EvaluationFiles) -> Evaluation:
    """On its device; where other workers compute, on the CPU: weights are then read for their identity only."""
    alone = pool_of(options).alone
    evaluation = files.open(options.device if alone else "cpu")
    return evaluation if alone else evaluation.for_device(options.device)


def effort_of(options: Options, files: EvaluationFiles, image_folder: Path | None = None) -> Effort:
    pool = pool_of(options)
    return Effort(
        Kept(Path(options.work).resolve(), image_folder),
        options.batch,
        pool=pool,
        open=None if pool.alone else files.open,
        on_task=progress(),
    )


def measures_of(options: Options, evaluation: Evaluation) -> tables.AgainstReal:
    """The project's own figures against real images."""
    reference = options.reference or (DEMO_REFERENCE if options.model == DEMO else None)
    if reference is None:
        raise GtRError(NOTHING)
    return tables.AgainstReal(load_reference(reference, evaluation.extractor), options.images)


def fid_measures(options: Options) -> FidMeasures:
    """FID and Inception Score."""
    wanted = tuple(name.strip() for name in options.metrics.split(","))
    if not set(wanted) <= set(FIDELITY):
        raise GtRError(f"metrics '{options.metrics}': expected default, fid, is or fid,is")
    if "fid" in wanted and not options.reference:
        raise GtRError(
            "fid needs the statistics of the real images: give an .npz with mu and sigma (such as "
            "adm_in256_stats.npz) with --reference"
        )
    return FidMeasures(read_statistics(options.reference) if "fid" in wanted else {}, wanted)


def _cost(method: Method, spec: ModelSpec) -> dict:
    facts = report(method, spec)
    return {"tflops": facts["tflops"]["total"], "speedup": facts["speedup"]}


def progress() -> OnTask:
    """A line on standard error per task."""
    return partial(_show, time.perf_counter())


def _show(started: float, task: Task, done: int, total: int) -> None:
    print(
        f"{done} of {total}: {task.method.name}, seed {task.seed}, images {task.start} to "
        f"{task.start + task.count - 1} ({time.perf_counter() - started:.0f} s)",
        file=sys.stderr,
        flush=True,
    )


def _draw(result: dict):
    rows = [*result["rows"], *([result["floor"]] if "floor" in result else [])]
    key = next(iter(rows[0]["figures"]))
    intervals = [Interval(**row["figures"][key]) for row in rows]
    return bar_chart(
        [(row["method"], interval.mean, str(interval)) for row, interval in zip(rows, intervals)],
        f"{result['model']}: {tables.FIGURES[key][0]}, {len(result['seeds'])} × {result['images']} images",
        [interval.half or 0.0 for interval in intervals],
    )


EVAL = Verb("eval", "quality of methods over many images, resumable", add_options, run)
