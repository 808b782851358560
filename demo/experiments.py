"""The experiments behind docs/quality.md: ``python -m demo.experiments NAME``.

Every experiment is a list of methods, evaluated on the demo model with the same labels and noise. A stopped run goes on
where it was. The result goes to ``docs/quality/NAME.json`` and a plot beside it; ``page`` writes docs/quality.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gtr_core.cli.options import check_device
from gtr_core.costs.bench import describe_machine
from gtr_core.costs.flops import report
from gtr_core.costs.paper_table import SPEEDS
from gtr_core.demo import DEMO_JUDGE, DEMO_MAR, DEMO_REFERENCE, DEMO_VAE
from gtr_core.drawing.bars import Line, line_chart, write_chart
from gtr_core.drawing.canvas import enlarge
from gtr_core.drawing.heatmap import StepCounts, overlay
from gtr_core.drawing.png import write_png
from gtr_core.errors import GtRError
from gtr_core.evaluation import tables
from gtr_core.evaluation.classifier import load_classifier
from gtr_core.evaluation.evaluate import Effort, Kept, Task, check_amount, evaluate
from gtr_core.evaluation.features import ImageFeatures, joined, load_reference
from gtr_core.evaluation.files import EvaluationFiles
from gtr_core.evaluation.metrics import frechet, interval
from gtr_core.jobs.workers import WorkerPool
from gtr_core.models.mar import MARSpec, mar_spec
from gtr_core.noise import image_seeds
from gtr_core.pipeline import decode_images, generate_latents
from gtr_core.plans.fts import FTS
from gtr_core.plans.method import Cache, Guidance, Method
from gtr_core.plans.partition import PARTITIONS
from gtr_core.plans.plan import make_plan
from gtr_core.plans.presets import PRESETS, preset
from gtr_core.plans.schedule import SCOPES, Schedule
from gtr_core.sampling.recap import ReCAP

from . import data, figures, misplaced, observations, quality_page, runs
from .models import REVISED

ROOT = Path(__file__).resolve().parents[1]
OUTPUT, WORK = ROOT / "docs" / "quality", ROOT / "demo" / "runs" / "quality"
# In bfloat16, in a third of the time; the observations below are exact.
FILES = EvaluationFiles(DEMO_MAR, DEMO_VAE, DEMO_JUDGE, dtype=torch.bfloat16, accelerate=True)
EXACT = replace(FILES, dtype=torch.float32, accelerate=False)
PAPER_SPEED = SPEEDS["gtr-paper"][2]


@dataclass(frozen=True)
class Experiment:
    """Methods to compare with the first, and the groups that share a line in the plot: (name, methods).

    ``cost`` is the model whose FLOPs count; by default the one that makes the images.
    """

    methods: tuple[Method, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    cost: MARSpec | None = None


def method(schedule: Schedule, fts: FTS | None = None, cache: Cache | None = None) -> Method:
    """Without guidance."""
    return Method(schedule, fts=fts, cache=cache)


def grouped(families: dict[str, list[Method]], cost: MARSpec | None = None) -> Experiment:
    """One line of the plot per family."""
    return Experiment(
        tuple(chosen for family in families.values() for chosen in family),
        tuple((name, tuple(chosen.name for chosen in family)) for name, family in families.items()),
        cost,
    )


def steps_of_origin(count: int) -> Schedule:
    return Schedule(f"random-{count}", "random", (count,), diffusion=(100, 100, 100))


def gate() -> Experiment:
    """Can the model tell 64 steps from 18 and 8? Without that it cannot judge a method."""
    return Experiment(tuple(method(s) for s in (preset("origin"), steps_of_origin(18), steps_of_origin(8))))


def orders() -> Experiment:
    """18 AR steps of 50 diffusion steps each, and nothing but the order different."""
    even = {"diffusion": (50, 50, 50)}
    single = [Schedule(order, order, (18,), **even) for order in ("random", "raster", "subsample", "halton")]
    diagonal = [
        Schedule(f"gtr diagonal, {len(steps)} stages", "gtr", steps, **even)
        for steps in ((15, 3), (10, 6, 2), (10, 4, 2, 2), (8, 3, 3, 2, 2))
    ]
    quincunx = [
        Schedule(f"gtr quincunx, {len(steps)} stages", "gtr", steps, partition="quincunx", **even)
        for steps in ((10, 6, 2), (8, 3, 3, 2, 2))
    ]
    return Experiment(tuple(map(method, single + diagonal + quincunx)))


def longer_orders() -> Experiment:
    """The same with 32 AR steps."""
    even = {"diffusion": (50, 50, 50)}
    single = [Schedule(order, order, (32,), **even) for order in ("random", "halton")]
    staged = [
        Schedule(f"gtr {partition}, {len(steps)} stages", "gtr", steps, partition=partition, **even)
        for steps in ((24, 6, 2), (16, 8, 4, 2, 2))
        for partition in PARTITIONS
    ]
    return Experiment(tuple(map(method, single + staged)))


def budgets() -> Experiment:
    """Quality against FLOPs: one line per family of methods. LazyMAR needs guidance, which is off here."""
    short = Schedule("gtr 5,2,1 short chains stage", "gtr", (5, 2, 1), decoder_scope="stage", diffusion=(25, 15, 10))
    staged = {
        scope: [
            method(Schedule(f"gtr {','.join(map(str, steps))} {scope}", "gtr", steps, decoder_scope=scope))
            for steps in ((24, 6, 2), (10, 6, 2), (8, 3, 2), (5, 2, 1))
        ]
        for scope in SCOPES
    }
    one, two = (ReCAP(start_step=4, local_steps=local) for local in (1, 2))
    local = [
        method(Schedule("gtr 30,18,6 full ReCAP 2", "gtr", (30, 18, 6)), cache=two),
        method(Schedule("gtr 20,12,4 full ReCAP 1", "gtr", (20, 12, 4)), cache=one),
        method(Schedule("gtr 24,6,2 stage ReCAP 1", "gtr", (24, 6, 2), decoder_scope="stage"), cache=one),
        method(Schedule("gtr 12,3,1 full ReCAP 1", "gtr", (12, 3, 1)), cache=one),
    ]
    return grouped(
        {
            "fewer AR steps": list(map(method, (preset("origin"), *map(steps_of_origin, (32, 16, 8))))),
            "Halton": [method(preset(name)) for name in ("halton-16", "halton-8")],
            "DiSA": [method(preset(name)) for name in ("disa-24", "disa-16")],
            "GtR, full scope": staged["full"],
            "GtR, stage scope": [*staged["stage"], method(short)],
            "GtR with ReCAP": local,
            "GtR, five stages": [method(preset(name)) for name in ("gtr-best-4x", "gtr-best-6x")],
        }
    )


def defaults() -> Experiment:
    """gtr-full's AR and diffusion steps, by partition and decoder scope: which should be the default?"""
    return Experiment(
        tuple(
            method(Schedule(f"{partition}, {scope}", "gtr", (10, 6, 2), partition=partition, decoder_scope=scope))
            for partition in PARTITIONS
            for scope in SCOPES
        )
    )


