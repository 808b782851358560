"""FLOPs of a plan. Convention: 2 per multiply-add, attention's matrix products counted, guidance doubled, no VAE
and no element-wise work; counted for the plain implementation, every evaluation complete, as the original code runs
it (``ModelSpec.transformer_flops`` says what that is for a family), or as a cache says."""

from __future__ import annotations

from functools import lru_cache

from ..models.spec import Flops, ModelSpec
from ..plans.method import Guidance, Method
from ..plans.plan import Plan, Step, make_plan
from ..plans.presets import preset


def count_evaluations(plan: Plan, step: Step, spec: ModelSpec) -> int:
    """Head evaluations of one AR step per image: tokens times diffusion steps, one guidance branch."""
    return sum(group.tokens * len(plan.chain(group, spec.diffusion)) for group in step.groups)


def count_step(plan: Plan, step: Step, spec: ModelSpec) -> Flops:
    """FLOPs of one AR step for one image."""
    cache = plan.method.cache
    cached = None if cache is None else cache.flops(plan, step, spec)
    if cached is not None:
        return cached
    transformer = spec.transformer_flops(step.known.shape[1], step.masked)
    head = Flops({"head": count_evaluations(plan, step, spec) * spec.head.flops})
    return (transformer + head) * step.branches


def count_plan(plan: Plan, spec: ModelSpec) -> Flops:
    """FLOPs of a whole plan for one image."""
    return sum((count_step(plan, step, spec) for step in plan.steps), Flops())


def count_method(method: Method, spec: ModelSpec, grid: tuple[int, int] | None = None) -> Flops:
    """FLOPs of a method on ``grid``, by default the model's usual one; the order does not matter for the count."""
    return count_plan(make_plan(method, grid or spec.grid, (0,)), spec)


def origin_of(spec: ModelSpec, *, guided: bool = True) -> Method:
    """What a model's speed is compared with, with guidance throughout or without."""
    return Method(preset(spec.origin), Guidance(3.0 if guided else 1.0))


def report(method: Method, spec: ModelSpec, grid: tuple[int, int] | None = None) -> dict:
    """The ``flops`` verb's answer: TFLOPs per part, the origin's total and the ratio to it."""
    own = count_method(method, spec, grid)
    origin = _origin(spec, method.guidance.enabled, grid)
    return {
        "model": spec.name,
        "preset": method.name,
        "tflops": own.tera(),
        "origin_total": origin.total / 1e12,
        "speedup": origin.total / own.total,
    }


@lru_cache(maxsize=16)
def _origin(spec: ModelSpec, guided: bool, grid: tuple[int, int] | None) -> Flops:
    """A search asks for it hundreds of times."""
    return count_method(origin_of(spec, guided=guided), spec, grid)
