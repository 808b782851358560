"""Progress on standard error: on a terminal a bar with the time to go, which moves within a piece of the work too, in a
log file a line per finished piece."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from datetime import timedelta

from tqdm import tqdm

LAYOUT = "{desc} {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left"
SECONDS_BETWEEN_FRAMES = 0.1


def progress_bar(total: float, *, silent: bool = False) -> tqdm:
    """On standard error, where that is a terminal; a log file gets nothing."""
    bar = tqdm(
        total=total, bar_format=LAYOUT, miniters=0, mininterval=SECONDS_BETWEEN_FRAMES, disable=True if silent else None
    )
    if not bar.disable and -1 in (bar.ncols, bar.nrows):
        bar.ncols = bar.nrows = None  # a terminal that does not know its size, for which tqdm would draw nothing
    return bar


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
        self._bar = progress_bar(1)
        self._made = self._all = 0
        self._started = time.perf_counter()

    def __exit__(self, *_) -> None:
        self._bar.close()

    def doing(self, what: str) -> None:
        """What comes before the work, such as reading a file; for terminals."""
        self._bar.set_description_str(what)

    def begin(self, left: int) -> None:
        """So much is to be made. What comes after other work has a rate of its own."""
        self._made, self._all = 0, left
        self._started = time.perf_counter()
        words = f"0 of {left} {self._unit}" if left else f"all {self._unit} are there"
        self._bar.set_description_str(words, refresh=False)
        self._bar.reset(total=max(left, 1))
        if not left:
            self._bar.update(1)

    def within(self, share: float, size: int = 1) -> None:
        """What is done of a piece of ``size``, 0 to 1, as long as it is not finished; for terminals."""
        self._bar.update(self._made + share * min(size, self._all - self._made) - self._bar.n)

    def piece(self, task: object, done: int, total: int) -> None:
        """A ``task`` was finished, and ``done`` of ``total`` tasks are, with those of an earlier run."""
        left = total - done
        self.show(self._all - left, left, f" ({task})")

    def show(self, made: int, left: int, what: str = "") -> None:
        """``made`` since the beginning and ``left`` to make."""
        self._made = made
        if not self._bar.disable:
            self._bar.set_description_str(f"{made} of {made + left} {self._unit}", refresh=False)
            self._bar.update(made - self._bar.n)
            return
        rate = made / max(time.perf_counter() - self._started, 1e-9)
        to_go = timedelta(seconds=round(left / rate))
        pace = f"{rate:.3g} per second" if rate >= 0.1 else f"{1 / rate:.3g} s each"
        line = f"{made} of {made + left} {self._unit}{what}, {pace}, {to_go} to go"
        print(line, file=sys.stderr, flush=True)