def fts() -> Experiment:
    """FTS on a schedule whose reconstruction is short enough to need it: 8 diffusion steps."""
    base = Schedule("off", "gtr", (10, 6, 2), diffusion=(50, 20, 8))
    chosen = [FTS(0.1, 50, selection) for selection in ("high", "low", "random", "all")]
    chosen += [FTS(fraction, steps) for fraction, steps in ((0.25, 50), (0.5, 50), (0.1, 100))]
    named = [(replace(base, name=f"{f.selection} {f.fraction:g}, {f.detail_steps} steps"), f) for f in chosen]
    return Experiment((method(base), *(method(*pair) for pair in named)))


def guidance() -> Experiment:
    """gtr-full without guidance, and with it from different parts of the image on."""
    chosen = (Guidance(), Guidance(2.0), Guidance(2.0, start=0.25), Guidance(2.0, start=0.5), Guidance(2.0, "constant"))
    return Experiment(tuple(Method(replace(preset("gtr-full"), name=_guided_name(g)), g) for g in chosen))


def best() -> Experiment:
    """The presets that the search found, beside the paper's and the origin; for seeds that the search did not see."""
    families = {
        "MAR's own": ("origin",),
        "after the paper": ("gtr-paper", "gtr-full", "gtr-extreme"),
        "found by the search": ("gtr-best-4x", "gtr-best-6x"),
    }
    chosen = {family: [method(preset(name)) for name in names] for family, names in families.items()}
    return grouped(chosen, mar_spec("mar-h"))


