"""The one sampling loop: runs any plan on any model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..device import upload
from ..diffusion.chain import Chains, DiffusionSpec, OnStep, chain
from ..errors import GtRError
from ..models import Model
from ..models.mar import MARSpec
from ..noise import NoiseSource
from ..plans.fts import FTS, select
from ..plans.method import Cache, Guidance
from ..plans.plan import Plan, Step
from ..plans.schedule import respaced
from .acceleration import Prepared, prepare
from .evaluator import Engine, direct
from .memory import activation_bytes

TICK = 8


@dataclass(frozen=True)
class Progress:
    """What a callback sees: ``step`` AR steps of ``steps`` are done, and ``diffusion_step`` of the current one.

    ``tokens`` (B, L, C), ``known`` (B, K) and ``spent`` (B, L), the diffusion steps that every token got in this run,
    are the state on the device: copy what is to be kept.
    """

    step: int
    steps: int
    stage: int
    stages: int
    diffusion_step: int
    diffusion_steps: int
    tokens: Tensor
    known: Tensor
    spent: Tensor


Callback = Callable[[Progress], None]


@torch.no_grad()
def sample(
    model: Model,
    plan: Plan,
    condition: Tensor,
    noise: NoiseSource,
    *,
    tokens: Tensor | None = None,
    negative: Tensor | None = None,
    cache: Cache | None = None,
    guidance: Guidance = Guidance(),
    temperature: float = 1.0,
    fts: FTS | None = None,
    accelerate: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    callback: Callback | None = None,
) -> Tensor:
    """Decode tokens (B, L, C) float32 in model scale by ``plan``.

    ``condition`` is what the model's ``embed_condition`` takes (MAR: labels (B,) int64, -1 = unconditional;
    LightGen: text states (B, T, caption_dim)). Guidance leads away from ``negative``, by default from what the model
    learned for no condition. ``cache`` (LazyMAR) replaces full evaluations by cheaper ones; its state is this call's.
    ``tokens`` (B, L, C) gives the values of positions that the plan leaves alone; they come back unchanged.
    ``accelerate``, for weights that stay where they are, packs them for a processor with AVX-512, records CUDA graphs
    of the head, and with a 16-bit ``dtype`` runs it in that dtype too, except where a step would amplify the rounding
    (docs/performance.md).
    ``dtype`` is the transformer's compute dtype; the diffusion chain is float32, and so is the head otherwise.
    ``callback`` is called before every AR step, every 8 diffusion steps and at the end; an exception that it raises
    cancels the run. All state lives in this call. Raises GtRError when plan, model and inputs do not fit each other.
    """
    _check(model, plan, condition, negative, tokens, temperature, fts)
    prepared, cached = Prepared(model), cache is not None
    if accelerate:
        needed = activation_bytes(
            plan, model.spec, guided=guidance.enabled, itemsize=dtype.itemsize, device=device, fts=fts, cached=cached
        )
        prepared = prepare(model, torch.device(device), dtype, plan.batch, needed, cached=cached)
    tokens = torch.zeros(plan.batch, plan.tokens, model.spec.head.channels) if tokens is None else tokens
    tokens = tokens.to(device=device, dtype=torch.float32, copy=True)
    spent = torch.zeros(tokens.shape[:2], dtype=torch.int32, device=device)
    conditions = [_embed(model, condition, device, dtype)]
    if guidance.enabled:
        conditions.append(
            model.null_condition(conditions[0]) if negative is None else _embed(model, negative, device, dtype)
        )
    tables, process = upload_tables(plan, device), respaced(plan.schedule, model.spec.diffusion)
    engine = direct(prepared, plan) if cache is None else cache.start(prepared.model, plan, guidance)
    for index, (step, (known, targets, context)) in enumerate(zip(plan.steps, tables)):
        tick = _ticker(callback, plan, index, (tokens, known, spent))
        tick(0, step.diffusion_steps)
        scale = guidance.at(step.progress)
        needed = conditions[:1] if scale == 1 else conditions
        z = engine.conditioning(index, tokens.to(dtype), (known, targets, context), needed)
        z = tuple(half.float() for half in z)
        values = _denoise_step(
            engine, process, step, index, z, noise, scale, temperature, fts, tick, partial(_note, spent, targets)
        )
        tokens.scatter_(1, targets[..., None].expand_as(values), values)
    if callback is not None:
        everywhere = torch.arange(plan.tokens, device=device).expand(plan.batch, -1)
        callback(
            Progress(
                len(plan.steps),
                len(plan.steps),
                plan.schedule.stages,
                plan.schedule.stages,
                0,
                0,
                tokens,
                everywhere,
                spent,
            )
        )
    return tokens


def upload_tables(plan: Plan, device: torch.device | str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Every step's (known, positions, context) on the device, in one transfer: the loop itself never waits."""
    arrays = [array for step in plan.steps for array in (step.known, step.positions, step.context)]
    if not arrays:
        return []
    flat = upload(torch.from_numpy(np.concatenate([array.ravel() for array in arrays])), device)
    tables = [part.view(plan.batch, -1) for part in flat.split([array.size for array in arrays])]
    return list(zip(tables[0::3], tables[1::3], tables[2::3]))


