"""The batch client in a real ComfyUI: a table, bad rows among thirty, an interrupt, a server that is killed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gtr_tests import rest
from gtr_tests.rest import Graph
from PIL import Image

if TYPE_CHECKING:
    from gtr_tests.client import Client
    from gtr_tests.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "workflows" / "api"
DEMO = ROOT / "gtr_core" / "demo"


def the(graph: Graph, class_type: str) -> str:
    """The only node of a type."""
    (node,) = (node for node, entry in graph.items() if entry["class_type"] == class_type)
    return node


@pytest.fixture
def graph() -> Graph:
    """The demo workflow with one cheap image per run, not magnified, and no figure of the plan."""
    demo = json.loads((API / "demo.json").read_text(encoding="utf-8"))
    kept = {
        node: entry for node, entry in demo.items() if entry["class_type"] not in ("GtR_PreviewSchedule", "ImageScale")
    }
    kept[the(kept, "SaveImage")]["inputs"]["images"] = [the(kept, "VAEDecode"), 0]
    kept[the(kept, "GtR_EmptyLatent")]["inputs"]["batch_size"] = 1
    kept[the(kept, "GtR_Scheduler")]["inputs"].update(
        preset="custom",
        diffusion_start=1,
        diffusion_end=1,
        diffusion_reconstruction=1,
        rates="",
        order="random",
        steps="2",
    )
    return kept


@pytest.fixture
def begin(tmp_path: Path, graph: Graph) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the client on a table."""
    started: list[subprocess.Popen[str]] = []

    def start(url: str, rows: list[dict[str, Any]], *options: str) -> subprocess.Popen[str]:
        (tmp_path / "graph.json").write_text(json.dumps(graph), encoding="utf-8")
        names = list(dict.fromkeys(name for row in rows for name in row))
        with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, names, delimiter=";")
            writer.writeheader()
            writer.writerows(rows)
        words = [sys.executable, str(API / "run_csv.py"), str(tmp_path / "rows.csv"), "--url", url]
        words += ["--workflow", str(tmp_path / "graph.json"), "--out", str(tmp_path / "out"), *options]
        started.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True, encoding="utf-8"))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def finish(process: subprocess.Popen[str], code: int) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return said


