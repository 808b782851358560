"""How far work is: a bar on a terminal, lines in a log file, and the time to go in both."""

from __future__ import annotations

import contextlib
import io
import re

import pytest
from gtr_pack.gtr_core.cli import progress
from gtr_pack.gtr_core.cli.progress import WorkProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds, as the test sets them."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_per_piece_with_the_time_to_go(clock):
    with contextlib.redirect_stderr(io.StringIO()) as log, WorkProgress("images") as shown:
        shown.doing("reading model.safetensors")
        clock[0] += 60
        shown.begin(30)
        for made in (10, 20):
            clock[0] += 5
            shown.within(0.5, 10)
            shown.show(made, 30 - made)
    assert log.getvalue().splitlines() == [
        "10 of 30 images, 2 per second, 0:00:10 to go",
        "20 of 30 images, 2 per second, 0:00:05 to go",
    ]


def test_pieces_of_an_earlier_run_say_nothing_of_the_rate(clock):
    """Six of ten were there: the first one of this run took four seconds."""
    with contextlib.redirect_stderr(io.StringIO()) as log, WorkProgress("pieces") as shown:
        shown.begin(4)
        for done in (7, 8):
            clock[0] += 4
            shown.piece("origin, seed 0", done, 10)
    assert log.getvalue().splitlines()[1] == "2 of 4 pieces (origin, seed 0), 0.25 per second, 0:00:08 to go"


def test_other_work_has_a_rate_of_its_own(clock):
    with contextlib.redirect_stderr(io.StringIO()) as log, WorkProgress("pieces") as shown:
        for total, times in ((2, (1, 1)), (3, (10,))):
            shown.begin(total)
            for done, seconds in enumerate(times, start=1):
                clock[0] += seconds
                shown.piece("x", done, total)
    assert log.getvalue().splitlines()[2] == "1 of 3 pieces (x), 0.1 per second, 0:00:20 to go"


def test_a_terminal_gets_one_bar():
    with contextlib.redirect_stderr(Terminal()) as screen, WorkProgress("images") as shown:
        shown.begin(30)
        shown.show(10, 20)
        shown.show(30, 0)
    frames = screen.getvalue().split("\r")
    assert frames[-1].startswith("30 of 30 images 100% |") and screen.getvalue().count("\n") == 1
    assert re.search(r"\| 00:00, \S+ left", frames[-1])


def test_the_bar_says_what_is_done_before_the_work_and_moves_within_a_piece(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_FRAMES", 0)
    with contextlib.redirect_stderr(Terminal()) as screen, WorkProgress("pieces") as shown:
        shown.doing("reading model.safetensors")
        shown.begin(2)
        shown.within(0.5)
        shown.piece("x", 1, 2)
        shown.within(0.25)
        shown.piece("x", 2, 2)
    frames = [re.sub(r" +\|.*", "", frame).strip() for frame in screen.getvalue().split("\r")]
    assert list(dict.fromkeys(filter(None, frames))) == [
        "0%",
        "reading model.safetensors   0%",
        "0 of 2 pieces   0%",
        "0 of 2 pieces  25%",
        "1 of 2 pieces  50%",
        "1 of 2 pieces  62%",
        "2 of 2 pieces 100%",
    ]


def test_the_last_piece_may_be_smaller(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_FRAMES", 0)
    with contextlib.redirect_stderr(Terminal()) as screen, WorkProgress("images") as shown:
        shown.begin(70)
        shown.show(64, 6)
        shown.within(0.5, 64)
    assert "64 of 70 images  96% |" in screen.getvalue()


def test_nothing_to_make_is_said():
    with contextlib.redirect_stderr(Terminal()) as screen, WorkProgress("pieces") as shown:
        shown.begin(0)
    assert screen.getvalue().split("\r")[-1].startswith("all pieces are there 100% |")
