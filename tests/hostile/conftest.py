"""How many hostile inputs were tried, at the end of the run."""

from __future__ import annotations

import pytest

TALLY = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash.setdefault(TALLY, {})


@pytest.fixture
def tally(pytestconfig: pytest.Config):
    """tally(what, count) puts a number into the report."""

    def add(what: str, count: int) -> None:
        counts = pytestconfig.stash.setdefault(TALLY, {})
        counts[what] = counts.get(what, 0) + count

    return add


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    counts = config.stash.get(TALLY, {})
    if counts:
        terminalreporter.write_line("hostile inputs tried: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
