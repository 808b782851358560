"""Work in pieces: what is there is kept, what is missing is made, and what was lost is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.jobs.resume import Resumed, key_of, resume
from gtr_pack.gtr_core.jobs.workers import WorkerPool

ALONE = WorkerPool()


class Folder:
    """Squares of numbers, one file each, made by workers that return nothing or what they made."""

    def __init__(self, path: Path, returning: bool = False):
        self.path, self.returning = path, returning
        self.asked: list[int] = []
        self.opened: list[str] = []

    def stored(self, task: int) -> int | None:
        file = self.path / f"{task}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def write(self, task: int, value: int) -> None:
        (self.path / f"{task}.json").write_text(json.dumps(value))

    def make(self, task: int) -> int | None:
        self.asked.append(task)
        self.write(task, task**2)
        return task**2 if self.returning else None

    def worker(self, device: str):
        self.opened.append(device)
        return self.make


@pytest.fixture(params=[False, True], ids=["read back", "returned"])
def folder(request, tmp_path) -> Folder:
    return Folder(tmp_path, returning=request.param)


def test_what_is_stored_is_kept_and_what_is_missing_is_made(folder):
    folder.write(2, 1000)
    folder.write(5, 2000)
    result = resume([1, 2, 3, 5], folder.stored, ALONE, folder.worker)
    assert folder.asked == [1, 3]
    assert result == Resumed([1, 1000, 9, 2000], [0, 2])


def test_results_come_in_the_order_of_the_tasks(folder):
    folder.write(3, 9)
    assert resume([4, 3, 0, 2], folder.stored, ALONE, folder.worker).results == [16, 9, 0, 4]


def test_what_is_there_in_full_opens_no_worker(folder):
    folder.write(7, 49)
    assert resume([7], folder.stored, ALONE, folder.worker) == Resumed([49], [])
    assert resume([], folder.stored, ALONE, folder.worker) == Resumed([], [])
    assert folder.opened == folder.asked == []


def test_a_result_that_counts_as_false_is_a_result(folder):
    folder.write(1, 0)
    assert resume([0, 1], folder.stored, ALONE, folder.worker) == Resumed([0, 0], [0])
    assert folder.asked == [0]


def test_progress_counts_what_was_there_too(folder):
    folder.write(1, 1)
    folder.write(3, 9)
    seen = []
    resume([0, 1, 2, 3, 4], folder.stored, ALONE, folder.worker, lambda index, done: seen.append((index, done)))
    assert seen == [(0, 3), (2, 4), (4, 5)]


def test_a_worker_is_opened_on_the_device_of_its_pool(folder):
    resume([1, 2], folder.stored, WorkerPool(device="cpu"), folder.worker)
    assert folder.opened == ["cpu"]


def test_a_worker_that_leaves_nothing_is_named(tmp_path):
    """As one on another machine, that writes into a folder of its own."""
    folder = Folder(tmp_path)
    with pytest.raises(GtRError, match="a worker left no result of 8: all workers must see the same files"):
        resume([2, 8], folder.stored, ALONE, lambda device: lambda task: folder.make(2))


def test_work_goes_on_after_an_error(folder):
    def stubborn(device: str):
        def work(task: int) -> int | None:
            if task == 2:
                raise GtRError("two is not wanted today")
            return folder.make(task)

        return work

    with pytest.raises(GtRError, match="two is not wanted today"):
        resume([1, 2, 3], folder.stored, ALONE, stubborn)
    assert folder.asked == [1]
    assert resume([1, 2, 3], folder.stored, ALONE, folder.worker) == Resumed([1, 4, 9], [1, 2])
    assert folder.asked == [1, 2, 3]


def test_a_key_tells_facts_apart_and_not_their_order():
    key = key_of("a", 1, {"x": 1, "y": [2, 3]})
    assert len(key) == 64 and key == key_of("a", 1, {"y": [2, 3], "x": 1})
    others = (
        ("a", 1),
        ("a", 1, {"x": 1, "y": [3, 2]}),
        (1, "a", {"x": 1, "y": [2, 3]}),
        ("a", "1", {"x": 1, "y": [2, 3]}),
    )
    assert len({key, *(key_of(*facts) for facts in others)}) == 5
