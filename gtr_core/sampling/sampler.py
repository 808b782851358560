"""The one sampling loop: runs any plan on any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..device import Runtime, upload
from ..diffusion.chain import ChainGroup, Chains, OnStep
from ..errors import GtRError
from ..models.model import Model, Positions
from ..models.prompts import Condition, EditCondition
from ..models.spec import ModelSpec
from ..noise import NoiseSource
from ..plans.fts import select
from ..plans.plan import Plan, Step
from .acceleration import prepare
from .evaluator import DirectEvaluator, Run

# Diffusion steps between two calls of the callback.
TICK = 8
Device = torch.device | str


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

    @property
    def share(self) -> float:
        """What is done of the run, 0 to 1, in AR steps."""
        inside = min(self.diffusion_step / max(self.diffusion_steps, 1), 1.0)
        return (self.step + inside) / self.steps if self.step < self.steps else 1.0


Callback = Callable[[Progress], None]


@torch.no_grad()
def sample(
    model: Model,
    plan: Plan,
    condition: Condition,
    noise: NoiseSource,
    *,
    tokens: Tensor | None = None,
    negative: Condition | None = None,
    runtime: Runtime = Runtime(),
    callback: Callback | None = None,
) -> Tensor:
    """Decode tokens (B, L, C) float32 in model scale by ``plan``.

    ``condition`` is what the model's family conditions on (MAR: labels (B,) int64, -1 = unconditional; LightGen: text
    states (B, T, caption_dim); Harmon: ids of prompts (B, n) int64, -1 = no more; UniPic also an ``EditCondition``).
    Guidance leads away from ``negative``, by default from what the model takes for no condition. ``tokens`` (B, L, C)
    gives the values of positions that the plan leaves alone; they come back unchanged.
    ``callback`` is called before every AR step, every 8 diffusion steps and at the end; an exception that it raises
    cancels the run. All state lives in this call. Raises GtRError when plan, model and inputs do not fit each other.
    """
    _check(model, plan, condition, negative, tokens)
    device = runtime.device
    if tokens is None:
        tokens = torch.zeros(plan.batch, plan.tokens, model.spec.head.channels)
    tokens = tokens.to(device=device, dtype=torch.float32, copy=True)
    spent = torch.zeros(tokens.shape[:2], dtype=torch.int32, device=device)
    conditions = (condition, negative) if plan.method.guidance.enabled else (condition,)
    run = Run(prepare(model, plan, runtime), plan, conditions, runtime)
    cache = plan.method.cache
    evaluator = DirectEvaluator.start(run) if cache is None else cache.start(run)
    for step, positions in zip(plan.steps, upload_positions(plan, device)):
        tick = _ticker(callback, plan, step, (tokens, positions.known, spent))
        tick(0, step.diffusion_steps)
        z = tuple(branch.float() for branch in evaluator.conditioning(step, tokens.to(runtime.dtype), positions))
        rows = assign_rows(plan, step, z[0], noise)
        chains = draw_chains(plan, step, rows, noise, model.spec, device)
        values = evaluator.diffuse(step, tuple(gather_rows(branch, rows) for branch in z), chains, tick)
        write_rows(step, rows, values, positions.targets, tokens, spent)
    if callback is not None:
        everywhere = torch.arange(plan.tokens, device=device).expand(plan.batch, -1)
        stages = plan.schedule.stages
        callback(Progress(len(plan.steps), len(plan.steps), stages, stages, 0, 0, tokens, everywhere, spent))
    return tokens


def upload_positions(plan: Plan, device: torch.device | str) -> list[Positions]:
    """Every step's positions on the device, in one transfer: the loop itself never waits."""
    arrays = [array for step in plan.steps for array in (step.known, step.targets, step.context)]
    if not arrays:
        return []
    flat = upload(torch.from_numpy(np.concatenate([array.ravel() for array in arrays])), device)
    tables = [part.view(plan.batch, -1) for part in flat.split([array.size for array in arrays])]
    return [Positions(*tables[first : first + 3]) for first in range(0, len(tables), 3)]


Rows = Sequence[Tensor | None]


