"""Schedules: recipes without a grid. A plan is a schedule resolved for a grid and seeds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

import numpy as np

from ..diffusion.chain import DiffusionSpec
from ..errors import GtRError
from .orders import ORDERS, PHASES
from .partition import PARTITIONS

PROFILES = ("linear", "disa-linear", "disa-cosine", "disa-two-stage")
SCOPES = ("full", "stage")
MOST_STEPS = 65_536


@dataclass(frozen=True)
class Schedule:
    """How many tokens are decoded when, and with how many diffusion steps.

    ``order`` is ``gtr`` (stages of a checkerboard partition; the last stage reconstructs), or one of ``random`` (MAR's
    own), ``raster``, ``subsample`` and ``halton``, which have one stage and cosine counts. AR steps per stage come from
    ``steps`` (L_1, ..., L_K) or from ``rates`` (r_k = |S_k| / L_k tokens per step), one of the two.

    ``diffusion`` is (first AR step, last AR step of the generation stage, reconstruction stage and revision), linear in
    between, or after DiSA's formulas by ``profile`` (docs/upstream.md 5); ``max_timestep`` clips the chain's
    timesteps, as DiSA's. ``decoder_scope`` ``stage`` hides the mask tokens of later stages from the decoder, ``full``
    shows all. ``phases`` is subsample's order of parities; ``shift`` moves the Halton sequence by a random number of
    places per image.
    ``note`` says what a preset is, ``remark`` what a user should know about this one; neither changes anything.
    """

    name: str
    order: str
    steps: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    diffusion: tuple[int, int, int] = (50, 20, 20)
    partition: str = "diagonal"
    decoder_scope: str = "full"
    profile: str = "linear"
    max_timestep: int | None = None
    phases: str = "checkerboard"
    shift: bool = False
    note: str = field(default="", compare=False)
    remark: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self._check_choice("order", self.order, tuple(ORDERS))
        self._check_choice("partition", self.partition, PARTITIONS)
        self._check_choice("decoder_scope", self.decoder_scope, SCOPES)
        self._check_choice("profile", self.profile, PROFILES)
        self._check_choice("phases", self.phases, tuple(PHASES))
        if self.max_timestep is not None and self.max_timestep < 1:
            raise GtRError(f"schedule '{self.name}': timesteps clipped at {self.max_timestep}, expected 1 or more")
        if bool(self.steps) == bool(self.rates):
            raise GtRError(
                f"schedule '{self.name}': expected either AR steps per stage or rates, found steps "
                f"{list(self.steps)} and rates {list(self.rates)}: give exactly one of the two"
            )
        if self.steps and not 1 <= min(self.steps) <= max(self.steps) <= MOST_STEPS:
            raise GtRError(
                f"schedule '{self.name}': steps per stage {list(self.steps)}, expected 1 to {MOST_STEPS} each"
            )
        if self.rates and not all(math.isfinite(rate) and rate >= 1 for rate in self.rates):
            raise GtRError(
                f"schedule '{self.name}': rates {list(self.rates)} tokens per step, expected at least 1 each"
            )
        if self.order != "gtr" and self.stages != 1:
            raise GtRError(f"schedule '{self.name}': order '{self.order}' has one stage, found {self.stages}")
        if len(self.diffusion) != 3 or not all(1 <= count <= 1000 for count in self.diffusion):
            raise GtRError(
                f"schedule '{self.name}': diffusion steps {list(self.diffusion)}, expected three numbers "
                "from 1 to 1000 (start, end, reconstruction)"
            )

    @property
    def stages(self) -> int:
        """K, the number of stages."""
        return len(self.steps or self.rates)

    def _check_choice(self, what: str, value: str, options: tuple[str, ...]) -> None:
        if value not in options:
            raise GtRError(f"schedule '{self.name}': {what} '{value}', expected one of {', '.join(options)}")


def parse_numbers(text: str, kind: type) -> tuple:
    """A list of numbers as people write it: 24, 6, 2 or 24; 6; 2. Raises GtRError.

    Between semicolons a comma is a decimal one: 2,67; 64.
    """
    text = text.replace("\uff0c", ",").replace("\uff1b", ";")
    parts = text.replace(",", ".").split(";") if ";" in text and kind is float else re.split("[,;]", text)
    try:
        return tuple(kind(part) for part in parts if part.strip())
    except ValueError as error:
        kinds = "whole numbers" if kind is int else "numbers"
        raise GtRError(f"'{text}': expected {kinds} separated by commas, such as 24, 6, 2") from error


def even_counts(tokens: int, steps: int) -> list[int]:
    """``tokens`` in ``steps`` parts that differ by at most one, spread evenly."""
    return [(k + 1) * tokens // steps - k * tokens // steps for k in range(steps)]


def cosine_counts(tokens: int, steps: int) -> list[int]:
    """MAR's tokens per AR step (docs/upstream.md 1.9). With more steps than tokens some are 0."""
    masked, counts = tokens, []
    for step in range(steps):
        following = math.floor(tokens * np.cos(math.pi / 2 * (step + 1) / steps))
        following = max(1, min(masked - 1, following))
        counts.append(masked if step == steps - 1 else masked - following)
        masked = following
    return counts


def steps_per_stage(schedule: Schedule, sizes: list[int]) -> list[int]:
    """AR steps L_k for stages of ``sizes`` tokens.

    Raises GtRError when there are more steps than tokens in a stage, or a rate above a stage's size.
    """
    if schedule.steps:
        steps = list(schedule.steps)
    else:
        steps = [round(size / rate) for size, rate in zip(sizes, schedule.rates)]
        for k, (size, rate) in enumerate(zip(sizes, schedule.rates), start=1):
            if rate > size:
                raise GtRError(
                    f"rate {rate:g} of stage {k} does not fit: the stage has {size} tokens; use a rate from 1 to {size}"
                )
    if schedule.order == "gtr":
        for k, (size, count) in enumerate(zip(sizes, steps), start=1):
            if count > size:
                raise GtRError(f"{count} AR steps do not fit stage {k}: it has {size} tokens; use at most {size}")
    return steps


def diffusion_steps(schedule: Schedule, generation: int, reconstruction: int) -> list[int]:
    """Diffusion steps of every AR step (stage-aware schedule, docs/gtr.md 3)."""
    start, end, last = schedule.diffusion
    span = max(generation - 1, 1)
    shapes = {
        "linear": lambda k: int(start + (end - start) * k / span + 0.5),
        "disa-linear": lambda k: end + int((span - k) / span * (start - end)),
        "disa-cosine": lambda k: end + int((math.cos(math.pi * k / span) + 1) / 2 * (start - end)),
        "disa-two-stage": lambda k: start if k < span / 2 else end,
    }
    return [shapes[schedule.profile](k) for k in range(generation)] + [last] * reconstruction


def respaced(schedule: Schedule, process: DiffusionSpec) -> DiffusionSpec:
    """A model's noise process with the schedule's clip."""
    return process if schedule.max_timestep is None else replace(process, max_timestep=schedule.max_timestep)
