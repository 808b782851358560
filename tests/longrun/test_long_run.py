"""Many queued prompts of every kind in one server, from two clients: memory, open files, latency, the images.

    python3 dev.py test tests/longrun --long 1000 [--update]

Without --long a short queue shows that the program works and that the images are right.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from gtr_tests import rest
from gtr_tests.rest import Graph

if TYPE_CHECKING:
    from gtr_tests.client import Client
    from gtr_tests.longrun import Figures, Note
    from gtr_tests.server import ComfyServer

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "output"
SHORT, LONG = 12, 200
"""Prompts without --long; from so many on memory, files and latency are judged: before, every kind is still new."""
GROWTH, DRIFT, OPEN = 0.02, 1.3, 4
"""How much memory may grow after the mark, how much more of the processor the last third may need, and how many
more files may be open: a run holds three for its event loop, and a client one while it fetches an image."""


@pytest.fixture(scope="module")
def count(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("long") or SHORT


class Follower:
    """One client: notes every run of its own as it ends, and gives up at the next message once it is `stopped`."""

    def __init__(self, client: Client, server: ComfyServer, stopped: Event) -> None:
        self.client, self.server, self.stopped = client, server, stopped
        self.queued: SimpleQueue[tuple[int, str, str] | None] = SimpleQueue()
        self.notes: list[Note] = []
        self.images: dict[int, list[str]] = {}

    def queue(self, number: int, kind: str, graph: Graph) -> None:
        answer = rest.post(f"{self.client.url}/prompt", {"prompt": graph, "client_id": self.client.id})
        self.queued.put((number, kind, answer["prompt_id"]))

    def follow(self) -> None:
        """Until None is queued: prompts end while others are still being queued."""
        from gtr_tests.client import Run
        from gtr_tests.longrun import Note, look

        for number, kind, prompt_id in iter(self.queued.get, None):
            seen: list[tuple[int, int, float]] = []

            def note(message: Any) -> None:
                assert not self.stopped.is_set(), "stopped"
                if getattr(message, "type", "") == "execution_success":
                    seen.append(look(self.server.pid))

            run = self.client.follow(Run(prompt_id), note)
            assert run.status == "success", f"prompt {number} ({kind}): {run.trouble}"
            start, end = (run.of_type(f"execution_{what}")[0].data["timestamp"] for what in ("start", "success"))
            self.notes.append(Note(number, kind, *seen[0], (end - start) / 1000))
            self.images[number] = digests(run.images["save"])
            # Else ComfyUI keeps a record of each of the last 10,000 prompts, which is not the pack's to answer for.
            rest.post(f"{self.client.url}/history", {"delete": [prompt_id]})


def digests(images: list[bytes]) -> list[str]:
    """Of size and pixels, whatever text the files carry."""
    from gtr_tests.client import pixels

    return [hashlib.sha256(repr(pixels(image)).encode()).hexdigest() for image in images]


@pytest.mark.skipif(sys.platform == "win32", reason="open files are counted as Unix counts them")
def test_a_long_queue(
    comfy_path: Path, comfy_server: ComfyServer, model_files: frozenset[str], count: int, update: bool, tmp_path: Path
) -> None:
    pytest.importorskip("websocket", reason="websocket-client is not installed: run python3 dev.py test")
    from gtr_tests import longrun
    from gtr_tests.client import Client

    kinds = longrun.order_of_kinds(count)
    graphs = [longrun.graph_of(kind, number) for number, kind in enumerate(kinds)]
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(Client(comfy_server.url))) for _ in range(2)]
        pool, stopped = stack.enter_context(ThreadPoolExecutor(2)), Event()
        stack.callback(stopped.set)
        pair = [Follower(client, comfy_server, stopped) for client in clients]
        runs = [pool.submit(follower.follow) for follower in pair]
        try:
            for number, graph in enumerate(graphs):
                pair[number % 2].queue(number, kinds[number].name, graph)
        finally:
            for follower in pair:
                follower.queued.put(None)
        for run in runs:
            run.result()
    notes = sorted((note for follower in pair for note in follower.notes), key=lambda note: note.number)
    images = pair[0].images | pair[1].images
    found = longrun.figures(notes)
    report(longrun.plain(notes, found))
    assert len(notes) == count and all(len(images[number]) == kind.batch for number, kind in enumerate(kinds))
    assert len({image for made in images.values() for image in made}) == sum(kind.batch for kind in kinds)
    compared = longrun.spread(kinds, min(len(longrun.KINDS), max(1, count // 80)))
    for number in compared:
        base = tmp_path / str(number)
        assert fresh(comfy_path, comfy_server.base, base, graphs[number]) == images[number], (
            f"prompt {number} ({kinds[number].name}) differs from a fresh process"
        )
    if count >= LONG:
        assert found.descriptors[1] <= found.descriptors[0] + OPEN, f"files stay open: {found.descriptors}"
        assert found.growth <= GROWTH, f"memory grew by {found.growth:.1%}: {found.memory} MiB"
        assert found.processor[1] < DRIFT * found.processor[0], f"prompts became slower: {found.processor}"
    if update and count >= LONG:
        document(found, len(compared))


def report(result: dict[str, Any]) -> None:
    """Say the figures, and write everything to output/."""
    from gtr_tests import longrun

    print(json.dumps(result["figures"], indent=1))
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "long_run.json").write_text(json.dumps(result), encoding="utf-8")
    longrun.draw([longrun.Note(**note) for note in result["notes"]], OUTPUT / "long_run.png")


def document(found: Figures, compared: int) -> None:
    """Put the figures and the curve into the documentation."""
    from gtr_pack.gtr_core.costs.bench import describe_machine
    from gtr_tests import longrun

    machine = describe_machine("cpu")
    text = longrun.table(
        found,
        compared,
        f"{os.cpu_count()} cores of an {machine['name']} with torch {machine['torch']} and Python {machine['python']}, "
        f"at a load average of {os.getloadavg()[2]:.1f}",
    )
    page = ROOT / "docs" / "reliability.md"
    page.write_text(longrun.fill(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    shutil.copy(OUTPUT / "long_run.png", page.with_name("long_run.png"))


def fresh(comfy: Path, models: Path, base: Path, graph: Graph) -> list[str]:
    """The images that a new server makes of a prompt, alone."""
    from gtr_tests.server import ComfyServer, link_folder, make_base

    make_base(base)
    (base / "models").rename(base / "unused")
    link_folder(models / "models", base / "models")
    link_folder(ROOT / "tests" / "support" / "tiny_t5", base / "custom_nodes" / "gtr-test-t5")
    server = ComfyServer(Path(sys.executable), comfy, base, "--cpu", "--preview-method", "latent2rgb")
    try:
        server.start()
        entry = rest.wait(server.url, rest.queue(server.url, graph), server.check_alive)
        assert rest.failure(entry) is None
        return digests([rest.fetch(rest.view_url(server.url, image)) for image in entry["outputs"]["save"]["images"]])
    finally:
        server.stop()
