"""Search for the best schedule at a given cost: random candidates, halved in rounds, checked on seeds never seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..costs.flops import report
from ..errors import GtRError
from ..models import ModelSpec
from ..plans.fts import FTS
from ..plans.method import Guidance, Method
from ..plans.partition import PARTITIONS, stage_of_tokens
from ..plans.schedule import SCOPES, Schedule
from . import tables
from .evaluate import Effort, Evaluation, evaluate

FIGURE, KEPT = "frechet", 3
DRAWS = 500  # per candidate: one in twenty or so has the cost, or hardly any


@dataclass(frozen=True)
class Space:
    """What is drawn from: stages, AR steps of each, diffusion steps, decoder scope, partition, guidance, FTS.

    No stage has fewer tokens per AR step than the one before it.
    """

    stages: Sequence[int] = (2, 3, 4, 5)
    steps: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24)
    start: Sequence[int] = (25, 35, 50, 75, 100)
    end: Sequence[int] = (10, 15, 20, 25, 35, 50)
    reconstruction: Sequence[int] = (10, 15, 20, 25, 35)
    scopes: Sequence[str] = SCOPES
    partitions: Sequence[str] = PARTITIONS
    guidance: Sequence[Guidance] = (Guidance(1.0),)
    fts: Sequence[FTS | None] = (None, FTS(0.1, 50), FTS(0.25, 50))


@dataclass(frozen=True)
class CostTarget:
    """``speedup`` times fewer FLOPs than the origin of ``spec``, at most ``slack`` (a share) more than that."""

    spec: ModelSpec
    speedup: float
    slack: float = 0.06

    def fits(self, method: Method) -> bool:
        return self.speedup <= self.reached(method) <= self.speedup * (1 + self.slack)

    def reached(self, method: Method) -> float:
        """How many times fewer FLOPs a method needs."""
        return report(method, self.spec)["speedup"]


def candidates(space: Space, target: CostTarget, count: int, seed: int) -> list[Method]:
    """``count`` different random methods of that cost. Raises GtRError when there are hardly any."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for _ in range(DRAWS * count):
        method = _draw(space, target.spec.grid, generator)
        if method is not None and method.name not in found and target.fits(method):
            found[method.name] = method
            if len(found) == count:
                return list(found.values())
    raise GtRError(
        f"{len(found)} of {count} candidates found at {target.speedup:g} x: choose a target that the space "
        "can reach, or ask for fewer candidates"
    )


def search(
    evaluation: Evaluation,
    methods: Sequence[Method],
    seeds: Sequence[int],
    images: int,
    measures: tables.Measures,
    effort: Effort,
) -> Iterator[list[dict]]:
    """:func:`tables.rows` of every one of the :func:`rounds`, best first: all methods, then a third of them with twice
    the images, and so on until at most ``KEPT`` are left, which are measured once more."""
    left = list(methods)
    for each in rounds(len(methods), images):
        left = left[: each.methods]
        features = evaluate(evaluation, left, seeds, each.images, effort)
        rows = tables.rows(features, seeds, measures, {})
        rows.sort(key=lambda row: row["figures"][FIGURE]["mean"])
        yield rows
        by_name = {method.name: method for method in left}
        left = [by_name[row["method"]] for row in rows]


@dataclass(frozen=True)
class Round:
    """How many methods are compared, and on how many images per seed."""

    methods: int
    images: int


def rounds(methods: int, images: int) -> list[Round]:
    """Those of a search that begins with so many methods and images."""
    found = [Round(methods, images)]
    while found[-1].methods > KEPT:
        found.append(Round(max(KEPT, -(-found[-1].methods // 3)), 2 * found[-1].images))
    return found


def _draw(space: Space, grid: tuple[int, int], generator: torch.Generator) -> Method | None:
    """A random method; None for a combination that makes no sense."""

    def pick(options: Sequence):
        return options[int(torch.randint(len(options), (), generator=generator))]

    start, end, reconstruction = pick(space.start), pick(space.end), pick(space.reconstruction)
    scope, partition, guidance, fts = (pick(o) for o in (space.scopes, space.partitions, space.guidance, space.fts))
    if end > start or (fts and fts.detail_steps <= reconstruction):
        return None
    rate, steps = 1.0, []
    for size in np.bincount(stage_of_tokens(grid, pick(space.stages), partition).ravel())[1:]:
        fitting = [count for count in space.steps if size / count >= rate]
        if not fitting:
            return None
        steps.append(pick(fitting))
        rate = size / steps[-1]
    detail = f" fts {fts.fraction:g}" if fts else ""
    guided = f" cfg {guidance.scale:g} {guidance.schedule} from {guidance.start:g}" if guidance.enabled else ""
    name = f"{','.join(map(str, steps))} {start},{end},{reconstruction} {partition} {scope}{detail}{guided}"
    return Method(
        Schedule(
            name, "gtr", tuple(steps), diffusion=(start, end, reconstruction), partition=partition, decoder_scope=scope
        ),
        guidance,
        fts,
    )
