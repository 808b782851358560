"""What each verb of the command line does: options in, a report out."""

from __future__ import annotations

import argparse

from ..costs import flops
from ..costs import paper_table as paper
from ..drawing.plan_figure import plan_figure
from ..drawing.png import write_png
from ..errors import GtRError
from ..noise import image_seeds
from ..plans.plan import make_plan
from .options import cache_of, fts_of, model_spec, numbers, print_report, schedule_of


def schedule(options: argparse.Namespace) -> None:
    """The plan of a schedule on a grid, as text, JSON or figure."""
    plan = make_plan(schedule_of(options), _grid(options.grid), image_seeds(options.seed, 1))
    if options.png:
        write_png(options.png, plan_figure(plan, fts_of(options)))
    lines = [
        f"{index:4}  stage {step.stage}  {step.tokens:4} tokens  {step.diffusion_steps:4} diffusion steps"
        for index, step in enumerate(plan.steps)
    ]
    print_report(options, plan.to_dict(), "\n".join(lines + ([options.png] if options.png else [])))


def count_flops(options: argparse.Namespace) -> None:
    """TFLOPs per image of a schedule and the ratio to the origin."""
    if options.all:
        table = paper.compare()
        return print_report(options, table, paper.markdown(table))
    facts = flops.report(
        schedule_of(options),
        model_spec(options.model),
        guided=not options.no_cfg,
        fts=fts_of(options),
        cache=cache_of(options),
    )
    parts = "  ".join(f"{part} {value:.3f}" for part, value in facts["tflops"].items())
    print_report(
        options,
        facts,
        f"{facts['model']} {facts['preset']}: {parts} TFLOPs per image (2 per multiply-add, "
        f"{'no ' if options.no_cfg else ''}guidance, no VAE); origin {facts['origin_total']:.3f}; "
        f"{facts['speedup']:.3f}x",
    )


def _grid(text: str) -> tuple[int, int]:
    values = numbers(text.lower().replace("x", ","), int)
    if len(values) != 2:
        raise GtRError(f"grid '{text}': expected rows x columns, such as 16x16")
    return values
