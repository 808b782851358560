"""Formatting and linting by ruff, with the settings in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gtr_tests.extras import child_environment, needs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("words", [("format", "--check", "--diff"), ("check",)], ids=lambda words: words[0])
@needs("ruff")
def test_ruff_has_nothing_to_say(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "--no-cache", "."],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"[-4000:]
