"""The ``search`` verb: the best schedule at a cost, chosen on some seeds and verified on others."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ..evaluation import tables as quality
from ..evaluation.evaluate import evaluate
from ..evaluation.search import Budget, Space, candidates, search
from ..plans.method import GUIDANCE_SCHEDULES, Guidance, Method
from .evaluate import add_judge_options, default_judge, own_judge, prepare, progress, studio_worker
from .options import add_engine_options, check_device, model_spec, named_methods, numbers, print_report


def add_options(sub: argparse.ArgumentParser) -> None:
    add_judge_options(sub)
    add_engine_options(sub)
    sub.add_argument("--target", type=float, default=4.0, help="how many times fewer FLOPs than the origin")
    sub.add_argument("--cost", default="mar-h", help="the model whose FLOPs count: mar-b, mar-l, mar-h, demo or a file")
    sub.add_argument("--against", default="gtr-paper", help="presets that the winner is compared with")
    sub.add_argument("--candidates", type=int, default=18)
    sub.add_argument("--guidance", default="1", help="guidance scales to choose from, such as 1,2,3")
    sub.add_argument("--guidance-starts", default="0", help="where it may begin, in parts of the tokens: 0,0.25,0.5")
    sub.add_argument("--images", type=int, default=128, help="per seed in the first round; later rounds have more")
    sub.add_argument("--seeds", type=int, default=2, help="how many; the verification has as many others")
    sub.add_argument("--space-seed", type=int, default=0, help="of the candidates")


def search_schedule(options: argparse.Namespace) -> None:
    """Search on the first seeds, then compare the winner with ``--against`` on as many others."""
    check_device(options.device)
    engine, studio, measure, _ = prepare(options, default_judge)
    scales, starts = (numbers(text, float) for text in (options.guidance, options.guidance_starts))
    guidance = {
        Guidance(scale, schedule, start) if scale != 1 else Guidance()
        for scale in scales
        for schedule in GUIDANCE_SCHEDULES
        for start in starts
    }
    space = Space(guidance=sorted(guidance, key=str))
    rivals = named_methods(options.against, studio.model.spec)
    budget = Budget(model_spec(options.cost), options.target)
    work, seeds = Path(options.work).resolve(), range(options.seeds)
    how = {
        "batch": options.batch,
        "on_shard": progress(),
        "engine": engine,
        "make_worker": None if engine.alone else partial(studio_worker, own_judge, options, work, None),
    }
    pool = candidates(space, budget, options.candidates, options.space_seed)
    rounds = list(search(studio, pool, seeds, options.images, work, measure, **how))
    winner = {method.name: method for method in pool}[rounds[-1][0]["method"]]
    compared = [winner, *(Method(schedule, winner.guidance, cache=cache) for schedule, cache in rivals)]
    others = range(options.seeds, 2 * options.seeds)
    measured = evaluate(studio, compared, others, rounds[-1][0]["images"], work, **how)
    rows = quality.rows(measured, others, measure, {m.name: {"speedup": budget.speedup(m)} for m in compared})
    result = {
        "command": options.command,
        "target": options.target,
        "cost": options.cost,
        "space": asdict(space),
        "winner": winner.settings(),
        "rounds": rounds,
        "search_seeds": list(seeds),
        "verification_seeds": list(others),
        "rows": rows,
    }
    print_report(
        options,
        result,
        f"winner of {len(pool)}: {winner.name}\n\non seeds that the search has not seen:\n\n{quality.markdown(result)}",
    )
