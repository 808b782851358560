"""Plans: a schedule resolved for a grid and the seeds of a batch. A plan is data; one loop runs every plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..device import check_budget
from ..errors import GtRError
from ..noise import ORDER, generator
from .orders import halton_order, raster_order, shifted, subsample_order
from .partition import check_grid, stage_of_tokens
from .schedule import Schedule, cosine_counts, diffusion_steps, even_counts, steps_per_stage

LARGEST_PLAN = 2**32  # bytes


@dataclass(frozen=True, eq=False)
class Step:
    """One AR step. Index arrays are (batch, n) int64 raster positions, ascending within an image.

    ``known`` holds values before the step, ``positions`` are decoded by it, ``context`` are the other masked
    positions that the decoder sees. ``progress`` is (L - m') / L with m' the masked tokens after the step (at
    least 1): the weight of the linear guidance schedule (docs/upstream.md 1.9).
    """

    stage: int
    reconstruction: bool
    known: np.ndarray
    positions: np.ndarray
    context: np.ndarray
    diffusion_steps: int
    progress: float

    @property
    def tokens(self) -> int:
        return self.positions.shape[1]


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of one run for ``batch`` images on ``grid`` (h, w); the first step's ``known`` is given."""

    schedule: Schedule
    grid: tuple[int, int]
    batch: int
    steps: tuple[Step, ...]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def part(self, images: slice) -> Plan:
        """The plan of some of its images."""
        steps = tuple(
            replace(step, known=step.known[images], positions=step.positions[images], context=step.context[images])
            for step in self.steps
        )
        return replace(self, batch=len(range(self.batch)[images]), steps=steps)

    def to_dict(self, image: int = 0) -> dict:
        """The plan of one image as plain data (the ``schedule`` verb's JSON)."""
        return {
            "preset": self.schedule.name,
            "grid": list(self.grid),
            "steps": [
                {
                    "stage": step.stage,
                    "tokens": step.tokens,
                    "diffusion_steps": step.diffusion_steps,
                    "positions": step.positions[image].tolist(),
                }
                for step in self.steps
            ],
        }


def make_plan(
    schedule: Schedule, grid: tuple[int, int], seeds: Sequence[int], *, unknown: np.ndarray | None = None
) -> Plan:
    """Resolve a schedule: one random order per seed, over all tokens or the ``unknown`` ones ((h, w) bool).

    With ``unknown`` the rates of the schedule are kept: a stage of which a part is unknown gets that part of its
    AR steps, rounded up. Raises GtRError for an empty batch, a wrong mask, or settings that do not fit the grid.
    """
    if not seeds:
        raise GtRError("an empty batch: expected at least 1 image; set the batch size to 1 or more")
    check_grid(grid)
    mask = np.ones(grid, dtype=bool) if unknown is None else np.asarray(unknown, dtype=bool)
    if mask.shape != tuple(grid):
        raise GtRError(f"a mask of {mask.shape} tokens for a grid of {tuple(grid)}: give one value per token")
    whole, subsets = _subsets(schedule, grid), _subsets(schedule, grid, mask)
    counts = _counts(schedule, [len(s) for s in whole], [len(s) for s in subsets])
    # Every step holds each position once, int64.
    check_budget(
        len(seeds) * mask.size * 8 * sum(bool(size) for sizes in counts for size in sizes),
        "the plan's steps need",
        LARGEST_PLAN,
    )
    orders = [token_sequences(schedule, grid, generator(seed, ORDER), mask) for seed in seeds]
    return plan_from_sequences(schedule, grid, [np.stack(stage) for stage in zip(*orders)], counts)


def token_sequences(
    schedule: Schedule, grid: tuple[int, int], stream: torch.Generator, unknown: np.ndarray | None = None
) -> list[np.ndarray]:
    """Per stage the raster positions of one image's ``unknown`` tokens ((h, w) bool; None = all) in their order."""
    return [_sequence(schedule, grid, subset, stream) for subset in _subsets(schedule, grid, unknown)]


def plan_from_sequences(
    schedule: Schedule, grid: tuple[int, int], sequences: Sequence[np.ndarray], counts: Sequence[Sequence[int]]
) -> Plan:
    """A plan from explicit orders: per stage a (batch, n_k) array in generation order and the tokens per AR step.

    Positions in no sequence are known from the start. Steps without tokens are left out.
    """
    total, batch = grid[0] * grid[1], sequences[0].shape[0]
    everything = np.concatenate(sequences, axis=1)
    known = np.ones((batch, total), dtype=bool)
    np.put_along_axis(known, everything, False, axis=1)
    visible = np.zeros_like(known)
    generation = sum(map(len, counts)) if schedule.stages == 1 else sum(map(len, counts[:-1]))
    diffusion = diffusion_steps(schedule, generation, sum(map(len, counts)) - generation)
    steps: list[Step] = []
    for k, (sequence, sizes) in enumerate(zip(sequences, counts), start=1):
        np.put_along_axis(visible, sequence if schedule.decoder_scope == "stage" else everything, True, axis=1)
        for group in np.split(sequence, np.cumsum(sizes)[:-1], axis=1) if sizes else ():
            count = diffusion.pop(0)
            if not group.shape[1]:
                continue
            target = np.zeros_like(known)
            np.put_along_axis(target, group, True, axis=1)
            after = known | target
            masked = max(total - int(after[0].sum()), 1)
            steps.append(
                Step(
                    stage=k,
                    reconstruction=1 < k == schedule.stages,
                    known=_positions(known),
                    positions=_positions(target),
                    context=_positions(visible & ~after),
                    diffusion_steps=count,
                    progress=(total - masked) / total,
                )
            )
            known = after
    return Plan(schedule=schedule, grid=tuple(grid), batch=batch, steps=tuple(steps))


def _subsets(schedule: Schedule, grid: tuple[int, int], unknown: np.ndarray | None = None) -> list[np.ndarray]:
    """The raster positions of every stage's tokens, ascending: all, or those that are ``unknown``."""
    stage = stage_of_tokens(grid, schedule.stages, schedule.partition)
    stage = stage if unknown is None else np.where(unknown, stage, 0)
    return [np.flatnonzero(stage.ravel() == k) for k in range(1, schedule.stages + 1)]


def _sequence(schedule: Schedule, grid: tuple[int, int], subset: np.ndarray, stream: torch.Generator) -> np.ndarray:
    """The positions ``subset`` of one stage in one image's generation order."""
    if schedule.order in ("gtr", "random"):
        return subset[torch.randperm(len(subset), generator=stream).numpy()]
    order = {
        "raster": lambda: raster_order(grid),
        "subsample": lambda: subsample_order(grid, schedule.phases),
        "halton": lambda: halton_order(grid),
    }[schedule.order]()
    order = shifted(order, stream) if schedule.shift else order
    return order[np.isin(order, subset)]


def _counts(schedule: Schedule, whole: list[int], unknown: list[int]) -> list[list[int]]:
    """Tokens per AR step of every stage, for stages of which ``unknown`` of ``whole`` tokens are decoded."""
    steps = [-(-count * part // size) for count, part, size in zip(steps_per_stage(schedule, whole), unknown, whole)]
    split = even_counts if schedule.order == "gtr" else cosine_counts
    return [split(part, count) if count else [] for part, count in zip(unknown, steps)]


def _positions(mask: np.ndarray) -> np.ndarray:
    """Row-wise positions of a (batch, L) mask with equal counts -> (batch, n), ascending."""
    return np.nonzero(mask)[1].reshape(mask.shape[0], -1)
