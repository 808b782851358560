"""``schedule`` and ``flops``: the plan of a method, and what it costs."""

from __future__ import annotations

from ..costs import flops, paper_table
from ..drawing.plan_figure import write_plan_figure
from ..errors import GtRError
from ..files import check_writable
from ..models import published_specs
from ..noise import image_seeds
from ..plans.method import Guidance
from ..plans.plan import ar_steps, make_plan
from .options import DEMO, Options, Parser, Verb, add_method_options, method_of, model_spec, numbers, print_report


def add_schedule_options(sub: Parser) -> None:
    add_method_options(sub)
    sub.add_argument("--grid", metavar="ROWSxCOLUMNS", default="16x16", help="of tokens")
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="of the orders that are random")
    sub.add_argument("--figure", metavar="FILE", help="draw the plan, as .png, .svg or .pdf")


def schedule(options: Options) -> None:
    """The plan of a method on a grid, as text, JSON or figure."""
    plan = make_plan(method_of(options, Guidance()), _grid(options.grid), image_seeds(options.seed, 1))
    if options.figure:
        check_writable(options.figure)
        write_plan_figure(options.figure, plan)
    lines = [
        f"{plan.schedule.name}, {plan.grid[0]} x {plan.grid[1]} tokens, {ar_steps(len(plan.steps))}, "
        f"{plan.schedule.decoder_scope} decoder scope"
    ]
    lines += [
        f"{step.index:4}  {'revised' if step.revision else f'stage {step.stage}'}  {step.tokens:4} tokens  "
        f"{step.diffusion_steps:4} diffusion steps"
        for step in plan.steps
    ]
    print_report(options, plan.to_dict(), "\n".join(lines + ([options.figure] if options.figure else [])))


def _grid(text: str) -> tuple[int, int]:
    values = numbers(text.lower().replace("x", ","), int)
    if len(values) != 2:
        raise GtRError(f"grid '{text}': expected rows x columns, such as 16x16")
    return values


def add_flops_options(sub: Parser) -> None:
    add_method_options(sub)
    sub.add_argument("--model", default=DEMO, help=f"{', '.join(published_specs())}, demo or a file")
    sub.add_argument("--no-cfg", action="store_true", help="without guidance")
    sub.add_argument("--all", action="store_true", help="every method beside the paper's printed numbers")


def count_flops(options: Options) -> None:
    """TFLOPs per image of a method and the ratio to the origin."""
    if options.all:
        table = paper_table.compare()
        return print_report(options, table, paper_table.markdown(table))
    guidance = Guidance(1.0 if options.no_cfg else 3.0)
    facts = flops.report(method_of(options, guidance), model_spec(options.model))
    parts = "  ".join(f"{part} {value:.3f}" for part, value in facts["tflops"].items())
    print_report(
        options,
        facts,
        f"{facts['model']} {facts['preset']}: {parts} TFLOPs per image (2 per multiply-add, "
        f"{'no ' if options.no_cfg else ''}guidance, no VAE); origin {facts['origin_total']:.3f}; "
        f"{facts['speedup']:.3f}x",
    )


SCHEDULE = Verb(
    "schedule",
    "the plan of a schedule",
    ("schedule --preset gtr-paper --figure plan.pdf", "schedule --preset gtr-extreme --steps 6,2,2 --json"),
    add_schedule_options,
    schedule,
)
FLOPS = Verb(
    "flops",
    "TFLOPs per image, counted from the plan",
    ("flops --model mar-h --preset gtr-paper", "flops --all"),
    add_flops_options,
    count_flops,
)