def assign_rows(plan: Plan, step: Step, z: Tensor, noise: NoiseSource) -> Rows:
    """Per group of the step the indices (B, k) of its rows among the targets, None for all of them.

    Where there are detail tokens FTS selects them by z (B, n, D), the conditional rows.
    """
    if not any(group.detail for group in step.groups):
        return [None]
    fts, permutation = plan.method.fts, None
    if fts.selection == "random":
        permutation = upload(noise.shuffled(step.index, step.tokens), z.device)
    detail, others = select(fts, z, permutation)
    return [detail if group.detail else others for group in step.groups]


def draw_chains(plan: Plan, step: Step, rows: Rows, noise: NoiseSource, spec: ModelSpec, device: Device) -> Chains:
    """The groups' chains over the model's noise process, and the noise of their rows."""
    groups = tuple(ChainGroup(plan.batch * group.tokens, plan.chain(group, spec.diffusion)) for group in step.groups)
    # Noise is drawn for the schedule's number of steps; a clipped chain may have fewer.
    init, steps = noise.draw(step.index, step.tokens, step.groups[0].diffusion_steps)
    init, steps = upload(init, device), upload(steps[: len(groups[0].chain)], device)
    if plan.method.temperature != 1:
        steps = steps * plan.method.temperature
    return Chains(groups, gather_rows(init, rows), gather_rows(steps, rows))


def gather_rows(t: Tensor, rows: Rows) -> Tensor:
    """t (..., B, n, C) -> (..., B n, C), group after group, each group's rows image by image."""
    parts = [t if index is None else t.gather(-2, _wide(index, t)) for index in rows]
    flat = [part.flatten(-3, -2) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-2)


def write_rows(step: Step, rows: Rows, values: Tensor, targets: Tensor, tokens: Tensor, spent: Tensor) -> None:
    """Write the decoded ``values``, in the order of :func:`gather_rows`, to their places in ``tokens`` (B, L, C), and
    add their diffusion steps to ``spent`` (B, L)."""
    batch = len(targets)
    counts = [batch * group.tokens for group in step.groups]
    for group, index, part in zip(step.groups, rows, values.split(counts)):
        places = targets if index is None else targets.gather(1, index)
        part = part.unflatten(0, (batch, -1))
        tokens.scatter_(1, places[..., None].expand_as(part), part)
        spent.scatter_(1, places, spent.gather(1, places) + group.diffusion_steps)


def _wide(index: Tensor, t: Tensor) -> Tensor:
    """Row indices (B, k) for all leading dimensions and channels of t (..., B, n, C)."""
    return index[..., None].expand(*t.shape[:-2], -1, t.shape[-1])


def _ticker(callback: Callback | None, plan: Plan, step: Step, state: tuple[Tensor, Tensor, Tensor]) -> OnStep:
    """Reports diffusion step j of ``total`` of an AR step and the ``state`` (tokens, known, spent), every few steps."""

    def tick(j: int, total: int) -> None:
        if callback is not None and j % TICK == 0:
            callback(Progress(step.index, len(plan.steps), step.stage, plan.schedule.stages, j, total, *state))

    return tick


def _check(model: Model, plan: Plan, condition: Condition, negative: Condition | None, tokens: Tensor | None) -> None:
    spec, fts = model.spec, plan.method.fts
    spec.check_grid(plan.grid)
    for given in (condition,) if negative is None else (condition, negative):
        if given.shape[0] != plan.batch:
            raise GtRError(f"{given.shape[0]} conditions for a batch of {plan.batch}: give one per image")
        if isinstance(given, EditCondition) and spec.condition != "prompt":
            raise GtRError(f"{spec.name} cannot change a picture by an instruction: load UniPic for that")
        spec.check_condition(given)
    if fts is not None and fts.detail_steps > spec.diffusion.base_steps:
        raise GtRError(f"FTS asks for {fts.detail_steps} diffusion steps, {spec.name} has {spec.diffusion.base_steps}")
    if tokens is None and plan.steps and plan.steps[0].known.shape[1]:
        raise GtRError(f"the plan leaves {plan.steps[0].known.shape[1]} tokens alone: give their values")
    shape = (plan.batch, plan.tokens, spec.head.channels)
    if tokens is not None and tuple(tokens.shape) != shape:
        raise GtRError(f"tokens of shape {tuple(tokens.shape)}, expected {shape}")
