"""How a run evaluates its model: plainly, or with a cache that replaces full evaluations by cheaper ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import GtRError
from .fts import FTS
from .plan import Plan
from .schedule import Schedule

GUIDANCE_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: ``scale`` 1 = off; ``linear`` grows with the decoded part (docs/upstream.md 1.9).

    Until the part ``start`` of a picture's tokens is decoded nothing is guided, and the second half is not computed.
    """

    scale: float = 1.0
    schedule: str = "linear"
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in GUIDANCE_SCHEDULES:
            raise GtRError(f"guidance schedule '{self.schedule}': expected one of {', '.join(GUIDANCE_SCHEDULES)}")
        if not np.isfinite(self.scale):
            raise GtRError(f"guidance scale {self.scale}: expected a finite number")
        if not 0 <= self.start <= 1:
            raise GtRError(f"guidance from {self.start:g} on: expected a part of the tokens, 0 to 1")

    @property
    def enabled(self) -> bool:
        return self.scale != 1.0

    def at(self, progress: float) -> float:
        """The scale of an AR step with ``progress`` in [0, 1]; 1 where its second half is not needed."""
        if progress < self.start:
            return 1.0
        return self.scale if self.schedule == "constant" else 1 + (self.scale - 1) * progress


class Cache(Protocol):
    """Settings of a cache; they start an engine per run, which holds all state."""

    def start(self, model: Any, plan: Plan, guidance: Guidance) -> Any: ...


@dataclass(frozen=True)
class Method:
    """What is compared, named by its schedule."""

    schedule: Schedule
    guidance: Guidance = Guidance()
    fts: FTS | None = None
    cache: Cache | None = None
    temperature: float = 1.0

    @property
    def name(self) -> str:
        return self.schedule.name

    def settings(self) -> dict:
        """Everything that the pictures depend on, as plain data."""
        schedule = {key: value for key, value in asdict(self.schedule).items() if key not in ("name", "note")}
        return {
            "schedule": schedule,
            "guidance": asdict(self.guidance),
            "temperature": self.temperature,
            "fts": None if self.fts is None else asdict(self.fts),
            "cache": None if self.cache is None else [type(self.cache).__name__, asdict(self.cache)],
        }
