"""Independent tasks on many workers: in this process, in processes of this machine, or in actors of a Ray cluster.

A worker loads the model when its first task comes, then does task after task. A task writes files of its own, each
beside its name and then renamed, so doing it twice makes the same files: a task whose worker died is given to another
one, and one that takes far longer than the others is given to an idle one as well. Ray is an optional extra
(``pip install ray``); it is imported here, when it is asked for.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, Protocol

import torch

from ..device import is_out_of_memory
from ..errors import GtRError, first_line

ENGINES = ("local", "ray")
MOST_WORKERS, RETRIES = 4096, 2

# A task is a straggler after so many times the median; the pause in seconds between two looks at the workers.
STRAGGLER, PAUSE = 3.0, 1.0
Worker = Callable[[Any], Any]
MakeWorker = Callable[[str], Worker]  # of a device; sent to processes: a function of a module, or a partial of one
OnDone = Callable[[int, Any], None]


@dataclass(frozen=True)
class WorkerPool:
    """Who does the tasks. ``local`` without ``workers`` is this process alone, with all of torch's threads.

    Every other worker has ``threads`` of them, whatever the number of workers: sums split among other threads round
    differently.
    """

    name: str = "local"
    workers: int | None = None
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise GtRError(f"engine '{self.name}': expected {' or '.join(ENGINES)}")
        if not 1 <= (1 if self.workers is None else self.workers) <= MOST_WORKERS or not 1 <= self.threads <= 1024:
            raise GtRError(
                f"{self.workers} workers of {self.threads} threads: expected 1 to {MOST_WORKERS} workers of "
                "1 to 1024 threads"
            )

    @property
    def alone(self) -> bool:
        """Whether this process does the work."""
        return self.name == "local" and self.workers is None


@dataclass(frozen=True)
class Outcome:
    """How a task of the member ``slot`` ended: with a ``result``, an ``error`` of the input, or the member ``lost``."""

    slot: int
    result: Any = None
    error: str = ""
    lost: str = ""


class Crew(Protocol):
    """The workers of a pool, by number. ``send`` makes the worker if it is not there."""

    size: int

    def send(self, slot: int, task: Any) -> None: ...

    def outcomes(self, seconds: float) -> list[Outcome]: ...

    def close(self) -> None: ...


def run_tasks(pool: WorkerPool, make_worker: MakeWorker, tasks: Sequence, on_done: OnDone | None = None) -> list:
    """The results of all tasks, in their order. ``on_done(index, result)`` is called here, as they come.

    Tasks, results and ``make_worker`` are plain data where the pool is not this process alone. Raises GtRError of
    a worker as it is, and one of its own when a task has lost ``RETRIES + 1`` workers.
    """
    on_done = on_done or (lambda index, result: None)
    if pool.alone or not tasks:
        work, results = make_worker(pool.device) if tasks else None, []
        for index, task in enumerate(tasks):
            results.append(work(task))
            on_done(index, results[-1])
        return results
    kind = Processes if pool.name == "local" else Actors
    with closing(kind(pool, make_worker, len(tasks))) as crew:
        return _dispatch(crew, tasks, on_done)


def _dispatch(crew: Crew, tasks: Sequence, on_done: OnDone) -> list:
    waiting, results, losses = deque(range(len(tasks))), {}, Counter()
    busy: dict[int, tuple[int, float]] = {}  # slot -> task, when it got it
    took: list[float] = []
    while len(results) < len(tasks):
        for slot in sorted(set(range(crew.size)) - busy.keys()):
            index = waiting.popleft() if waiting else _straggler(busy, took)
            if index is not None:
                crew.send(slot, tasks[index])
                busy[slot] = index, time.monotonic()
        for outcome in crew.outcomes(PAUSE):
            index, since = busy.pop(outcome.slot, (None, 0.0))
            if index is None or index in results:
                continue  # it died idle, or the other one of two was faster
            if outcome.error:
                raise GtRError(outcome.error)
            if outcome.lost:
                losses[index] += 1
                if losses[index] > RETRIES:
                    raise GtRError(
                        f"{losses[index]} workers died at the same task ({outcome.lost}): use fewer workers "
                        "or a smaller batch, and see what they wrote above"
                    )
                if index not in (other for other, _ in busy.values()):
                    waiting.appendleft(index)
            else:
                results[index] = outcome.result
                took.append(time.monotonic() - since)
                on_done(index, outcome.result)
    return [results[index] for index in range(len(tasks))]


def _straggler(busy: dict[int, tuple[int, float]], took: list[float]) -> int | None:
    """A task that one worker alone has been at for far longer than tasks take."""
    copies = Counter(index for index, _ in busy.values())
    late = [
        (since, index)
        for index, since in busy.values()
        if copies[index] == 1 and took and time.monotonic() - since > STRAGGLER * median(took)
    ]
    return min(late)[1] if late else None


class Member:
    """A worker where it lives."""

    def __init__(self, make_worker: MakeWorker, device: str, threads: int):
        self.make_worker, self.device, self.threads = make_worker, device, threads
        self.work: Worker | None = None

    def do(self, task: Any) -> tuple[Any, str]:
        """The result, or what is wrong with the input in one line."""
        try:
            if self.work is None:
                torch.set_num_threads(self.threads)
                self.work = self.make_worker(self.device)
            return self.work(task), ""
        except GtRError as error:
            return None, str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None, f"a worker is out of memory ({first_line(error)}): make the batch smaller or use fewer workers"


class Processes:
    """Spawned processes of this machine, with the machine's GPUs in turn where the device is ``cuda``."""

    def __init__(self, pool: WorkerPool, make_worker: MakeWorker, most: int):
        self.pool, self.make_worker = pool, make_worker
        self.size = min(pool.workers or 1, most)
        self.context = multiprocessing.get_context("spawn")
        self.members: dict[int, tuple[multiprocessing.process.BaseProcess, Connection]] = {}

    def send(self, slot: int, task: Any) -> None:
        if slot not in self.members:
            ours, theirs = self.context.Pipe()
            member = Member(self.make_worker, _device(self.pool.device, slot), self.pool.threads)
            process = self.context.Process(target=_serve, args=(theirs, member), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self.members[slot] = process, ours
        with suppress(OSError):  # one that has died by now is found by outcomes()
            self.members[slot][1].send(task)

    def outcomes(self, seconds: float) -> list[Outcome]:
        ready, found = wait([pipe for _, pipe in self.members.values()], seconds), []
        for slot, (process, pipe) in list(self.members.items()):
            if pipe in ready:
                try:
                    found.append(Outcome(slot, *pipe.recv()))
                except (EOFError, OSError):
                    del self.members[slot]
                    pipe.close()
                    process.join()
                    found.append(_end_of(slot, process.exitcode))
        return found

    def close(self) -> None:
        """End all processes, and what they are at."""
        for process, pipe in self.members.values():
            pipe.close()
            process.terminate()
        for process, _ in self.members.values():
            process.join()


def _serve(pipe: Connection, member: Member) -> None:
    """What a worker process does: one task after another, until the other end of the pipe is closed."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        while True:
            pipe.send(member.do(pipe.recv()))


def _end_of(slot: int, code: int | None) -> Outcome:
    if code == 1:  # an exception, whose traceback Python has printed: another process would end the same way
        return Outcome(slot, error="a worker failed; the reason is above")
    return Outcome(slot, lost=f"exit code {code}{', killed: out of memory?' if code == -9 else ''}")


def _device(device: str, slot: int) -> str:
    return f"cuda:{slot % torch.cuda.device_count()}" if device == "cuda" else device


class Actors:
    """Actors of a Ray cluster: that of RAY_ADDRESS, or one on this machine. Each has a GPU, or ``threads`` cores.

    This package, models and outputs are at the same paths on all machines.
    """

    def __init__(self, pool: WorkerPool, make_worker: MakeWorker, most: int):
        self.ray, self.pool, self.make_worker = _ray(), pool, make_worker
        self.actors: dict[int, Any] = {}
        self.running: dict[Any, int] = {}
        self.owned = not self.ray.is_initialized()
        if self.owned:
            _connect(self.ray, pool)
        self.needs = {"num_cpus": pool.threads, "num_gpus": int(pool.device.startswith("cuda"))}
        there = self.ray.cluster_resources()
        room = int(
            min(
                there.get(kind, 0) // self.needs[need]
                for need, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU"))
                if self.needs[need]
            )
        )
        if room < 1:
            self.close()
            raise GtRError(
                f"the Ray cluster has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs, a "
                f"worker needs {self.needs['num_cpus']} and {self.needs['num_gpus']}: lower --threads, or "
                "use another --device"
            )
        self.size = min(pool.workers or room, room, most)

    def send(self, slot: int, task: Any) -> None:
        if slot not in self.actors:
            kind = self.ray.remote(**self.needs)(Member)
            device = self.pool.device.partition(":")[0]  # Ray shows every actor the one GPU that it has
            self.actors[slot] = kind.remote(self.make_worker, device, self.pool.threads)
        self.running[self.actors[slot].do.remote(task)] = slot

    def outcomes(self, seconds: float) -> list[Outcome]:
        ready, _ = self.ray.wait(list(self.running), timeout=seconds)
        return [self._outcome(reference) for reference in ready]

    def _outcome(self, reference: Any) -> Outcome:
        slot, errors = self.running.pop(reference), self.ray.exceptions
        try:
            return Outcome(slot, *self.ray.get(reference))
        except (errors.RayActorError, errors.OutOfMemoryError) as error:
            del self.actors[slot]
            return Outcome(slot, lost=first_line(error))

    def close(self) -> None:
        for actor in self.actors.values():
            self.ray.kill(actor)
        if self.owned:
            self.ray.shutdown()


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported: it would report to its makers
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise GtRError(
            f"--engine ray needs Ray ({first_line(error)}): pip install ray, or use --engine local"
        ) from error


def _connect(ray: ModuleType, pool: WorkerPool) -> None:
    address = os.environ.get("RAY_ADDRESS")
    paths = [str(Path(__file__).resolve().parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    settings: dict[str, Any] = {
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, paths))}},
        "logging_level": logging.ERROR,
    }
    if not address:
        cores = max(os.cpu_count() or 1, (pool.workers or 1) * pool.threads)
        settings |= {"num_cpus": cores, "include_dashboard": False}
    try:
        ray.init(address=address or "local", **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise GtRError(
            f"no Ray cluster at {address or 'this machine'} ({first_line(error)}): correct RAY_ADDRESS, or "
            "unset it to start one here"
        ) from error
