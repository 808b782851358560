"""How OpenMP's threads wait for work. Standard library only: it must be said before torch is imported.

By default they spin: between two short operations of a small model that is right, but where another program wants the
processor a thread that spins keeps it from the one that is waited for (docs/performance.md).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# How GNU's runtime is told, which torch brings on Linux; any other does not know the second.
POLICY, COUNT = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
# Rounds before a thread sleeps, a third of a millisecond: longer than the time between two operations of a model.
ROUNDS = 20_000


def waiting_is_chosen(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether somebody has said how threads wait."""
    return POLICY in environment or COUNT in environment


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have threads spin for a short time and then sleep, unless somebody has chosen otherwise."""
    if not waiting_is_chosen(environment):
        environment[COUNT] = str(ROUNDS)
