"""How OpenMP's threads should wait: ``python -m docs.waiting --json``, from the repository's root.

Seconds of one image of the demo model by `gtr-extreme`, for several ways in which idle threads wait, alone on the
machine and beside one busy program per core. Every number is the median of a few images in a process of its own, and
the ways take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from docs.measuring import Program
from gtr_core.openmp import ROUNDS

BENCH = ("bench", "--model", "demo", "--presets", "gtr-extreme", "--rounds", "3", "--json")
LIMIT = 200  # of seconds for one process
# What the environment says, by what the table calls it. 300000 is what the library takes by itself.
WAYS = {
    "by default (they spin)": {"GOMP_SPINCOUNT": "300000"},
    f"`GOMP_SPINCOUNT={ROUNDS}`": {"GOMP_SPINCOUNT": f"{ROUNDS}"},
    "`GOMP_SPINCOUNT=5000`": {"GOMP_SPINCOUNT": "5000"},
    "`OMP_WAIT_POLICY=passive`": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many programs that never wait."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def image(way: dict[str, str]) -> float:
    """Seconds of an image."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    words = [sys.executable, "-m", "gtr_core", *BENCH]
    done = subprocess.run(words, env=inherited | way, check=True, capture_output=True, text=True, timeout=LIMIT)
    return json.loads(done.stdout)["rows"][0]["seconds"]


def measure(rounds: int) -> dict:
    cores = os.cpu_count() or 1
    rows = [{"way": name, "environment": way, "idle": [], "busy": []} for name, way in WAYS.items()]
    for kind, programs in (("idle", 0), ("busy", cores)):
        with busy(programs):
            for _ in range(rounds):
                for row in rows:
                    row[kind].append(image(row["environment"]))
    return {"measures": "python -m gtr_core " + " ".join(BENCH), "busy_programs": cores, "rows": rows}


def lines(result: dict) -> Iterator[str]:
    for row in result["rows"]:
        yield f"{row['way']}: {median(row['idle']):.2f} s idle, {median(row['busy']):.2f} s busy"


if __name__ == "__main__":
    Program("docs.waiting", __doc__, {"rounds": 5}, measure, lines).run()