def revision() -> Experiment:
    """The first tokens drawn again or not, after MAR's own schedule and after two of GtR."""
    shares = {"origin": (0.0, REVISED), "gtr-paper": (0.0, 0.125, REVISED), "gtr-extreme": (0.0, REVISED)}
    chosen = [Method(preset(name), revise=share) for name, found in shares.items() for share in found]
    return Experiment(tuple(own.renamed(revised_name(own)) for own in chosen))


def revised_name(own: Method) -> str:
    return f"{own.name}{quality_page.AGAIN}{own.revise:g}" if own.revise else own.name


def _guided_name(chosen: Guidance) -> str:
    begin = f" from {chosen.start:g} on" if chosen.start else ""
    return f"cfg {chosen.scale:g} {chosen.schedule}{begin}" if chosen.enabled else "no guidance"


EXPERIMENTS = {
    "gate": gate,
    "orders": orders,
    "orders-32": longer_orders,
    "budgets": budgets,
    "defaults": defaults,
    "fts": fts,
    "guidance": guidance,
    "revision": revision,
    "best": best,
}


def run(name: str, images: int, seeds: Sequence[int], batch: int, pool: WorkerPool = WorkerPool()) -> dict:
    """Evaluate an experiment's methods; the rows of :mod:`gtr_core.evaluation.tables` as plain data."""
    experiment, evaluation = EXPERIMENTS[name](), FILES.open(pool.device)
    reference = load_reference(DEMO_REFERENCE, evaluation.extractor)
    measures = tables.AgainstReal(reference, images)
    effort = Effort(Kept(WORK), batch, pool=pool, open=None if pool.alone else FILES.open, on_task=_tell)
    measured = evaluate(evaluation, experiment.methods, seeds, images, effort)
    facts = {
        own.name: {"speedup": report(own, experiment.cost or evaluation.model.spec)["speedup"]}
        for own in experiment.methods
    }
    first = measured[experiment.methods[0].name]
    return {
        "experiment": name,
        "command": command(name, images, seeds, pool.device),
        "machine": describe_machine(pool.device)["name"],
        "images": images,
        "seeds": list(seeds),
        "together": together(first, reference) if name == "gate" else None,
        "rows": tables.rows(measured, seeds, measures, facts),
        **measures.floor(seeds),
        "groups": {group: list(names) for group, names in experiment.groups},
    }


def together(made: Sequence[ImageFeatures], reference: ImageFeatures) -> dict:
    """Frechet distances of all seeds' images at once, and of as many real ones: both fall with the number."""
    everything = joined(list(made))
    ((real, others),) = tables.floor_sets(reference, len(everything), [0])
    return {
        "images": len(everything),
        "frechet": frechet(everything.features, reference.features),
        "floor": frechet(real.features, others.features),
    }


def command(name: str, images: int, seeds: Sequence[int], device: str) -> str:
    first = f" --first-seed {seeds[0]}" if seeds[0] else ""
    where = "" if device == "cpu" else f" --device {device}"
    return f"python -m demo.experiments {name} --images {images} --seeds {len(seeds)}{first}{where}"


