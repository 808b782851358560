"""What a run did, as a few lines of text."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from ..models.spec import ModelSpec
from ..pipeline import Decoded, Decoding
from ..plans.method import Method
from ..plans.plan import Plan, Step, ar_steps, make_plan
from .flops import count_evaluations, count_plan, count_step, origin_of


def run_report(
    plan: Plan,
    spec: ModelSpec,
    seconds: Sequence[float],
    *,
    unknown: np.ndarray | None = None,
    peak_bytes: int | None = None,
) -> str:
    """Per stage, and for a revision: AR steps, tokens, head evaluations (per token, one guidance branch), FLOPs per
    image and seconds; then the totals against the origin with the same ``unknown`` tokens. ``seconds`` has one per AR
    step."""
    flops = [count_step(plan, step, spec).total for step in plan.steps]
    evaluations = [count_evaluations(plan, step, spec) for step in plan.steps]
    method = plan.method
    lines = [
        f"{method.name} on {spec.name}: {plan.batch} image{'s' * (plan.batch > 1)}, {ar_steps(len(plan.steps))}, "
        f"{sum(seconds):.2f} s"
    ]
    parts: dict[str, list[Step]] = {}
    for step in plan.steps:
        name = step.kind if step.revision else f"stage {step.stage} ({step.kind})"
        parts.setdefault(name, []).append(step)
    for name, steps in parts.items():
        indices = [step.index for step in steps]
        lines.append(
            f"{name}: {ar_steps(len(steps))}, {sum(step.tokens for step in steps)} tokens, "
            f"{sum(evaluations[k] for k in indices)} head evaluations, "
            f"{sum(flops[k] for k in indices) / 1e12:.3g} TFLOPs, {sum(seconds[k] for k in indices):.2f} s"
        )
    if method.schedule.order == "gtr" and plan.schedule.stages == 1:
        lines.append("a single stage reconstructs nothing: GtR has at least two, such as 24, 6, 2 AR steps")
    if method.fts is not None and not any(step.reconstruction for step in plan.steps):
        lines.append("FTS has no effect: the schedule has no reconstruction stage")
    if method.cache is not None:
        lines.append(method.cache.summary(plan, spec))
    if plan.steps:
        lines.append(_against_origin(plan, spec, sum(evaluations), sum(flops), unknown))
    if peak_bytes is not None:
        lines.append(f"peak memory {peak_bytes / 2**20:.0f} MiB")
    return "\n".join(filter(None, lines))


def decoding_report(decoding: Decoding, decoded: Decoded, spec: ModelSpec, peak_bytes: int | None = None) -> str:
    """The report of every section of a decoding."""
    lines = []
    for section, seconds in zip(decoding.sections, decoded.seconds):
        if section.windows > 1:
            lines.append(f"window {section.window + 1} of {section.windows}:")
        region = section.region
        lines.append(run_report(region.plan, spec, seconds, unknown=region.unknown, peak_bytes=peak_bytes))
        if len(section.parts) > 1:
            most = section.parts[0].batch
            lines.append(f"the batch ran in {len(section.parts)} parts of at most {most} images to fit memory")
    lines += [f"note: {assumption}" for assumption in spec.assumptions]
    return "\n".join(lines)


def image_facts(spec: ModelSpec, method: Method, seed: int, label: int | None = None) -> dict[str, str]:
    """What the PNG file of an image says about how it was made."""
    facts = {"model": spec.name, "preset": method.name, "seed": str(seed)}
    if label is not None:
        facts["class"] = str(label)
    return facts | {"settings": json.dumps(method.settings())}


def progress_text(plan: Plan, index: int, part: int = 1, parts: int = 1) -> str:
    """Where a run is at AR step ``index`` (from 0): 'generation 3/10' or 'reconstruction 1/2', after the window."""
    kind = plan.steps[index].kind
    indices = [step.index for step in plan.steps if step.kind == kind]
    window = f"window {part}/{parts}, " if parts > 1 else ""
    return f"{window}{kind} {indices.index(index) + 1}/{len(indices)}"


def _against_origin(plan: Plan, spec: ModelSpec, evaluations: int, flops: int, unknown: np.ndarray | None) -> str:
    origin = make_plan(origin_of(spec, guided=plan.method.guidance.enabled), plan.grid, (0,), unknown=unknown)
    cost = count_plan(origin, spec).total
    return (
        f"total {evaluations} head evaluations, {flops / 1e12:.3g} TFLOPs per image; the origin needs "
        f"{sum(count_evaluations(origin, step, spec) for step in origin.steps)} and {cost / 1e12:.3g} "
        f"({cost / flops:.2f}×)"
    )
