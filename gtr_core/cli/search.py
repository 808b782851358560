"""``search``: the best schedule at a cost, chosen on some seeds and verified on others."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from ..errors import GtRError
from ..evaluation import tables
from ..evaluation.evaluate import check_amount, check_names, evaluate
from ..evaluation.files import EvaluationFiles
from ..evaluation.search import CostTarget, Space, candidates, rounds, search
from ..models import ModelSpec, published_specs
from ..plans.fts import FTS
from ..plans.method import GUIDANCE_SCHEDULES, Guidance, Method
from ..plans.plan import make_plan
from ..plans.presets import preset
from ..sampling.lazymar import LazyMAR
from .evaluate import add_evaluation_options, against_real, effort_of, files_of, open_evaluation
from .options import (
    DEFAULT_PRESET,
    Options,
    Parser,
    Verb,
    check_device,
    flags_of,
    model_spec,
    named,
    names,
    numbers,
    print_report,
)
from .progress import WorkProgress


def add_options(sub: Parser) -> None:
    add_evaluation_options(sub)
    sub.add_argument(
        "--target", metavar="RATIO", type=float, default=4.0, help="how many times fewer FLOPs than the origin"
    )
    sub.add_argument(
        "--cost",
        metavar="MODEL",
        help=f"the model whose FLOPs count: {', '.join(published_specs())}, demo or a file (default: --model)",
    )
    sub.add_argument(
        "--against", metavar="NAME,NAME,...", default=DEFAULT_PRESET, help="presets that the winner is compared with"
    )
    sub.add_argument("--candidates", metavar="N", type=int, default=18, help="schedules in the first round")
    sub.add_argument(
        "--guidance", metavar="S,S,...", default="1", help="guidance scales to choose from, such as 1,2,3; 1 = off"
    )
    sub.add_argument(
        "--guidance-starts",
        metavar="SHARE,...",
        default="0",
        help="where it may begin, in parts of the tokens: 0,0.25,0.5",
    )
    sub.add_argument(
        "--images", metavar="N", type=int, default=128, help="per seed in the first round; later rounds have more"
    )
    sub.add_argument("--seeds", metavar="N", type=int, default=2, help="how many; the verification has as many others")
    sub.add_argument("--space-seed", metavar="N", type=int, default=0, help="of the candidates")


def run(options: Options) -> None:
    """Search on the first seeds, then compare the winner with ``--against`` on as many others."""
    check_device(options.device)
    files = files_of(options)
    check_amount(options.images, range(options.seeds))
    with WorkProgress("pieces") as progress:
        result, text = _searched(options, files, progress)
    print_report(options, result, text)


def _searched(options: Options, files: EvaluationFiles, progress: WorkProgress) -> tuple[dict, str]:
    """What was found, as facts and as text."""
    evaluation = open_evaluation(options, files, progress)
    images = rounds(options.candidates, options.images)[-1].images
    measures = against_real(options, evaluation.extractor, images)  # refuses more than the reference has
    scales, starts = numbers(options.guidance, float), numbers(options.guidance_starts, float)
    guidance = {
        Guidance(scale, schedule, start) if scale != 1 else Guidance()
        for scale in scales
        for schedule in GUIDANCE_SCHEDULES
        for start in starts
    }
    if not guidance:
        raise GtRError("no guidance to choose from: give --guidance and --guidance-starts at least one number each")
    space = Space(guidance=sorted(guidance, key=str))
    rivals = rivals_of(options, evaluation.model.spec, space)
    cost = options.cost or options.model
    target, seeds = CostTarget(model_spec(cost), options.target), range(options.seeds)
    pool = candidates(space, target, options.candidates, options.space_seed)
    check_names([pool[0], *rivals])  # as they are compared at the end, one of the candidates first
    progress.doing("looking for pieces of an earlier run")
    effort = effort_of(options, progress, files.open)
    found = list(search(evaluation, pool, seeds, options.images, measures, effort))
    winner = {method.name: method for method in pool}[found[-1][0]["method"]]
    compared = [winner, *(replace(rival, guidance=winner.guidance) for rival in rivals)]
    others = range(options.seeds, 2 * options.seeds)
    features = evaluate(evaluation, compared, others, images, effort)
    costs = {method.name: {"speedup": target.reached(method)} for method in compared}
    rows = tables.rows(features, others, measures, costs)
    result = {
        "command": options.command,
        "target": options.target,
        "cost": cost,
        "space": asdict(space),
        "winner": winner.settings(),
        "settings": {method.name: method.settings() for method in compared},
        "flags": flags_of(winner),
        "nodes": nodes_of(winner),
        "rounds": found,
        "search_seeds": list(seeds),
        "verification_seeds": list(others),
        "rows": rows,
    }
    return result, (
        f"winner of {len(pool)}: {winner.name}\n\non seeds that the search has not seen:\n\n{tables.markdown(result)}"
        f"\n\nto use the winner:\n{_how_to_use(winner)}"
    )


def rivals_of(options: Options, spec: ModelSpec, space: Space) -> list[Method]:
    """What the winner is compared with, as ``eval`` has it. Raises GtRError, before anything is drawn, for methods that
    could not be evaluated at the end."""
    rivals = [named(name, Method(preset("origin"), fts=FTS()), spec) for name in names(options.against)]
    for rival in rivals:
        make_plan(rival, spec.grid, (0,))
    guided = all(guidance.enabled and not guidance.start for guidance in space.guidance)
    if not guided and any(isinstance(rival.cache, LazyMAR) for rival in rivals):
        raise GtRError(
            "LazyMAR needs guidance from the first step on, and some candidates have none: give --guidance above 1 and "
            "--guidance-starts 0, or compare with another method"
        )
    return rivals


def _how_to_use(method: Method) -> str:
    """As options, as values of nodes and as JSON."""
    nodes = (f"{node}: {', '.join(f'{k} {v}' for k, v in values.items())}" for node, values in nodes_of(method).items())
    return "\n".join([f"generate {flags_of(method)}", *nodes, json.dumps(method.settings())])


def nodes_of(method: Method) -> dict[str, dict]:
    """What to set in ComfyUI for a GtR method of steps: values of inputs, by the name of the node. A node that is left
    out is not connected."""
    schedule, fts, guidance = method.schedule, method.fts, method.guidance
    start, end, reconstruction = schedule.diffusion
    nodes: dict[str, dict] = {
        "GtR_Scheduler": {
            "preset": "custom",
            "order": schedule.order,
            "steps": ", ".join(map(str, schedule.steps)),
            "partition": schedule.partition,
            "decoder_scope": schedule.decoder_scope,
            "diffusion_start": start,
            "diffusion_end": end,
            "diffusion_reconstruction": reconstruction,
        }
    }
    if fts is not None:
        nodes["GtR_FTS"] = asdict(fts)
    nodes["GtR_Sampler"] = {
        "cfg": guidance.scale,
        "cfg_schedule": guidance.schedule,
        "cfg_start": guidance.start,
        "temperature": method.temperature,
        "revise": method.revise,
    }
    return nodes


SEARCH = Verb(
    "search",
    "the best schedule at a cost, by quality",
    ("search --target 4 --images 48 --workers 2", "search --target 6 --cost mar-h --against gtr-extreme --json"),
    add_options,
    run,
    resumable=True,
)
