"""What a run did, as a few lines of text."""

from __future__ import annotations

from .flops import Flops, count_schedule, count_step, head_evaluations, origin_of
from .fts import FTS
from .plan import Plan
from .spec import ModelSpec


def run_report(plan: Plan, spec: ModelSpec, *, guided: bool, fts: FTS | None, seconds: float) -> str:
    """Per stage: AR steps, tokens, head evaluations (per token, without guidance's second half), FLOPs; then the
    totals against the origin. FLOPs are per image."""
    lines = [f"{plan.schedule.name} on {spec.name}: {plan.batch} image{'s' * (plan.batch > 1)}, "
             f"{len(plan.steps)} AR steps, {seconds:.2f} s"]
    total = Flops()
    for stage in range(1, plan.schedule.stages + 1):
        own = [step for step in plan.steps if step.stage == stage]
        if not own:
            continue
        flops = sum((count_step(step, spec, guided=guided, fts=fts) for step in own), Flops())
        evaluations = sum(n * steps for step in own for n, steps in head_evaluations(step, spec, fts))
        kind = "reconstruction" if own[0].reconstruction else "generation"
        lines.append(f"stage {stage} ({kind}): {len(own)} AR steps, {sum(step.tokens for step in own)} tokens, "
                     f"{evaluations} head evaluations, {flops.total / 1e12:.3g} TFLOPs")
        total += flops
    if plan.steps:
        origin = count_schedule(origin_of(spec), spec, guided=guided, grid=plan.grid)
        lines.append(f"total {total.total / 1e12:.3g} TFLOPs per image, the origin needs {origin.total / 1e12:.3g} "
                     f"({origin.total / total.total:.2f} x)")
    return "\n".join(lines)
