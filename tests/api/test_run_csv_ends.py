"""The batch client against a stand-in server: every way in which a row, the server or the client may end."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with ComfyUI: run python3 dev.py test")

from gtr_tests.fake_comfy import GRAPH, FakeComfy  # noqa: E402

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def server() -> Iterator[FakeComfy]:
    with FakeComfy() as started:
        yield started


@pytest.fixture
def begin(client: Start, server: FakeComfy) -> Callable[..., Any]:
    """Start the client against the stand-in server; it is killed at the end if it is still there."""
    started = []

    def start(table: str | bytes, *options: str, workflow: Any = GRAPH) -> subprocess.Popen[str]:
        started.append(client(server.url, table, workflow, *options))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def finish(process: subprocess.Popen[str], code: int, seconds: float = 60) -> str:
    """What it said, when it has ended with this code."""
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def record(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def images(folder: Path) -> list[str]:
    """The files of the output folder: each is named once in the record, which is whole."""
    found = sorted(file.name for file in (folder / "out").iterdir() if file.name != "results.csv")
    assert found == sorted(line["file"] for line in record(folder) if line["file"])
    return found


def saved(folder: Path, number: int) -> Callable[[], bool]:
    """True once so many images are noted and have their names."""

    def there() -> bool:
        if not (folder / "out" / "results.csv").exists():
            return False
        files = [line["file"] for line in record(folder) if line["file"]]
        return len(files) == number and all((folder / "out" / name).exists() for name in files)

    return there


def rows(*names: str) -> str:
    return "name,seed\n" + "".join(f"{name},{number}\n" for number, name in enumerate(names, start=1))


# -- rows --------------------------------------------------------------------------------------------------------------


def test_every_row_is_drawn_and_noted(begin, server, tmp_path):
    said = finish(begin("name;seed;cfg\none;5;2,5\n;;\ntwice;6;3\n"), 0)
    assert [body["prompt"]["7"]["inputs"]["cfg"] for body in server.posted] == [2.5, 3.0]
    assert images(tmp_path) == ["0001_one_00001_.png", "0003_a_00001_.png", "0003_a_00002_.png"]
    assert [(line["row"], line["seed"], line["seconds"], line["error"]) for line in record(tmp_path)] == [
        ("1", "5", "1.5", ""),
        ("3", "6", "1.5", ""),
        ("3", "7", "1.5", ""),
    ]
    assert "2 of 2 rows done, 3 images saved" in said and "\r" not in said
    assert re.search(r"^\d\d:\d\d:\d\d \[2/2\] row 3: 0003_a_00001_.png and 1 more, 1.5 s$", said, re.MULTILINE)


@pytest.mark.parametrize(
    "word, words",
    [("boom", "node 7 (The sampler): class 17 should be one of 0 to 9"), ("none", "the run saved no image")]
    + [("refused", "refused by the server: node 5 (The plan): Value not in list: preset: 'warp'")]
    + [("half", "refused by the server: node 5"), ("gone", "the file gone_00002_.png could not be fetched")],
)
def test_a_row_that_fails_is_named_and_the_others_go_on(begin, server, tmp_path, word, words):
    said = finish(begin(rows("one", word, "three")), 1)
    assert f"row 2: {words}" in said.split("failed: 1")[1] and "2 of 3 rows done" in said
    assert [line["error"][:20] for line in record(tmp_path)] == ["", words[:20], ""]
    assert len(images(tmp_path)) == 2
    assert not server.left


def test_bad_rows_among_thirty(begin, server, tmp_path):
    """Cells, commas and refusals: each is named, in the order of the table, and 26 rows are drawn."""
    lines = [f"n{number},0,{number},gtr-paper" for number in range(1, 31)]
    lines[4] = "n5,0,five,gtr-paper"
    lines[14] = "n15,0,15,warp"
    lines[19] = "n20,animal face, red,20,gtr-full"
    lines[24] = "refused,0,25,gtr-paper"
    said = finish(begin("name,class,seed,preset\n" + "\n".join(lines)), 1)
    listed = said.split("failed: 4\n")[1]
    assert re.findall(r"row \d+", listed) == ["row 5", "row 15", "row 20", "row 25"]
    assert len(images(tmp_path)) == 26 and "26 of 30 rows done" in listed
    before = said[: said.index("[1/27]")]
    assert re.findall(r"^row \d+", before, re.MULTILINE) == ["row 5", "row 15", "row 20"], "checked before, in order"
    assert [int(line["row"]) for line in record(tmp_path)] == list(range(1, 31))


def test_strict_queues_nothing(begin, server, tmp_path):
    said = finish(begin("name,seed\na,1\nb,x\nc,3\n", "--strict"), 1)
    assert "row 2, column 'seed': 'x' is not a whole number" in said and "nothing was queued" in said
    assert not server.posted and not (tmp_path / "out").exists()
    finish(begin(rows("a", "b"), "--strict"), 0)


def test_check_queues_nothing(begin, server, tmp_path):
    said = finish(begin("name,seed\na,1\nb,x\n", "--check"), 1)
    assert "1 row can be drawn, 1 cannot: 1 image in 1 run; nothing was queued" in said
    said = finish(begin("name,seed,batch,count\na,1,4,3\nb,100,2,\n", "--check"), 0)
    assert "2 rows can be drawn, 0 cannot: 14 images in 4 runs" in said
    assert not server.posted and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "table, words",
    [
        ("name,colour\na,red\n", "column 'colour' sets nothing"),
        ("name,seed\n", "has no row"),
        (b"PK\x03\x04", "a workbook"),
    ]
    + [
        (b"name\n\xe9\n", "UTF-8"),
        ('name\n"a\n', "quotation marks"),
        ("name\n" + '"' + "x" * 200_000 + '"\n', "row 1"),
    ],
)
def test_tables_that_cannot_be_used(begin, server, table, words):
    said = finish(begin(table), 1)
    assert words in said and said.count("\n") == 1 and not server.posted


def test_a_node_that_the_server_does_not_have(begin, server):
    graph = GRAPH | {"77": {"class_type": "GtR_Unheard", "inputs": {}}}
    said = finish(begin(rows("a"), workflow=graph), 1)
    assert "the server does not have the nodes GtR_Unheard" in said and not server.posted


def test_the_same_error_many_times_is_said_once(begin, tmp_path):
    said = finish(begin(rows(*["boom"] * 9, "fine")), 1)
    assert said.split("failed: 9")[1].count("class 17") == 1 and "row 1 to row 9 (9 of them)" in said


def test_names_that_leave_the_folder(begin, tmp_path):
    finish(begin(rows("evil")), 0)
    assert images(tmp_path) == ["0001_evil.png"]
    assert {file.name for file in tmp_path.iterdir()} == {"out", "rows.csv", "graph.json"}


def test_runs_of_a_row(begin, server, tmp_path):
    said = finish(begin("name,seed,batch,count\na,5,4,3\nboom,1,1,1\n"), 1)
    assert [line["seed"] for line in record(tmp_path)] == ["5", "9", "13", "1"]
    assert "row 1, run 2 of 3" in said and [line["row"] for line in record(tmp_path)] == ["1", "1", "1", "2"]


# -- what others do ----------------------------------------------------------------------------------------------------


def test_somebody_interrupts_a_row(begin, server, tmp_path):
    process = begin(rows("hold", "two", "three"))
    server.until(lambda: server.running and len(server.pending) == 2)
    server.interrupt()
    said = finish(process, 1)
    assert "row 1: interrupted on the server, in node 7 (The sampler)" in said and len(images(tmp_path)) == 2


def test_somebody_clears_the_queue(begin, server, tmp_path):
    process = begin(rows("hold", "two", "three"))
    server.until(lambda: server.running and len(server.pending) == 2)
    server.clear()
    server.release()
    said = finish(process, 1)
    assert "row 2 to row 3 (2 of them): somebody took it out of the server's queue" in said
    assert images(tmp_path) == ["0001_hold_00001_.png"]


def test_somebody_removes_one_row(begin, server, tmp_path):
    process = begin(rows("hold", "two", "three"))
    server.until(lambda: server.running and len(server.pending) == 2)
    server.remove(0)
    server.release()
    assert "row 2: somebody took it out" in finish(process, 1)
    assert images(tmp_path) == ["0001_hold_00001_.png", "0003_three_00002_.png"]


@pytest.mark.parametrize("websocket", [True, False])
def test_somebody_elses_runs(client, tmp_path, websocket):
    """They are left alone, and keep nobody waiting; also where a proxy lets no websocket through."""
    with FakeComfy(websocket=websocket) as server:
        server.extra["x"], server.graphs["x"] = {"client_id": "page"}, {"9": {"inputs": {"filename_prefix": "hold"}}}
        server.pending.append("x")
        process = client(server.url, rows("one", "two"), GRAPH)
        server.until(lambda: len(server.pending) == 2)
        server.clear()
        assert "somebody took it out" in finish(process, 1)
        assert server.running == ["x"] and not server.interrupted


# -- the server ends ---------------------------------------------------------------------------------------------------


def test_the_server_restarts(begin, server, tmp_path):
    process = begin(rows("one", "two", "hold", "four", "five"))
    server.until(saved(tmp_path, 2))
    server.restart(pause=1)
    server.until(lambda: server.running and len(server.pending) == 2)
    server.release()
    said = finish(process, 0)
    assert "lost the server" in said and "3 runs are queued again" in said and "5 of 5 rows done" in said
    assert len(images(tmp_path)) == 5 and server.drawn == ["one", "two", "hold", "hold", "four", "five"]


def test_the_server_restarts_before_the_images_are_fetched(begin, server, tmp_path):
    """All were drawn, none is left: all are drawn again."""
    process = begin(rows("hold", "two"))
    server.until(lambda: server.running and len(server.pending) == 1)
    server.restart()
    server.until(lambda: server.running and len(server.pending) == 1)
    server.restart()
    server.until(lambda: server.running and len(server.pending) == 1)
    server.release()
    finish(process, 0)
    assert len(images(tmp_path)) == 2


def test_the_new_server_answers_before_the_old_one_is_seen_to_end(begin, server, tmp_path):
    """Nobody took the rows out of the queue, though they are in none while the connection looks alive."""
    process = begin(rows("hold", "two"))
    server.until(lambda: server.running and len(server.pending) == 1)
    server.replace(late=0.3)
    server.until(lambda: server.running and len(server.pending) == 1)
    server.release()
    said = finish(process, 0)
    assert "2 runs are queued again" in said and "took it out" not in said
    assert len(images(tmp_path)) == 2


def test_the_connection_is_cut_and_the_server_is_the_same(begin, server, tmp_path):
    process = begin(rows("one", "hold", "three"))
    server.until(lambda: server.running and len(server.history) == 1 and len(server.pending) == 1)

    async def cut():
        for socket in server.sockets:
            await socket.close()

    server._wait(cut())
    server.until(lambda: len(server.sockets) == 2)
    server.release()
    said = finish(process, 0)
    assert "the server is back" in said and "again" not in said
    assert server.drawn == ["one", "hold", "three"] and len(images(tmp_path)) == 3


def test_an_answer_gets_lost(begin, server, tmp_path):
    server.answers_lost = 1
    finish(begin(rows("one", "two")), 0)
    assert server.drawn == ["one", "two"], "what had been queued is not queued twice"


def test_a_request_gets_lost(begin, server, tmp_path):
    """It is sent again; it was not somebody who took it out of the queue."""
    server.requests_lost = 1
    finish(begin(rows("one", "two", "three")), 0)
    assert server.drawn == ["one", "two", "three"] and len(images(tmp_path)) == 3


def test_requests_that_never_arrive(begin, server, tmp_path):
    """Not for ever: the row is given up, and the others are drawn."""
    server.requests_lost = 3
    said = finish(begin(rows("one", "two", "three")), 1)
    assert "row 2: the server gave no answer to 3 requests: see its log" in said
    assert server.drawn == ["one", "three"]


def test_a_row_that_kills_the_server(begin, server, tmp_path):
    server.crash_on = "crash"
    said = finish(begin(rows("one", "crash", "three")), 1)
    assert "row 2: the server ended 3 times while it drew this row" in said
    assert server.drawn.count("crash") == 3 and server.drawn[-1] == "three" and len(images(tmp_path)) == 2


def test_the_server_is_gone_for_good(begin, server, tmp_path):
    process = begin(rows("one", "hold", "three"), "--patience", "2")
    server.until(saved(tmp_path, 1))
    server.stop()
    said = finish(process, 1)
    assert re.search(r"^the server at .* has not answered for 2 s .*; 2 runs are to go", said, re.MULTILINE)
    assert len(images(tmp_path)) == 1
    server.start()
    said = finish(begin(rows("one", "two", "three")), 0)
    assert "1 of 3 runs were done before" in said and server.drawn == ["one", "hold", "two", "three"]


def test_no_server_at_all(client, server):
    server.stop()
    said = finish(client(server.url, rows("one"), GRAPH), 1)
    assert said.count("\n") == 1 and "--url" in said
    assert f"no ComfyUI answers at {server.url} (connection refused): start it" in said
    server.start()


@pytest.mark.parametrize("url", ["http://", "klingon://x", "127.0.0.1:1", "http://127.0.0.1:99999"])
def test_addresses_that_are_none(client, url):
    said = finish(client(url, rows("one"), GRAPH), 1)
    assert said.count("\n") == 1 and "no ComfyUI answers at" in said


def test_another_kind_of_server(client, tmp_path):
    with FakeComfy() as server:
        said = finish(client(f"{server.url}/elsewhere", rows("one"), GRAPH), 1)
    assert "does not answer as ComfyUI does (GET /queue: 404): is --url right?" in said


def test_a_server_that_does_not_say_what_its_nodes_take(client, tmp_path):
    with FakeComfy(info=None) as server:
        said = finish(client(server.url.removeprefix("http://"), "name,5.shift,seed\na,no,3\nb,maybe,4\n", GRAPH), 1)
        assert server.posted[0]["prompt"]["5"]["inputs"]["shift"] is False
    assert "row 2, column '5.shift': 'maybe'" in said and "the workflow's values decide" in said


# -- the client ends ---------------------------------------------------------------------------------------------------


@pytest.fixture
def interruptible():
    """A program in the background is started with SIGINT ignored, and so would be the one that a test starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 1)])