def plot(result: dict) -> None:
    """Frechet distance with intervals, against the speed-up."""
    rows = {row["method"]: row for row in result["rows"]}
    groups = result["groups"] or {name: [name] for name in rows}
    points = {
        group: [point(rows[name], name if result["groups"] else "") for name in names]
        for group, names in groups.items()
    }
    draw = figures.panels if result["groups"] else figures.error_bars
    figure = draw(
        points,
        x_label="FLOPs of the origin / FLOPs",
        y_label="Fréchet distance, mean and 95 % interval",
        mark=figures.Mark(f"paper: {PAPER_SPEED}×", PAPER_SPEED),
    )
    write_chart(OUTPUT / f"{result['experiment']}.png", figure)


def point(row: dict, label: str) -> figures.Point:
    figure = row["figures"]["frechet"]
    half = figure["half"] or 0.0
    return figures.Point(
        row["speedup"],
        figure["mean"],
        figure["mean"] - half,
        figure["mean"] + half,
        label.removeprefix("gtr ").removesuffix(" full").removesuffix(" stage"),
    )


def observe(count: int, redraws: int) -> dict:
    """The two observations: change by distance from a decoded token, and spread of redrawn halves."""
    evaluation = EXACT.open("cpu")
    model, vae = evaluation.model, evaluation.vae
    real = observations.real_tokens(model, vae, count, 11)
    result = {
        "experiment": "observations",
        "images": count,
        "redraws": redraws,
        "change": {},
        "spread": {},
        "command": f"python -m demo.experiments observations --images {count} --redraws {redraws}",
    }
    for known in (32, 96):
        found = observations.neighbour_change(model, real, known, 12)
        result["change"][known] = {
            distance: vars(interval(values)) for distance, values in sorted(found.items()) if len(values) > 1
        }
    sheets, spreads = [], {}
    for shape in ("checkerboard", "upper half"):
        spreads[shape], drawn = observations.spread_of_seeds(model, vae, real, shape, redraws, 13)
        result["spread"][shape] = vars(interval(spreads[shape]))
        sheets.append(drawn[:4].transpose(0, 1)[:7].flatten(0, 1))
    ratio = [upper / max(board, 1e-6) for board, upper in zip(*spreads.values())]
    result["ratio"] = vars(interval(ratio))
    sheet = figures.grid(
        torch.cat([s.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1) for s in sheets]), min(7, redraws)
    )
    runs.replace_file(OUTPUT / "observations.png", lambda part: sheet.quantize(256).save(part, "PNG", optimize=True))
    return result


@torch.no_grad()
def misplace(count: int, seeds: int) -> dict:
    """How many tokens do not fit their image, and how much was known when they were first drawn: original and GtR,
    without a revision and with one."""
    evaluation, judge = FILES.open("cpu"), load_classifier(DEMO_JUDGE)
    model, vae = evaluation.model, evaluation.vae
    labels, methods = torch.arange(count) % model.spec.classes, {}

    def misfitting(latents: Tensor) -> Tensor:
        images = torch.cat([vae.decode(latent[None]).clamp(-1, 1) for latent in latents])
        return misplaced.misfits(images, judge) > misplaced.LIMIT

    for own in (Method(preset(name), revise=share) for name in ("origin", "gtr-paper") for share in (0.0, REVISED)):
        found = []
        for first in range(0, seeds * count, count):
            plan = make_plan(own, model.spec.grid, image_seeds(first, count)).without_revision()
            latents = generate_latents(model, own, labels, first, runtime=evaluation.runtime)
            found.append(misplaced.by_known(misfitting(latents), plan))
        methods[revised_name(own)] = {
            "per_image": vars(interval([float(one.per_image.float().mean()) for one in found])),
            "clean": vars(interval([float((one.per_image == 0).float().mean()) for one in found])),
            "steps": [
                {
                    "known_below": limit,
                    "tokens_per_image": found[0].drawn[k] / count,
                    "share": vars(interval([one.misplaced[k] / one.drawn[k] for one in found])),
                }
                for k, limit in enumerate(misplaced.CLASSES)
                if found[0].drawn[k]
            ],
        }
    real, _ = data.images(labels, runs.step_generator(14, 0))
    encoded = torch.cat([vae.encode(image[None]) for image in real])
    return {
        "experiment": "misplaced",
        "images": count,
        "seeds": seeds,
        "limit": misplaced.LIMIT,
        "real_per_image": float(misfitting(encoded).sum(1).float().mean()),
        "methods": methods,
        "command": f"python -m demo.experiments misplaced --images {count} --seeds {seeds}",
    }


