"""Progress on standard error: on a terminal a bar with the time to go, in a log file a line per finished piece."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from datetime import timedelta

from tqdm import tqdm

LAYOUT = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"


def progress_bar(total: float, *, silent: bool = False) -> tqdm:
    """On standard error, where that is a terminal; a log file gets nothing."""
    return tqdm(total=total, bar_format=LAYOUT, disable=True if silent else None)


class StageProgress(AbstractContextManager):
    """What is being done to one file, and how much of it is done, on terminals only."""

    def __init__(self, *, silent: bool) -> None:
        self._bar = progress_bar(1.0, silent=silent)

    def __exit__(self, *_) -> None:
        self._bar.close()

    def show(self, what: str, share: float) -> None:
        """``share`` is of the whole, 0 to 1."""
        self._bar.set_description_str(what)
        self._bar.update(share - self._bar.n)


class WorkProgress(AbstractContextManager):
    """How far work in pieces is, counted in ``unit``, such as images."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar = progress_bar(0)
        self._pieces = 0
        self._left: int | None = None
        self._started = self._last = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._bar.close()

    def piece(self, task: object, done: int, total: int) -> None:
        """A ``task`` was finished. ``done`` of ``total`` counts those of an earlier run, which say nothing of the rate;
        when more is left than before, other work has begun."""
        left = total - done
        self._pieces = 1 if self._left is None or left >= self._left else self._pieces + 1
        self.show(self._pieces, left, f" ({task})")

    def show(self, made: int, left: int, what: str = "") -> None:
        """``made`` in this run and ``left`` to make."""
        now = time.perf_counter()
        if self._left is not None and left >= self._left:
            self._started = self._last
            self._bar.reset()
        self._left, self._last = left, now
        if not self._bar.disable:
            self._bar.total = made + left
            self._bar.set_description_str(f"{made} of {made + left} {self._unit}", refresh=False)
            self._bar.update(made - self._bar.n)
            return
        rate = made / max(now - self._started, 1e-9)
        to_go = timedelta(seconds=round(left / rate))
        pace = f"{rate:.3g} per second" if rate >= 0.1 else f"{1 / rate:.3g} s each"
        line = f"{made} of {made + left} {self._unit}{what}, {pace}, {to_go} to go"
        print(line, file=sys.stderr, flush=True)
