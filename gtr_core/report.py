"""What a run did, as a few lines of text."""

from __future__ import annotations

import numpy as np

from .flops import Flops, count_lazy_step, count_plan, count_step, head_evaluations, origin_of
from .fts import FTS
from .lazymar import LazyMAR
from .plan import Plan, make_plan
from .schedule import respaced
from .spec import ModelSpec


def run_report(plan: Plan, spec: ModelSpec, *, guided: bool, fts: FTS | None, seconds: float,
               cache: LazyMAR | None = None, unknown: np.ndarray | None = None) -> str:
    """Per stage: AR steps, tokens, head evaluations (per token, without guidance's second half), FLOPs; then the
    totals against the origin with the same ``unknown`` tokens. FLOPs are per image."""
    lines = [f"{plan.schedule.name} on {spec.name}: {plan.batch} image{'s' * (plan.batch > 1)}, "
             f"{len(plan.steps)} AR steps, {seconds:.2f} s"]
    total, process = Flops(), respaced(plan.schedule, spec.diffusion)
    for stage in range(1, plan.schedule.stages + 1):
        own = [step for step in plan.steps if step.stage == stage]
        if not own:
            continue
        flops = sum((count_step(step, plan.schedule, spec, guided=guided, fts=fts) if cache is None else
                     count_lazy_step(plan, plan.steps.index(step), spec, cache, fts=fts) for step in own), Flops())
        evaluations = sum(n * steps for step in own for n, steps in head_evaluations(step, process, fts))
        kind = "reconstruction" if own[0].reconstruction else "generation"
        lines.append(f"stage {stage} ({kind}): {len(own)} AR steps, {sum(step.tokens for step in own)} tokens, "
                     f"{evaluations} head evaluations, {flops.total / 1e12:.3g} TFLOPs")
        total += flops
    if fts is not None and not any(step.reconstruction for step in plan.steps):
        lines.append("FTS has no effect: the schedule has no reconstruction stage")
    if cache is not None:
        fresh = sum(cache.fresh(index) for index in range(len(plan.steps)))
        lines.append(f"LazyMAR: {fresh} of {len(plan.steps)} AR steps computed in full")
    if plan.steps:
        origin = count_plan(make_plan(origin_of(spec), plan.grid, (0,), unknown=unknown), spec, guided=guided)
        lines.append(f"total {total.total / 1e12:.3g} TFLOPs per image, the origin needs {origin.total / 1e12:.3g} "
                     f"({origin.total / total.total:.2f} x)")
    return "\n".join(lines)
