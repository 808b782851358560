"""FLOPs of a plan. Convention: 2 per multiply-add, attention's matrix products counted, guidance doubled, no VAE
and no element-wise work; counted for the plain implementation: every head evaluation complete, and for LightGen
encoder and decoder in both guidance halves and cross-attention at every position, as upstream runs them. The text
aligner, which runs once per picture, is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from ..diffusion.chain import DiffusionSpec, chain
from ..diffusion.head import HeadSpec
from ..models import ModelSpec
from ..models.lightgen import LightGenSpec
from ..plans.fts import FTS
from ..plans.method import Method
from ..plans.plan import Plan, Step, make_plan
from ..plans.presets import preset
from ..plans.schedule import Schedule, respaced
from ..sampling.lazymar import MIDDLE, LazyMAR


@dataclass(frozen=True)
class Flops:
    """Floating point operations per part."""

    encoder: int = 0
    decoder: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        return self.encoder + self.decoder + self.head

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.encoder + other.encoder, self.decoder + other.decoder, self.head + other.head)

    def tera(self) -> dict[str, float]:
        """TFLOPs per part and in total."""
        return {part: getattr(self, part) / 1e12 for part in ("encoder", "decoder", "head", "total")}


def head_evaluations(step: Step, process: DiffusionSpec, fts: FTS | None) -> Iterator[tuple[int, int]]:
    """(tokens, diffusion steps) of the groups of one AR step, per image: one chain each."""
    detail = fts.count(step.tokens) if fts is not None and step.reconstruction else 0
    for tokens, steps in ((detail, fts.detail_steps if fts else 0), (step.tokens - detail, step.diffusion_steps)):
        if tokens:
            yield tokens, len(chain(steps, process))


def count_evaluations(step: Step, process: DiffusionSpec, fts: FTS | None) -> int:
    """Head evaluations of one AR step per image: tokens times diffusion steps, without guidance's second half."""
    return sum(tokens * steps for tokens, steps in head_evaluations(step, process, fts))


def count_step(
    step: Step, schedule: Schedule, spec: ModelSpec, *, guided: bool = True, fts: FTS | None = None
) -> Flops:
    """FLOPs of one AR step of a schedule for one image. The decoder's include LightGen's cross-attention decoder."""
    known, masked = step.known.shape[1], step.tokens + step.context.shape[1]
    halves = 2 if guided else 1
    encoded = spec.buffer + known
    encoder = 2 * known * spec.head.channels * spec.dim + spec.encoder_depth * _block(encoded, spec)
    decoder = 2 * encoded * spec.dim**2 + spec.decoder_depth * _block(encoded + masked, spec)
    if isinstance(spec, LightGenSpec):
        decoder += 2 * (known + masked) * spec.dim**2 + spec.cross_depth * _cross_block(known + masked, spec)
    evaluations = count_evaluations(step, respaced(schedule, spec.diffusion), fts)
    return Flops(halves * encoder, halves * decoder, halves * evaluations * _head_row(spec.head))


def count_lazy_step(plan: Plan, index: int, spec: ModelSpec, cache: LazyMAR, *, fts: FTS | None = None) -> Flops:
    """FLOPs of AR step ``index`` of a guided plan with LazyMAR, for one image."""
    step, process = plan.steps[index], respaced(plan.schedule, spec.diffusion)
    head = sum(
        tokens * _lazy_head_row(spec.head, steps, cache.head_period)
        for tokens, steps in head_evaluations(step, process, fts)
    )
    if cache.fresh(index) or index == 0:
        return replace(count_step(step, plan.schedule, spec, fts=fts), head=head)
    previous, sequence = plan.steps[index - 1].tokens, spec.buffer + plan.tokens
    new, known = spec.buffer + previous, spec.buffer + step.known.shape[1]
    kept = cache.kept(index, len(plan.steps), sequence, step.tokens + previous)
    encoder = 2 * previous * spec.head.channels * spec.dim + spec.encoder_depth * _rows_block(new, known, new, spec)
    prune = cache.pruning_block(spec.decoder_depth)
    decoder = 2 * new * spec.dim**2 + prune * _block(sequence, spec)
    decoder += _rows_block(sequence, sequence, kept, spec)
    decoder += (spec.decoder_depth - prune - 1) * _rows_block(kept, sequence, kept, spec)
    return Flops(encoder, decoder, head)


