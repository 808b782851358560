"""``bench``: measured latency and memory of presets, all in one run."""

from __future__ import annotations

from itertools import count

from ..checkpoints import load_model
from ..costs import bench
from ..device import DTYPES
from ..drawing.bars import bar_chart, check_chart, write_chart
from ..errors import GtRError
from ..files import check_writable
from ..models import ModelSpec, published_specs
from ..plans.method import Guidance, Method
from ..plans.presets import preset
from .options import (
    AUTO,
    DEFAULT_PRESET,
    DEMO,
    LARGEST_BATCH,
    Options,
    Parser,
    Verb,
    add_fts_options,
    add_revision_option,
    add_runtime_options,
    add_scale_option,
    check_device,
    dtype_of,
    fts_of,
    grid_of,
    model_file,
    model_spec,
    named,
    names,
    print_report,
)
from .progress import WorkProgress


def add_options(sub: Parser) -> None:
    sub.add_argument("--model", default=DEMO, help=f"{', '.join(published_specs())}, demo or a file")
    sub.add_argument(
        "--presets",
        metavar="NAME,NAME,...",
        default=f"origin,{DEFAULT_PRESET}",
        help="the others are compared with the first; also lazymar, and reference: the origin as the original code "
        "runs it; NAME:15-3 has these AR steps per stage, NAME+recap and NAME+lazymar have that cache, and NAME@dtype "
        "has a --dtype of its own",
    )
    sub.add_argument("--rounds", metavar="N", type=int, default=3, help="runs of every preset, which take turns")
    sub.add_argument("--figure", metavar="FILE", help="draw the seconds, as .png, .svg or .pdf")
    sub.add_argument("--batch", metavar="N", type=int, default=1, help="images at a time")
    sub.add_argument(
        "--size", metavar="WIDTHxHEIGHT", help="in pixels, of LightGen and Harmon (default: the model's own)"
    )
    add_scale_option(sub)
    add_runtime_options(sub)
    add_fts_options(sub)
    add_revision_option(sub)


def run(options: Options) -> None:
    """Latency and memory of presets in one interleaved run; random weights unless the model is a file."""
    check_device(options.device)
    if options.figure:
        check_writable(options.figure)
        check_chart(options.figure)
    spec = model_spec(options.model)
    cases = [_case(name, options, spec) for name in names(options.presets)]
    if not cases or options.rounds < 1 or not 1 <= options.batch <= LARGEST_BATCH:
        raise GtRError(f"nothing to measure: expected at least 1 preset, 1 round and a batch of 1 to {LARGEST_BATCH}")
    grid = grid_of(options.size, spec)
    setting = bench.Setting(options.batch, grid, options.device, options.acceleration == AUTO)
    models = {
        dtype: bench.random_model(spec, options.device, dtype)
        if options.model in published_specs()
        else load_model(model_file(options.model), device=options.device, dtype=dtype)
        for dtype in {case.dtype for case in cases}
    }
    runs = options.rounds * len(cases)
    with WorkProgress("runs") as progress:
        progress.begin(runs)
        done = count(1)
        result = {"command": options.command} | bench.bench(
            models,
            cases,
            setting,
            rounds=options.rounds,
            on_run=lambda name, index: progress.piece(f"{name}, round {index + 1}", next(done), runs),
        )
    if options.figure:
        bars = [
            (row["preset"], row["seconds"], f"{row['seconds']:.2f} s, {row['ratio']:.2f}×") for row in result["rows"]
        ]
        write_chart(options.figure, bar_chart(bars, f"{result['model']}: seconds per batch (median)"))
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    print_report(options, result, f"{result['model']}, batch {result['batch']}; {machine}\n\n{bench.markdown(result)}")


def _case(name: str, options: Options, spec: ModelSpec) -> bench.BenchCase:
    """A preset, in a dtype of its own where one follows an @."""
    preset_name, _, dtype = name.partition("@")
    if dtype and dtype not in DTYPES:
        raise GtRError(f"'{name}': expected one of {', '.join(DTYPES)} after the @")
    base = Method(preset(spec.origin), Guidance(options.cfg), fts_of(options), revise=options.revise)
    return bench.BenchCase(name, named(preset_name, base, spec), DTYPES[dtype] if dtype else dtype_of(options))


BENCH = Verb(
    "bench",
    "measured latency and memory of presets, all in one run",
    (
        "bench --presets origin,gtr-paper,gtr-extreme --figure seconds.svg",
        "bench --model mar-b --presets reference,gtr-paper,gtr-paper@bfloat16 --json",
    ),
    add_options,
    run,
)
