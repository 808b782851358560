"""``search``: the best schedule at a cost, chosen on some seeds and verified on others."""

from __future__ import annotations

from dataclasses import asdict, replace

from ..evaluation import tables
from ..evaluation.evaluate import evaluate
from ..evaluation.search import CostTarget, Space, candidates, search
from ..plans.method import GUIDANCE_SCHEDULES, Guidance, Method
from ..plans.presets import preset
from .evaluate import add_evaluation_options, effort_of, files_of, measures_of, open_evaluation
from .options import Options, Parser, Verb, check_device, model_spec, named, names, numbers, print_report


def add_options(sub: Parser) -> None:
    add_evaluation_options(sub)
    sub.add_argument("--target", type=float, default=4.0, help="how many times fewer FLOPs than the origin")
    sub.add_argument("--cost", default="mar-h", help="the model whose FLOPs count: mar-b, mar-l, mar-h, demo or a file")
    sub.add_argument("--against", default="gtr-paper", help="presets that the winner is compared with")
    sub.add_argument("--candidates", type=int, default=18)
    sub.add_argument("--guidance", default="1", help="guidance scales to choose from, such as 1,2,3")
    sub.add_argument("--guidance-starts", default="0", help="where it may begin, in parts of the tokens: 0,0.25,0.5")
    sub.add_argument("--images", type=int, default=128, help="per seed in the first round; later rounds have more")
    sub.add_argument("--seeds", type=int, default=2, help="how many; the verification has as many others")
    sub.add_argument("--space-seed", type=int, default=0, help="of the candidates")


def run(options: Options) -> None:
    """Search on the first seeds, then compare the winner with ``--against`` on as many others."""
    check_device(options.device)
    files = files_of(options)
    evaluation = open_evaluation(options, files)
    measures, effort = measures_of(options, evaluation), effort_of(options, files)
    scales, starts = numbers(options.guidance, float), numbers(options.guidance_starts, float)
    guidance = {
        Guidance(scale, schedule, start) if scale != 1 else Guidance()
        for scale in scales
        for schedule in GUIDANCE_SCHEDULES
        for start in starts
    }
    space = Space(guidance=sorted(guidance, key=str))
    rivals = [named(name, Method(preset("origin")), evaluation.model.spec) for name in names(options.against)]
    target, seeds = CostTarget(model_spec(options.cost), options.target), range(options.seeds)
    pool = candidates(space, target, options.candidates, options.space_seed)
    rounds = list(search(evaluation, pool, seeds, options.images, measures, effort))
    winner = {method.name: method for method in pool}[rounds[-1][0]["method"]]
    compared = [winner, *(replace(rival, guidance=winner.guidance) for rival in rivals)]
    others = range(options.seeds, 2 * options.seeds)
    features = evaluate(evaluation, compared, others, rounds[-1][0]["images"], effort)
    costs = {method.name: {"speedup": target.reached(method)} for method in compared}
    rows = tables.rows(features, others, measures, costs)
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
        f"winner of {len(pool)}: {winner.name}\n\non seeds that the search has not seen:\n\n{tables.markdown(result)}",
    )


SEARCH = Verb("search", "the best schedule at a cost, by quality", add_options, run)
