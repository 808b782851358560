"""How long a person waits for the first image: ``python -m docs.startup --json``, from the repository's root.

Every line is measured in fresh processes and in turn with the others. ComfyUI runs on the CPU with this pack alone.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import dev  # makes gtr_tests importable

# isort: split
from gtr_tests import environment, rest
from gtr_tests.server import PACK, ComfyServer, make_base

from docs.measuring import Program

WORKFLOW = Path(__file__).resolve().parents[1] / "workflows" / "api" / "demo.json"
IMPORT_TIME = re.compile(rf"([\d.]+) seconds: .*{PACK}\b")
TORCH, LIBRARY, COMMAND = "import torch", "import gtr_core", "command line, one image, from start to end"
SERVER, PACK_IMPORT = "ComfyUI answers", "of it this pack's import"
FIRST, SECOND = "first prompt, four images", "second prompt, another seed"
WHAT = (TORCH, LIBRARY, COMMAND, SERVER, PACK_IMPORT, FIRST, SECOND)


@dataclass
class Clock:
    """Seconds of everything that is measured, a number per round."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {what: [] for what in WHAT})

    def time(self, what: str, *words: str) -> None:
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        self.seconds[what].append(time.perf_counter() - started)

    def rows(self) -> list[dict]:
        return [
            {"what": what, "seconds": median(values), "seconds_range": [min(values), max(values)]}
            for what, values in self.seconds.items()
        ]


def server(host: environment.Host, folder: Path) -> Iterator[tuple[str, float]]:
    """What a server takes until it answers, and for two prompts that differ in the seed: (what, seconds)."""
    started = time.perf_counter()
    comfy = ComfyServer(host.python, host.comfy, make_base(folder), "--cpu")
    comfy.start()
    try:
        yield SERVER, time.perf_counter() - started
        (imported,) = IMPORT_TIME.findall(comfy.log.read_text(encoding="utf-8"))
        yield PACK_IMPORT, float(imported)
        graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
        for what, seed in ((FIRST, 1), (SECOND, 2)):
            chosen = copy.deepcopy(graph)
            for node in chosen.values():
                if "seed" in node["inputs"]:
                    node["inputs"]["seed"] = seed
            started = time.perf_counter()
            rest.wait(comfy.url, rest.queue(comfy.url, chosen), comfy.check_alive)
            yield what, time.perf_counter() - started
    finally:
        comfy.stop()


def measure(rounds: int) -> dict:
    clock, host = Clock(), environment.prepare()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            clock.time(TORCH, "-c", "import torch")
            clock.time(LIBRARY, "-c", "import gtr_core")
            clock.time(COMMAND, "-m", "gtr_core", "generate", "--class", "2", "-o", str(Path(folder, "image.png")))
            for what, seconds in server(host, Path(folder, "base")):
                clock.seconds[what].append(seconds)
    return {"workflow": WORKFLOW.relative_to(dev.ROOT).as_posix(), "rounds": rounds, "rows": clock.rows()}


def lines(result: dict) -> Iterator[str]:
    return (f"{row['what']}: {row['seconds']:.2f} s" for row in result["rows"])


if __name__ == "__main__":
    Program("docs.startup", __doc__, {"rounds": 3}, measure, lines).run()
