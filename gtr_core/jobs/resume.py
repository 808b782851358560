"""One mechanism for work that is done in pieces, by any worker, and goes on where it was stopped.

A task has a key: a hash over everything that its result depends on. What a finished task left behind is kept if it is
whole and has the task's key; all other tasks are done again. Doing a task twice makes the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import GtRError
from ..sampling.sampler import Callback
from .workers import MakeWorker, WorkerPool, run_tasks

# Images of one task; the most images that a job may have.
CHUNK, MOST_IMAGES = 64, 2**31
# The share of a batch's time that is sampling, about; what follows is decoding, measuring and writing.
SAMPLING = 0.9
OnShare = Callable[[float], None]  # what is done of a task, 0 to 1


@dataclass(frozen=True)
class Resumed:
    """The results of all tasks in their order, and which of them were made now."""

    results: list[Any]
    made: list[int]


def resume(
    tasks: Sequence,
    stored: Callable[[Any], Any],
    pool: WorkerPool,
    make_worker: MakeWorker,
    on_done: Callable[[int, int], None] | None = None,
    on_begin: Callable[[int], None] | None = None,
) -> Resumed:
    """Do the tasks of which ``stored(task)`` has no result. ``on_begin`` is told their number before the first, and
    ``on_done(index, done)`` is called when one was made, ``done`` of all tasks being done by then.

    What a worker returns for a task is its result; for None it is read back by ``stored``. Raises GtRError when a
    worker left no result, or as :func:`gtr_core.jobs.workers.run_tasks` does.
    """
    results = [stored(task) for task in tasks]
    finished = [result is not None for result in results]
    missing = [index for index, is_there in enumerate(finished) if not is_there]
    if on_begin is not None:
        on_begin(len(missing))

    def done(number: int, result: Any) -> None:
        results[missing[number]] = result
        finished[missing[number]] = True
        if on_done is not None:
            on_done(missing[number], sum(finished))

    run_tasks(pool, make_worker, [tasks[index] for index in missing], done)
    for index in missing:
        if results[index] is None:
            results[index] = stored(tasks[index])
        if results[index] is None:
            raise GtRError(f"a worker left no result of {tasks[index]}: all workers must see the same files")
    return Resumed(results, missing)


def watch_batch(on_share: OnShare | None, done: int, batch: int, count: int) -> Callback | None:
    """What tells how far a task of ``count`` images is while a ``batch`` of it is sampled, ``done`` being made."""
    if on_share is None:
        return None
    return lambda progress: on_share((done + SAMPLING * batch * progress.share) / count)


def key_of(*facts: Any) -> str:
    """A SHA-256 over plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
