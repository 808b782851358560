"""Plans: a method resolved for a grid and the seeds of a batch. A plan is data; one loop runs every plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..device import check_budget
from ..diffusion.chain import Chain, DiffusionSpec, chain
from ..errors import GtRError
from ..noise import ORDER, generator
from .fts import FTS
from .method import Method
from .orders import ORDERS
from .partition import check_grid, stage_of_tokens
from .schedule import Schedule, cosine_counts, diffusion_steps, even_counts, respaced, steps_per_stage

LARGEST_PLAN = 2**32  # bytes
# Kinds of AR steps: the paper's names of what a stage does, and ours of the step after all stages.
GENERATION = "generation"
RECONSTRUCTION = "reconstruction"
REVISION = "revision"


def ar_steps(count: int) -> str:
    """So many AR steps, in words."""
    return f"{count} AR step{'s' * (count != 1)}"


@dataclass(frozen=True)
class TokenGroup:
    """So many tokens of an AR step, in every image, run so many diffusion steps; ``detail`` marks those that FTS
    selects."""

    tokens: int
    diffusion_steps: int
    detail: bool = False


@dataclass(frozen=True, eq=False)
class Step:
    """One AR step. Index arrays are (batch, n) int64 raster positions, ascending within an image.

    ``known`` holds values before the step, ``targets`` are decoded by it, ``context`` are the other masked positions
    that the decoder sees. ``progress`` is (L - m') / L with m' the masked tokens after the step (at least 1): the
    weight of the linear guidance schedule (docs/upstream.md 1.9). ``scale`` is the guidance scale; a step that is not
    ``guided`` evaluates the conditional branch only. ``groups`` say how many tokens get how many diffusion steps, most
    steps first. ``kind`` is GENERATION, RECONSTRUCTION or REVISION, which draws tokens again and belongs to the last
    stage.
    """

    index: int
    stage: int
    kind: str
    known: np.ndarray
    targets: np.ndarray
    context: np.ndarray
    diffusion_steps: int
    groups: tuple[TokenGroup, ...]
    progress: float
    guided: bool
    scale: float

    @property
    def reconstruction(self) -> bool:
        return self.kind == RECONSTRUCTION

    @property
    def revision(self) -> bool:
        return self.kind == REVISION

    @property
    def tokens(self) -> int:
        return self.targets.shape[1]

    @property
    def masked(self) -> int:
        """Masked positions that the decoder sees."""
        return self.tokens + self.context.shape[1]

    @property
    def branches(self) -> int:
        """Guidance branches that the step evaluates."""
        return 2 if self.guided else 1


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of one run for ``batch`` images on ``grid`` (h, w); the first step's ``known`` is given."""

    method: Method
    grid: tuple[int, int]
    batch: int
    steps: tuple[Step, ...]

    @property
    def schedule(self) -> Schedule:
        return self.method.schedule

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def chain(self, group: TokenGroup, process: DiffusionSpec) -> Chain:
        """The reverse chain of a group's tokens over a model's noise process."""
        return chain(group.diffusion_steps, respaced(self.schedule, process))

    def part(self, images: slice) -> Plan:
        """The plan of some of its images."""
        steps = tuple(
            replace(step, known=step.known[images], targets=step.targets[images], context=step.context[images])
            for step in self.steps
        )
        return replace(self, batch=len(range(self.batch)[images]), steps=steps)

    @property
    def first_steps(self) -> int:
        """AR steps of the first drawing, all but a revision."""
        return sum(not step.revision for step in self.steps)

    def without_revision(self) -> Plan:
        """The plan of the first drawing of every token."""
        return replace(self, steps=tuple(step for step in self.steps if not step.revision))

    def scheduled_steps(self) -> np.ndarray:
        """The schedule's own diffusion steps per token, without FTS, (batch, L): 0 where the plan decodes nothing, the
        sum of both drawings where it revises."""
        result = np.zeros((self.batch, self.tokens), np.int64)
        for step in self.steps:
            before = np.take_along_axis(result, step.targets, 1)
            np.put_along_axis(result, step.targets, before + step.diffusion_steps, 1)
        return result

    def to_dict(self, image: int = 0) -> dict:
        """The plan of one image as plain data (the ``schedule`` verb's JSON)."""
        return {
            "preset": self.method.name,
            "grid": list(self.grid),
            "steps": [
                {
                    "stage": step.stage,
                    "tokens": step.tokens,
                    "diffusion_steps": step.diffusion_steps,
                    "positions": step.targets[image].tolist(),
                }
                for step in self.steps
            ],
        }


def make_plan(
    method: Method, grid: tuple[int, int], seeds: Sequence[int], *, unknown: np.ndarray | None = None
) -> Plan:
    """Resolve a method: one random order per seed, over all tokens or the ``unknown`` ones ((h, w) bool).

    With ``unknown`` the rates of the schedule are kept: a stage of which a part is unknown gets that part of its
    AR steps, rounded up. Raises GtRError for an empty batch, a wrong mask, or settings that do not fit the grid.
    """
    if not seeds:
        raise GtRError("an empty batch: expected at least 1 image; set the batch size to 1 or more")
    check_grid(grid)
    schedule = method.schedule
    mask = np.ones(grid, dtype=bool) if unknown is None else np.asarray(unknown, dtype=bool)
    if mask.shape != tuple(grid):
        raise GtRError(f"a mask of {mask.shape} tokens for a grid of {tuple(grid)}: give one value per token")
    whole, subsets = _subsets(schedule, grid), _subsets(schedule, grid, mask)
    counts = _counts(schedule, [len(s) for s in whole], [len(s) for s in subsets])
    # Every step holds each position once, int64.
    steps = sum(bool(size) for sizes in counts for size in sizes)
    check_budget(len(seeds) * mask.size * 8 * steps, "the plan's steps need", LARGEST_PLAN)
    orders = [token_sequences(schedule, grid, generator(seed, ORDER), mask) for seed in seeds]
    return plan_from_sequences(method, grid, [np.stack(stage) for stage in zip(*orders)], counts)


def token_sequences(
    schedule: Schedule, grid: tuple[int, int], stream: np.random.Generator, unknown: np.ndarray | None = None
) -> list[np.ndarray]:
    """Per stage the raster positions of one image's ``unknown`` tokens ((h, w) bool; None = all) in their order."""
    order = ORDERS[schedule.order]
    return [order(subset, grid, stream, schedule) for subset in _subsets(schedule, grid, unknown)]


def plan_from_sequences(
    method: Method, grid: tuple[int, int], sequences: Sequence[np.ndarray], counts: Sequence[Sequence[int]]
) -> Plan:
    """A plan from explicit orders: per stage a (batch, n_k) array in generation order and the tokens per AR step.

    Positions in no sequence are known from the start. Steps without tokens are left out. A revision comes last, of as
    many of the first tokens as the method says, less those that are known from the start.
    """
    schedule, total, batch = method.schedule, grid[0] * grid[1], sequences[0].shape[0]
    everything = np.concatenate(sequences, axis=1)
    known = np.ones((batch, total), dtype=bool)
    np.put_along_axis(known, everything, False, axis=1)
    visible = np.zeros_like(known)  # masked positions of the stages that the decoder may see
    generation = sum(map(len, counts)) if schedule.stages == 1 else sum(map(len, counts[:-1]))
    diffusion = diffusion_steps(schedule, generation, sum(map(len, counts)) - generation)
    steps: list[Step] = []
    for stage, (sequence, sizes) in enumerate(zip(sequences, counts), start=1):
        np.put_along_axis(visible, sequence if schedule.decoder_scope == "stage" else everything, True, axis=1)
        kind = RECONSTRUCTION if 1 < stage == schedule.stages else GENERATION
        for targets in np.split(sequence, np.cumsum(sizes)[:-1], axis=1) if sizes else ():
            count, tokens = diffusion.pop(0), targets.shape[1]
            if not tokens:
                continue
            target = np.zeros_like(known)
            np.put_along_axis(target, targets, True, axis=1)
            after = known | target
            progress = (total - max(total - int(after[0].sum()), 1)) / total
            steps.append(
                Step(
                    index=len(steps),
                    stage=stage,
                    kind=kind,
                    known=_positions(known),
                    targets=_positions(target),
                    context=_positions(visible & ~after),
                    diffusion_steps=count,
                    groups=token_groups(tokens, count, method.fts if kind == RECONSTRUCTION else None),
                    progress=progress,
                    guided=method.guidance.guides(progress),
                    scale=method.guidance.at(progress),
                )
            )
            known = after
    first = everything[:, : max(0, round(method.revise * total) - (total - everything.shape[1]))]
    if first.size:
        steps.append(_revision(steps[-1], first, total, schedule.diffusion[2]))
    return Plan(method=method, grid=tuple(grid), batch=batch, steps=tuple(steps))


def _revision(last: Step, targets: np.ndarray, total: int, diffusion: int) -> Step:
    """The AR step after the ``last`` one, guided alike, that draws ``targets`` (batch, n) again, all others known."""
    target = np.zeros((len(targets), total), dtype=bool)
    np.put_along_axis(target, targets, True, axis=1)
    return replace(
        last,
        index=last.index + 1,
        kind=REVISION,
        known=_positions(~target),
        targets=_positions(target),
        context=targets[:, :0],
        diffusion_steps=diffusion,
        groups=token_groups(targets.shape[1], diffusion, None),
    )


def token_groups(tokens: int, diffusion_steps: int, fts: FTS | None) -> tuple[TokenGroup, ...]:
    """The groups of one AR step of so many ``tokens``, most diffusion steps first."""
    if fts is None:
        return (TokenGroup(tokens, diffusion_steps),)
    detail = fts.count(tokens)
    groups = TokenGroup(detail, fts.detail_steps, detail=True), TokenGroup(tokens - detail, diffusion_steps)
    return tuple(sorted((group for group in groups if group.tokens), key=lambda group: -group.diffusion_steps))


def _subsets(schedule: Schedule, grid: tuple[int, int], unknown: np.ndarray | None = None) -> list[np.ndarray]:
    """The raster positions of every stage's tokens, ascending: all, or those that are ``unknown``."""
    stage = stage_of_tokens(grid, schedule.stages, schedule.partition)
    stage = stage if unknown is None else np.where(unknown, stage, 0)
    return [np.flatnonzero(stage.ravel() == k) for k in range(1, schedule.stages + 1)]


def _counts(schedule: Schedule, whole: list[int], unknown: list[int]) -> list[list[int]]:
    """Tokens per AR step of every stage, for stages of which ``unknown`` of ``whole`` tokens are decoded."""
    steps = [-(-count * part // size) for count, part, size in zip(steps_per_stage(schedule, whole), unknown, whole)]
    split = even_counts if schedule.order == "gtr" else cosine_counts
    return [split(part, count) if count else [] for part, count in zip(unknown, steps)]


def _positions(mask: np.ndarray) -> np.ndarray:
    """Row-wise positions of a (batch, L) mask with equal counts -> (batch, n), ascending."""
    return np.nonzero(mask)[1].reshape(mask.shape[0], -1)