def record(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def images(folder: Path) -> dict[str, Graph]:
    """The saved files with the graphs that they carry; the record names each of them once."""
    files = sorted((folder / "out").glob("*.png"))
    assert [file.name for file in files] == sorted(line["file"] for line in record(folder) if line["file"])
    return {file.name: json.loads(Image.open(io.BytesIO(file.read_bytes())).text["prompt"]) for file in files}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it should have happened by now"
        time.sleep(0.05)


def test_a_table(comfy_server: ComfyServer, begin: Any, graph: Graph, tmp_path: Path) -> None:
    scheduler = the(graph, "GtR_Scheduler")
    rows = [
        {"name": "one", "class": "0", "seed": 5, f"{scheduler}.diffusion_start": 1, "cfg": "2,5", "batch": 2},
        {"name": "", "class": "", "seed": ""},
        {"name": "zwei", "class": "1", "seed": 6, "GtR Scheduler.diffusion_start": 2, "GtR Sampler.cfg_start": "0.5"},
    ]
    said = finish(begin(comfy_server.url, rows), 1)
    assert "set the same input: keep one of them" in said
    rows[2][f"{scheduler}.diffusion_start"] = rows[2].pop("GtR Scheduler.diffusion_start")
    said = finish(begin(comfy_server.url, rows), 0)
    assert "2 of 2 rows done, 3 images saved" in said
    made = images(tmp_path)
    assert [name[:9] for name in made] == ["0001_one_", "0001_one_", "0003_zwei"]
    sampler, label = the(graph, "GtR_Sampler"), the(graph, "GtR_ClassCondition")
    values = [
        (made[name][sampler]["inputs"]["seed"], made[name][sampler]["inputs"]["cfg"])
        + (made[name][label]["inputs"]["class_list"], made[name][scheduler]["inputs"]["diffusion_start"])
        for name in made
    ]
    assert values == [(5, 2.5, "0", 1), (5, 2.5, "0", 1), (6, 3.0, "1", 2)]
    assert list(made.values())[2][sampler]["inputs"]["cfg_start"] == 0.5
    assert [(line["row"], line["seed"]) for line in record(tmp_path)] == [("1", "5"), ("1", "6"), ("3", "6")]
    assert all(float(line["seconds"]) > 0 and not line["error"] for line in record(tmp_path))


@pytest.mark.parametrize(
    "row, words",
    [
        ({"colour": "red"}, "column 'colour' sets nothing in this workflow"),
        ({"prompt": "a fox"}, "column 'prompt' sets nothing in this workflow"),
        ({"seed": "many"}, "row 1, column 'seed': 'many' is not a whole number"),
        ({"seed": "-1"}, "row 1, column 'seed': -1 is too small: 0 is the least"),
        ({"preset": "gtr-papr"}, "row 1, column 'preset': 'gtr-papr' is not in the list: use gtr-paper"),
        ({"batch": "5000"}, "row 1, column 'batch': 5000 is too large: 4096 is the most"),
        ({"GtR Sampler.model": "mar"}, "column 'GtR Sampler.model': node 1 is wired to this input"),
        ({"class": "unheard of"}, "row 1, column 'class': the demo model has no class 'unheard of': use"),
        (
            {"GtR Scheduler.steps": "many"},
            "row 1: node 5 (GtR Scheduler): steps 'many': expected whole numbers separated by",
        ),
    ],
)
def test_mistakes_are_explained(comfy_server: ComfyServer, begin: Any, row: dict, words: str) -> None:
    said = finish(begin(comfy_server.url, [row]), 1)
    assert words in said


def test_classes_are_checked_without_drawing(comfy_server: ComfyServer, begin: Any) -> None:
    """By the server's menu of the demo's classes."""
    said = finish(begin(comfy_server.url, [{"class": "dessert"}, {"class": "desert"}], "--check"), 1)
    assert "row 2, column 'class': the demo model has no class 'desert': use dessert" in said
    assert "1 row can be drawn, 1 cannot: 1 image in 1 run" in said


def test_thirty_rows_with_bad_ones_and_an_interrupt(
    comfy_server: ComfyServer, begin: Any, graph: Graph, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [{"name": f"n{k}", "class": k % 4, "seed": k, "preset": ""} for k in range(1, 31)]
    rows[6]["class"] = "a class that nobody knows"
    rows[14]["preset"] = "warp"
    rows[20]["seed"] = "x"
    rows[22]["name"] = "../../out"  # refused by the server's own check of paths
    rows[25]["preset"], rows[25]["batch"] = "origin", 64  # long enough to be interrupted
    process = begin(comfy_server.url, rows)

    def slow_one() -> str:
        running = rest.get(f"{comfy_server.url}/queue")["queue_running"]
        return next(
            (entry[1] for entry in running if entry[2][the(graph, "GtR_EmptyLatent")]["inputs"]["batch_size"] == 64), ""
        )

    until(lambda: bool(slow_one()))
    rest.post(f"{comfy_server.url}/interrupt", {"prompt_id": slow_one()})
    said = finish(process, 1)
    listed = said.split("failed: 5\n")[1]
    assert re.findall(r"^  (row \d+)", listed, re.MULTILINE) == ["row 7", "row 15", "row 21", "row 23", "row 26"]
    assert "row 23: node 9 (Save Image): Exception: " in listed
    assert "row 26: interrupted on the server, in node" in listed and "25 of 30 rows done" in listed
    assert len(images(tmp_path)) == 25
    assert not rest.get(f"{comfy_server.url}/queue")["queue_pending"]
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.png")}
    for number, column, value in (
        (6, "class", 1),
        (14, "preset", ""),
        (20, "seed", 21),
        (22, "name", "n23"),
        (25, "preset", ""),
    ):
        rows[number][column] = value
    rows[25]["batch"] = 1
    said = finish(begin(comfy_server.url, rows), 0)
    assert "25 of 30 runs were done before" in said and "30 of 30 rows done, 5 images saved" in said
    assert len(images(tmp_path)) == 30
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())


def test_equal_rows_and_a_second_start_of_a_killed_client(
    comfy_server: ComfyServer, begin: Any, tmp_path: Path
) -> None:
    """The server answers equal rows from its cache; each still has its file."""
    rows = [{"name": "same", "seed": 3, "class": 1}] * 3
    process = begin(comfy_server.url, rows)
    until(lambda: (tmp_path / "out" / "results.csv").exists() and len(record(tmp_path)) >= 1)
    process.kill()
    process.communicate()
    said = finish(begin(comfy_server.url, rows), 0)
    assert "row 1 and row 2 have the seeds 3 and 3" in said
    made = images(tmp_path)
    assert len(made) == 3 and len({(tmp_path / "out" / name).read_bytes() for name in made}) == 1


def test_a_server_that_is_killed_and_started_again(
    comfy_path: Path, client: Client, tmp_path: Path, begin: Any, graph: Graph
) -> None:
    """Its queue and its history are lost; the rows are queued again, and the images are those of an undisturbed run.
    No half image is left and no model's file touched."""
    from gtr_tests.client import pixels
    from gtr_tests.server import ComfyServer, make_base

    server = ComfyServer(Path(sys.executable), comfy_path, make_base(tmp_path / "base"), "--cpu")
    rows = [{"name": f"n{k}", "class": k % 4, "seed": k} for k in range(1, 9)]
    server.start()
    try:
        before = digests()
        process = begin(server.url, rows)
        until(lambda: (tmp_path / "out" / "results.csv").exists() and len(record(tmp_path)) >= 3)
        server.kill()
        assert digests() == before
        for path in (server.base / "output").rglob("*.png"):
            Image.open(path).load()
        time.sleep(1)
        server.start()
        said = finish(process, 0)
        assert "lost the server" in said and "the server was started anew" in said and "8 of 8 rows done" in said
        made = images(tmp_path)
        seeds = sorted(entry[the(graph, "GtR_Sampler")]["inputs"]["seed"] for entry in made.values())
        assert seeds == list(range(1, 9)) and [line["row"] for line in record(tmp_path)] == [str(k) for k in seeds]
        until(lambda: not rest.get(f"{server.url}/prompt")["exec_info"]["queue_remaining"])
    finally:
        server.stop()
    for name, carried in made.items():
        (undisturbed,) = client.prompt(carried).images[the(graph, "SaveImage")]
        assert pixels((tmp_path / "out" / name).read_bytes()) == pixels(undisturbed)


def digests() -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in DEMO.glob("*.safetensors")}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_takes_the_rows_back(comfy_server: ComfyServer, begin: Any, graph: Graph) -> None:
    graph[the(graph, "GtR_Scheduler")]["inputs"]["preset"] = "origin"
    graph[the(graph, "GtR_EmptyLatent")]["inputs"]["batch_size"] = 64
    process = begin(comfy_server.url, [{"seed": k} for k in range(1, 100)])
    until(lambda: len(rest.get(f"{comfy_server.url}/queue")["queue_pending"]) > 20)
    process.terminate()
    said = finish(process, 143)
    assert "stopped; what was queued is taken back" in said
    until(lambda: not rest.get(f"{comfy_server.url}/prompt")["exec_info"]["queue_remaining"])


def test_the_client_of_the_documentation(comfy_server: ComfyServer, tmp_path: Path) -> None:
    """The 25 lines of docs/api.md, as they stand there: the report comes back, and the image."""
    page = (API.parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) == 25
    code = code.replace("http://127.0.0.1:8188", comfy_server.url).replace("workflows/api", API.as_posix())
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gtr-paper" in done.stdout
    (file,) = tmp_path.glob("*.png")
    made = json.loads(Image.open(file).text["prompt"])
    assert made[the(made, "GtR_Sampler")]["inputs"]["seed"] == 42


def test_the_example_table_fits_the_demo() -> None:
    """Columns, classes and presets of prompts.csv exist."""
    from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, read_checkpoint
    from gtr_pack.gtr_core.demo import DEMO_MAR
    from gtr_pack.gtr_core.models.labels import parse_labels
    from gtr_pack.gtr_core.plans.presets import PRESETS

    with (API / "prompts.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    spec = checked_model(read_checkpoint(DEMO_MAR))[0]
    for row in rows:
        assert parse_labels(row["class"], spec) and row["preset"] in PRESETS and int(row["seed"]) and float(row["cfg"])