def test_signals_take_the_rows_back(begin, server, tmp_path, number, interruptible):
    process = begin(rows("one", "hold", "three", "four"))
    server.until(lambda: server.running and len(server.history) == 1 and len(server.pending) == 2)
    server.until(saved(tmp_path, 1))
    process.send_signal(number)
    said = finish(process, 128 + number)
    server.until(lambda: not server.left)
    assert "stopped; what was queued is taken back; 3 runs are to go" in said and "1 of 4 rows done" in said
    assert server.interrupted and len(set(server.interrupted)) == 1
    finish(begin(rows("one", "two", "three", "four")), 0)
    assert server.drawn == ["one", "hold", "two", "three", "four"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_while_the_rows_are_queued(begin, server, tmp_path):
    process = begin(rows("hold", *(f"n{number}" for number in range(2000))))
    server.until(lambda: len(server.posted) > 50)
    process.terminate()
    finish(process, 143)
    server.until(lambda: not server.left)
    assert len(server.posted) < 2001


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_that_is_ignored_on_purpose(client, server, tmp_path):
    """As nohup does."""
    script = "import signal, subprocess, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    script += "sys.exit(subprocess.call(sys.argv[1:]))"
    process = client(server.url, rows("one"), GRAPH)
    words = list(map(str, process.args))
    finish(process, 0)
    (tmp_path / "rows.csv").write_text(rows("hold", "two"), encoding="utf-8")
    held = subprocess.Popen(
        [sys.executable, "-c", script, *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    server.until(lambda: server.running)
    os.killpg(held.pid, signal.SIGHUP)
    time.sleep(0.3)
    server.release()
    finish(held, 0)


def test_a_killed_client_is_started_again(begin, server, tmp_path):
    """What it had queued is followed, what was drawn meanwhile is fetched; nothing is drawn twice."""
    process = begin(rows("one", "two", "hold", "four", "five"))
    server.until(lambda: server.running and len(server.history) == 2 and len(server.pending) == 2)
    server.until(saved(tmp_path, 2))
    process.kill()
    process.communicate()
    server.release()
    server.until(lambda: not server.left)
    said = finish(begin(rows("one", "two", "hold", "four", "five")), 0)
    assert "2 of 5 runs were done before" in said and "3 runs are on the server from an earlier start" in said
    assert server.drawn == ["one", "two", "hold", "four", "five"] and len(images(tmp_path)) == 5


def test_a_killed_client_finds_its_queue(begin, server, tmp_path):
    process = begin(rows("hold", "two", "three"))
    server.until(lambda: server.running and len(server.pending) == 2)
    process.kill()
    process.communicate()
    again = begin(rows("hold", "two", "changed"))
    server.until(lambda: len(server.posted) == 4)
    assert len(server.pending) == 2, "the row that is no longer in the table was taken back"
    server.release()
    finish(again, 0)
    assert server.drawn == ["hold", "two", "changed"] and len(images(tmp_path)) == 3


def test_started_again(begin, server, tmp_path):
    """Done rows are skipped, also when they have moved; failed, changed and deleted ones are drawn."""
    finish(begin(rows("one", "boom", "three", "four")), 1)
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in images(tmp_path)}
    said = finish(begin(rows("one", "boom", "three", "four")), 1)
    assert "3 of 4 runs were done before" in said and server.drawn == ["one", "boom", "three", "four", "boom"]
    (tmp_path / "out" / "0003_three_00003_.png").unlink()
    server.history.clear()
    table = "name,seed\nnew,9\none,1\ntwo,2\nthree,3\nfour,5\n"
    finish(begin(table), 0)
    assert server.drawn[5:] == ["new", "two", "three", "four"]
    names = images(tmp_path)
    assert [line["row"] for line in record(tmp_path) if line["file"] == "0001_one_00001_.png"] == ["2"]
    assert len([name for name in names if "four" in name]) == 2, "the changed row's old image stays, and is named"
    for name, stamp in before.items():
        if "three" not in name:
            assert (tmp_path / "out" / name).stat().st_mtime_ns == stamp


def test_another_table_in_the_same_folder(begin, tmp_path):
    finish(begin(rows("one", "two")), 0)
    first = {name: (tmp_path / "out" / name).read_bytes() for name in images(tmp_path)}
    finish(begin(rows("one", "gate", "disk").replace("1", "8")), 0)
    assert len(images(tmp_path)) == 5
    for name, data in first.items():
        assert (tmp_path / "out" / name).read_bytes() == data


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_two_at_once(begin, server, tmp_path):
    first = begin(rows("hold", "two"))
    server.until(lambda: server.running)
    assert "another run_csv.py writes to" in finish(begin(rows("three")), 1)
    (tmp_path / "rows.csv").write_text(rows("hold", "two"), encoding="utf-8")
    server.release()
    finish(first, 0)
    assert len(images(tmp_path)) == 2


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions, which root does not have")
def test_a_folder_that_cannot_be_written(begin, server, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    assert "the output folder" in finish(begin(rows("one")), 1) and not server.posted


@pytest.mark.parametrize("kind", ["file", "results"])
def test_a_folder_that_is_none(begin, server, tmp_path, kind):
    if kind == "file":
        (tmp_path / "out").write_text("x", encoding="utf-8")
    else:
        (tmp_path / "out" / "results.csv").mkdir(parents=True)
    said = finish(begin(rows("one")), 1)
    assert said.count("\n") == 1 and "cannot be used" in said and not server.posted


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_a_full_disk(begin, server, tmp_path, monkeypatch):
    """The rows are taken back, and come from the server's history when there is room."""
    process = begin(rows("hold", "two"))
    server.until(lambda: server.running and server.pending)
    (tmp_path / "out" / ".0001_hold_00001_.png.part").symlink_to("/dev/full")
    server.release()
    said = finish(process, 1)
    assert "the images of row 1 cannot be saved" in said and "No space left" in said
    server.until(lambda: not server.left)
    finish(begin(rows("hold", "two")), 0)
    assert server.drawn.count("hold") == 1 and len(images(tmp_path)) == 2


@pytest.mark.skipif(os.name == "nt", reason="pseudo terminals")
def test_a_terminal_gets_a_bar(server, client, tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    process = client(server.url, rows("one", "boom", "three"), GRAPH)
    words = list(map(str, process.args))
    process.communicate()
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    bar = subprocess.Popen([*words[:-1], str(tmp_path / "other")], stderr=inner)
    os.close(inner)
    said = b""
    try:
        while part := os.read(outer, 4096):
            said += part
    except OSError:
        pass
    os.close(outer)
    assert bar.wait() == 1
    text = said.decode()
    assert "\r" in text and "3/3" in text and "[2/3] row 2: node 7" in text
    assert "row 1:" not in text, "what goes well is in the bar only"


def test_three_hundred_rows(begin, server, tmp_path):
    said = finish(begin(rows(*(f"n{number}" for number in range(300)))), 0)
    assert "300 of 300 rows done" in said and len(images(tmp_path)) == 300
