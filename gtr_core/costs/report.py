"""What a run did, as a few lines of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models import ModelSpec
from ..plans.fts import FTS
from ..plans.plan import Plan, make_plan
from ..plans.schedule import respaced
from ..sampling.lazymar import LazyMAR
from .flops import count_evaluations, count_plan, count_steps, origin_of


def run_report(
    plan: Plan,
    spec: ModelSpec,
    *,
    guided: bool,
    seconds: Sequence[float],
    unguided: float = 0.0,
    fts: FTS | None = None,
    cache: LazyMAR | None = None,
    unknown: np.ndarray | None = None,
    peak_bytes: int | None = None,
) -> str:
    """Per stage: AR steps, tokens, head evaluations (per token, without guidance's second half), FLOPs per image and
    seconds; then the totals against the origin with the same ``unknown`` tokens. ``seconds`` has one per AR step."""
    process = respaced(plan.schedule, spec.diffusion)
    flops = count_steps(plan, spec, guided=guided, unguided=unguided, fts=fts, cache=cache)
    evaluations = [count_evaluations(step, process, fts) for step in plan.steps]
    lines = [
        f"{plan.schedule.name} on {spec.name}: {plan.batch} image{'s' * (plan.batch > 1)}, "
        f"{len(plan.steps)} AR steps, {sum(seconds):.2f} s"
    ]
    for stage in range(1, plan.schedule.stages + 1):
        own = [index for index, step in enumerate(plan.steps) if step.stage == stage]
        if own:
            kind = "reconstruction" if plan.steps[own[0]].reconstruction else "generation"
            lines.append(
                f"stage {stage} ({kind}): {len(own)} AR steps, {sum(plan.steps[k].tokens for k in own)} tokens, "
                f"{sum(evaluations[k] for k in own)} head evaluations, "
                f"{sum(flops[k].total for k in own) / 1e12:.3g} TFLOPs, {sum(seconds[k] for k in own):.2f} s"
            )
    if fts is not None and not any(step.reconstruction for step in plan.steps):
        lines.append("FTS has no effect: the schedule has no reconstruction stage")
    if cache is not None:
        fresh = sum(cache.fresh(index) for index in range(len(plan.steps)))
        lines.append(f"LazyMAR: {fresh} of {len(plan.steps)} AR steps computed in full")
    if plan.steps:
        lines.append(_against_origin(plan, spec, guided, sum(evaluations), sum(f.total for f in flops), unknown))
    if peak_bytes is not None:
        lines.append(f"peak memory {peak_bytes / 2**20:.0f} MiB")
    return "\n".join(lines)


def progress_text(plan: Plan, index: int, part: int = 1, parts: int = 1) -> str:
    """Where a run is at AR step ``index`` (from 0): 'generation 3/10' or 'reconstruction 1/2', after the window."""
    own = [k for k, step in enumerate(plan.steps) if step.reconstruction == plan.steps[index].reconstruction]
    kind = "reconstruction" if plan.steps[index].reconstruction else "generation"
    window = f"window {part}/{parts}, " if parts > 1 else ""
    return f"{window}{kind} {own.index(index) + 1}/{len(own)}"


def _against_origin(
    plan: Plan, spec: ModelSpec, guided: bool, evaluations: int, flops: int, unknown: np.ndarray | None
) -> str:
    origin = make_plan(origin_of(spec), plan.grid, (0,), unknown=unknown)
    cost = count_plan(origin, spec, guided=guided).total
    return (
        f"total {evaluations} head evaluations, {flops / 1e12:.3g} TFLOPs per image; the origin needs "
        f"{sum(count_evaluations(step, spec.diffusion, None) for step in origin.steps)} and {cost / 1e12:.3g} "
        f"({cost / flops:.2f} x)"
    )
