"""The recipe of a run as one value: how an image is sampled, without a grid, a model or a seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

from ..errors import GtRError
from .fts import FTS
from .schedule import Schedule

GUIDANCE_SCHEDULES = ("linear", "constant")
# Far above every useful scale, and far below what overflows float32.
LARGEST_SCALE = 1000
# A revision needs at least as many known tokens as it draws again.
LARGEST_REVISION = 0.5


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: ``scale`` 1 = off; ``linear`` grows with the decoded part (docs/upstream.md 1.9).

    A step is guided if at least the share ``start`` of an image's tokens is decoded when it ends. Before, the second
    branch is not computed.
    """

    scale: float = 1.0
    schedule: str = "linear"
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in GUIDANCE_SCHEDULES:
            raise GtRError(f"guidance schedule '{self.schedule}': expected one of {', '.join(GUIDANCE_SCHEDULES)}")
        if not abs(self.scale) <= LARGEST_SCALE:
            raise GtRError(f"guidance scale {self.scale:g}: expected a number from -{LARGEST_SCALE} to {LARGEST_SCALE}")
        if not 0 <= self.start <= 1:
            raise GtRError(f"guidance from {self.start:g} on: expected a share of the tokens, 0 to 1")

    @property
    def enabled(self) -> bool:
        return self.scale != 1.0

    def guides(self, progress: float) -> bool:
        """Whether an AR step with ``progress`` in [0, 1] evaluates the second branch."""
        return self.enabled and progress >= self.start

    def at(self, progress: float) -> float:
        """The scale of an AR step with ``progress``; 1 for a step that is not guided."""
        if not self.guides(progress):
            return 1.0
        return self.scale if self.schedule == "constant" else 1 + (self.scale - 1) * progress


class Cache(Protocol):
    """Settings of a cache, a frozen dataclass. Runs, plans and specs are those of the folders above this one.

    ``accelerated`` says whether the run may prepare the model to be faster (packed weights), ``own_head`` whether it
    evaluates the head in a way of its own: in float32, without graphs.
    """

    accelerated: ClassVar[bool]
    own_head: ClassVar[bool]

    def start(self, run: Any) -> Any:
        """What evaluates the model in one run (a ``sampling.evaluator.Evaluator``) and holds all of its state.

        Raises GtRError where the cache does not apply.
        """

    def flops(self, plan: Any, step: Any, spec: Any) -> Any:
        """FLOPs of one AR step for one image (``models.spec.Flops``), or None for those of a full evaluation."""

    def kept_bytes(self, plan: Any, spec: Any, itemsize: int) -> int:
        """What a run keeps at most, for weights of so many bytes a number."""

    def summary(self, plan: Any, spec: Any) -> str:
        """A line for the report of a run; empty for none."""


@dataclass(frozen=True)
class Method:
    """Everything that decides how an image is sampled. It travels whole; its name is its schedule's.

    ``revise`` is the share of the tokens, those drawn first, that one more AR step draws again when it knows all others
    (docs/how_it_works.md, Revision). Tokens that are given count as drawn first, and stay.
    """

    schedule: Schedule
    guidance: Guidance = Guidance()
    fts: FTS | None = None
    cache: Cache | None = None
    temperature: float = 1.0
    revise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise GtRError(f"temperature {self.temperature}: expected 0 or more")
        if not 0 <= self.revise <= LARGEST_REVISION:
            raise GtRError(f"revise {self.revise:g}: expected a share of the tokens, 0 to {LARGEST_REVISION:g}")

    @property
    def own_head(self) -> bool:
        """Whether a cache evaluates the head in a way of its own."""
        return self.cache is not None and self.cache.own_head

    @property
    def name(self) -> str:
        return self.schedule.name

    def renamed(self, name: str) -> Method:
        """The same method under another name."""
        return replace(self, schedule=replace(self.schedule, name=name))

    def settings(self) -> dict:
        """Everything that the images depend on, as plain data."""
        schedule = {key: value for key, value in asdict(self.schedule).items() if key not in ("name", "note", "remark")}
        return {
            "schedule": schedule,
            "guidance": asdict(self.guidance),
            "temperature": self.temperature,
            "revise": self.revise,
            "fts": None if self.fts is None else asdict(self.fts),
            "cache": None if self.cache is None else [type(self.cache).__name__, asdict(self.cache)],
        }
