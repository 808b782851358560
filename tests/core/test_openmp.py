"""How OpenMP's threads wait: bounded, unless somebody has chosen otherwise, and said before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gtr_pack.gtr_core.openmp import COUNT, POLICY, ROUNDS, bound_spinning

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "chosen, expected",
    [({}, {COUNT: str(ROUNDS)}), ({POLICY: "active"}, {POLICY: "active"}), ({COUNT: "7"}, {COUNT: "7"})],
)
def test_spinning_is_bounded_unless_somebody_has_chosen(chosen, expected):
    environment = dict(chosen)
    bound_spinning(environment)
    assert environment == expected


WATCHED = f"""
import os, sys
from importlib.abc import MetaPathFinder

class Watcher(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("{COUNT}"), file=sys.stderr)

sys.meta_path.insert(0, Watcher())
from gtr_core.__main__ import main
sys.argv[1:] = ["schedule", "--preset", "gtr-paper", "--json"]
main()
"""


def test_the_command_line_says_so_before_torch_is_there():
    environment = {name: value for name, value in os.environ.items() if name not in (POLICY, COUNT)}
    done = subprocess.run([sys.executable, "-c", WATCHED], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = done.stderr.split()
    assert seen == ["None"] * (len(seen) - 1) + [str(ROUNDS)]  # before it is imported it is looked for