def plot_misplaced(result: dict) -> None:
    """Per cent misplaced over known tokens, one line per method without revision; shares of 0 are left out."""
    lines = [
        Line(
            name,
            [
                (step["known_below"], 100 * step["share"]["mean"])
                for step in found["steps"]
                if step["share"]["mean"] > 0
            ],
        )
        for name, found in result["methods"].items()
        if name in PRESETS
    ]
    write_chart(OUTPUT / "misplaced.png", line_chart(lines, "known tokens, fewer than", "% misplaced"))


def heat(count: int) -> np.ndarray:
    """Where FTS spends its extra diffusion steps: images of the first classes with their heat maps below them."""
    evaluation, own, spent = EXACT.open("cpu"), fts().methods[1], []
    model = evaluation.model
    plan = make_plan(own, model.spec.grid, image_seeds(0, count))
    latents = generate_latents(
        model, own, range(count), 0, callback=lambda progress: spent.append(progress.spent.clone())
    )
    extra = StepCounts.between(spent[-1].numpy(), plan.scheduled_steps(), plan.grid).extra
    return np.concatenate(
        [
            np.concatenate([enlarge(image, 3), overlay(image, values, values.max())])
            for image, values in zip(decode_images(evaluation.vae, latents), extra)
        ],
        axis=1,
    )


def _tell(task: Task, done: int, total: int) -> None:
    print(f"{done} of {total}: {task.method.name}, seed {task.seed}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*EXPERIMENTS, "observations", "misplaced", "heat", "page"))
    parser.add_argument("--images", type=int, default=300, help="images per method and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--redraws", type=int, default=7)
    parser.add_argument("--workers", type=int, help="processes of one thread each; default: this one alone")
    parser.add_argument("--device", default="cpu", help="of the experiments with a table")
    options = parser.parse_args()
    try:
        conduct(options)
    except GtRError as error:
        parser.error(str(error))


def conduct(options: argparse.Namespace) -> None:
    """Run what was asked for, and write its files. Raises GtRError for options that cannot be used."""
    check_device(options.device)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    check_amount(options.images, seeds)
    torch.set_num_threads(1)
    if options.what in ("observations", "misplaced", "heat") and (options.device != "cpu" or options.first_seed):
        raise GtRError(f"{options.what} runs on the CPU and from seed 0: leave out --device and --first-seed")
    if options.what == "page":
        return quality_page.write_page(OUTPUT, ROOT / "docs" / "quality.md")
    if options.what == "heat":
        return write_png(OUTPUT / "heat.png", heat(6))
    if options.what == "observations":
        result = observe(options.images, options.redraws)
    elif options.what == "misplaced":
        result = misplace(options.images, options.seeds)
        plot_misplaced(result)
    else:
        pool = WorkerPool(workers=options.workers, device=options.device)
        result = run(options.what, options.images, seeds, options.batch, pool)
        plot(result)
        print(tables.markdown(result))
    runs.replace_file(OUTPUT / f"{options.what}.json", lambda part: part.write_text(json.dumps(result, indent=1)))


if __name__ == "__main__":
    main()
