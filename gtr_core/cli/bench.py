"""What each verb of the command line does: options in, a report out."""

from __future__ import annotations

import argparse
import sys

from ..checkpoints import build_model
from ..checkpoints.checkpoint import DTYPES
from ..costs import bench
from ..drawing.bars import bar_chart, check_chart, write_chart
from ..errors import GtRError
from ..models import ModelSpec
from ..models.lightgen import LIGHTGEN
from ..models.mar import VARIANTS
from ..plans.method import Guidance
from .options import (
    AUTO,
    LARGEST_BATCH,
    _names,
    check_device,
    dtype_of,
    fts_of,
    grid_of,
    model_file,
    model_spec,
    named_method,
    print_report,
)


def run_bench(options: argparse.Namespace) -> None:
    """Latency and memory of presets in one interleaved run; random weights unless the model is a file."""
    check_device(options.device)
    if options.png:
        check_chart(options.png)
    spec = model_spec(options.model)
    contenders = [_contender(name, options, spec) for name in _names(options.presets)]
    if not contenders or options.rounds < 1 or not 1 <= options.batch <= LARGEST_BATCH:
        raise GtRError(f"nothing to measure: expected at least 1 preset, 1 round and a batch of 1 to {LARGEST_BATCH}")
    grid = grid_of(options.size, spec) if options.size else None
    setting = bench.Setting(
        options.batch, grid, options.device, Guidance(options.cfg), fts_of(options), options.acceleration == AUTO
    )
    known = {*VARIANTS.values(), LIGHTGEN.name}
    models = {
        dtype: bench.random_model(spec, options.device, dtype)
        if options.model in known
        else build_model(model_file(options.model), device=options.device, dtype=dtype)
        for dtype in {contender.dtype for contender in contenders}
    }
    result = bench.bench(
        models,
        contenders,
        setting,
        rounds=options.rounds,
        on_run=lambda name, index: print(f"round {index + 1} of {options.rounds}: {name}", file=sys.stderr),
    )
    if options.png:
        write_chart(
            options.png,
            bar_chart(
                [
                    (row["preset"], row["seconds"], f"{row['seconds']:.2f} s, {row['ratio']:.2f}×")
                    for row in result["rows"]
                ],
                f"{result['model']}: seconds per batch (median)",
            ),
        )
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    print_report(options, result, f"{result['model']}, batch {result['batch']}; {machine}\n\n" + bench.markdown(result))


def _contender(name: str, options: argparse.Namespace, spec: ModelSpec) -> bench.Contender:
    """A preset, in a dtype of its own where one follows an @."""
    preset_name, _, dtype = name.partition("@")
    if dtype and dtype not in DTYPES:
        raise GtRError(f"'{name}': expected one of {', '.join(DTYPES)} after the @")
    return bench.Contender(name, *named_method(preset_name, spec), DTYPES[dtype] if dtype else dtype_of(options))