def count_steps(
    plan: Plan,
    spec: ModelSpec,
    *,
    guided: bool = True,
    unguided: float = 0.0,
    fts: FTS | None = None,
    cache: LazyMAR | None = None,
) -> list[Flops]:
    """FLOPs of every AR step for one image; guidance begins when the part ``unguided`` of the tokens is decoded."""
    if cache is not None:
        return [count_lazy_step(plan, k, spec, cache, fts=fts) for k in range(len(plan.steps))]
    return [
        count_step(step, plan.schedule, spec, guided=guided and step.progress >= unguided, fts=fts)
        for step in plan.steps
    ]


def count_plan(plan: Plan, spec: ModelSpec, **settings) -> Flops:
    """FLOPs of a whole plan for one image; ``settings`` of :func:`count_steps`."""
    return sum(count_steps(plan, spec, **settings), Flops())


def count_schedule(schedule: Schedule, spec: ModelSpec, *, grid: tuple[int, int] | None = None, **settings) -> Flops:
    """FLOPs of a schedule on ``grid``, by default the model's usual one; the order does not matter for the count."""
    return count_plan(make_plan(schedule, grid or spec.grid, (0,)), spec, **settings)


def origin_of(spec: ModelSpec) -> Schedule:
    """The schedule that a model's speed is compared with."""
    return preset("lightgen-origin" if isinstance(spec, LightGenSpec) else "origin")


def report(schedule: Schedule, spec: ModelSpec, *, guided: bool = True, **settings) -> dict:
    """The ``flops`` verb's answer: TFLOPs per part, the origin's total and the ratio to it."""
    own = count_schedule(schedule, spec, guided=guided, **settings)
    origin = _origin(spec, guided)
    return {
        "model": spec.name,
        "preset": schedule.name,
        "tflops": own.tera(),
        "origin_total": origin.total / 1e12,
        "speedup": origin.total / own.total,
    }


def method_report(method: Method, spec: ModelSpec) -> dict:
    """:func:`report` of a method."""
    return report(
        method.schedule,
        spec,
        guided=method.guidance.enabled,
        unguided=method.guidance.start,
        fts=method.fts,
        cache=method.cache if isinstance(method.cache, LazyMAR) else None,
    )


@lru_cache(maxsize=16)
def _origin(spec: ModelSpec, guided: bool) -> Flops:
    """A search asks for it hundreds of times."""
    return count_schedule(origin_of(spec), spec, guided=guided)


def _block(tokens: int, spec: ModelSpec) -> int:
    """A transformer block: qkv, proj, two MLP layers, two attention products."""
    return _rows_block(tokens, tokens, tokens, spec)


def _rows_block(queries: int, keys: int, fed: int, spec: ModelSpec) -> int:
    """A block with attention of ``queries`` rows over ``keys`` rows, and an MLP for ``fed`` rows."""
    return 2 * spec.dim**2 * (4 * queries + 2 * spec.mlp_ratio * fed) + 4 * queries * keys * spec.dim


def _cross_block(tokens: int, spec: LightGenSpec) -> int:
    """A cross-attention block: query and proj, kv of the text, two attention products, two MLP layers."""
    linear = 2 * spec.dim**2 * (tokens * (2 + 2 * spec.mlp_ratio) + 2 * spec.text_length)
    return linear + 4 * tokens * spec.text_length * spec.dim


def _head_row(head: HeadSpec) -> int:
    """One token through the head once."""
    width = head.width
    embeddings = head.frequency_dim * width + width**2 + head.condition_dim * width + head.channels * width
    return 2 * (embeddings + 5 * head.depth * width**2 + 2 * width**2 + 2 * head.channels * width)


def _lazy_head_row(head: HeadSpec, steps: int, period: int) -> int:
    """One token through a whole chain with LazyMAR's head cache: both halves at key steps, else one, in part."""
    square, total = head.width**2, 0
    outer = sum(block not in MIDDLE for block in range(head.depth))
    for i in range(steps):
        if i == steps - 1 or i % period == 0:
            total += 2 * _head_row(head)
        else:
            skipped = 5 * (head.depth - outer) + (0 if i > 0.9 * steps else 2 * outer)
            total += _head_row(head) - 2 * skipped * square
    return total