def _denoise_step(
    engine: Engine,
    process: DiffusionSpec,
    step: Step,
    index: int,
    z: tuple[Tensor, ...],
    noise: NoiseSource,
    scale: float,
    temperature: float,
    fts: FTS | None,
    tick: OnStep,
    note: Callable[[Tensor | None, int], None],
) -> Tensor:
    """Diffusion of one AR step: z, conditional and maybe unconditional, each (B, n, D) -> values (B, n, C).

    ``note`` hears which rows (B, k), None for all, get how many diffusion steps.
    """
    batch, count = z[0].shape[:2]
    groups: list[tuple[Tensor | None, int]] = [(None, step.diffusion_steps)]
    if fts is not None and step.reconstruction:
        shuffled = upload(noise.shuffled(index, count), z[0].device) if fts.selection == "random" else None
        detail, rest = select(fts, z[0], shuffled)
        groups = [
            (rows, steps) for rows, steps in ((detail, fts.detail_steps), (rest, step.diffusion_steps)) if rows.shape[1]
        ]
        groups.sort(key=lambda group: -group[1])
    init, steps_noise = (upload(t, z[0].device) for t in noise.draw(index, count, groups[0][1]))
    sizes = [batch * (count if rows is None else rows.shape[1]) for rows, _ in groups]
    tables = [chain(steps, process) for _, steps in groups]

    def rows_of(t: Tensor) -> Tensor:
        """t (..., B, n, C) -> (..., B n, C), group after group."""
        return torch.cat([_pick(t, rows).flatten(-3, -2) for rows, _ in groups], dim=-2)

    chains = Chains(tuple(zip(sizes, tables)), rows_of(init), rows_of(steps_noise[: len(tables[0])]))
    flat = engine.diffuse(tuple(rows_of(half) for half in z), chains, scale, temperature, tick)
    values = torch.empty_like(init)
    for (rows, steps), part in zip(groups, flat.split(sizes)):
        note(rows, steps)
        part = part.unflatten(0, (batch, -1))
        values = part if rows is None else values.scatter(1, rows[..., None].expand_as(part), part)
    return values


def _note(spent: Tensor, targets: Tensor, rows: Tensor | None, steps: int) -> None:
    """Write the diffusion steps of some of the positions ``targets`` (B, n) into ``spent`` (B, L)."""
    spent.scatter_(1, targets if rows is None else targets.gather(1, rows), steps)


def _pick(t: Tensor, rows: Tensor | None) -> Tensor:
    """Rows (B, k) of t (..., B, n, C) -> (..., B, k, C); all rows for None."""
    if rows is None:
        return t
    index = rows[..., None].expand(*t.shape[:-2], -1, t.shape[-1])
    return t.gather(-2, index)


def _embed(model: Model, condition: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """The embedded condition (B, ...); one label for the whole batch is embedded once and expanded."""
    same = not condition.is_meta and condition.ndim == 1 and bool((condition == condition[0]).all())
    embedded = model.embed_condition((condition[:1] if same else condition).to(device), dtype)
    return embedded.expand(len(condition), *embedded.shape[1:])


def _ticker(callback: Callback | None, plan: Plan, index: int, state: tuple[Tensor, Tensor, Tensor]) -> OnStep:
    """Reports diffusion step j of ``total`` of AR step ``index`` and the ``state`` (tokens, known, spent), every few
    steps."""
    step = plan.steps[index]

    def tick(j: int, total: int) -> None:
        if callback is not None and j % TICK == 0:
            callback(Progress(index, len(plan.steps), step.stage, plan.schedule.stages, j, total, *state))

    return tick


def _check(
    model: Model,
    plan: Plan,
    condition: Tensor,
    negative: Tensor | None,
    tokens: Tensor | None,
    temperature: float,
    fts: FTS | None,
) -> None:
    spec = model.spec
    shape = (plan.batch, plan.tokens, spec.head.channels)
    spec.check_grid(plan.grid)
    for given in (condition,) if negative is None else (condition, negative):
        if given.shape[0] != plan.batch:
            raise GtRError(f"{given.shape[0]} conditions for a batch of {plan.batch}: give one per image")
    labels = [given for given in (condition, negative) if given is not None and not given.is_floating_point()]
    if isinstance(spec, MARSpec) and any(((g < -1) | (g >= spec.classes)).any() for g in labels if not g.is_meta):
        raise GtRError(f"a class is out of range: {spec.name} has classes 0 to {spec.classes - 1} (-1 for none)")
    if fts is not None and fts.detail_steps > spec.diffusion.base_steps:
        raise GtRError(f"FTS asks for {fts.detail_steps} diffusion steps, {spec.name} has {spec.diffusion.base_steps}")
    if not 0 <= temperature < float("inf"):
        raise GtRError(f"temperature {temperature}: expected 0 or more")
    if tokens is None and plan.steps and plan.steps[0].known.shape[1]:
        raise GtRError(f"the plan leaves {plan.steps[0].known.shape[1]} tokens alone: give their values")
    if tokens is not None and tuple(tokens.shape) != shape:
        raise GtRError(f"tokens of shape {tuple(tokens.shape)}, expected {shape}")
