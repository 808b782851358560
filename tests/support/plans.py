"""What holds for every plan."""

from __future__ import annotations

import numpy as np
from gtr_pack.gtr_core.plans.plan import Plan


def assert_covers(plan: Plan, unknown: np.ndarray) -> None:
    """Invariant 4: every unknown token exactly once, no known token; index tables agree with each other."""
    expected = np.flatnonzero(unknown)
    for image in range(plan.batch):
        decoded = np.concatenate([step.targets[image] for step in plan.steps] or [np.zeros(0, int)])
        assert sorted(decoded) == expected.tolist()
        known = set(np.flatnonzero(~unknown.ravel()))
        for step in plan.steps:
            assert set(step.known[image]) == known
            assert not known & set(step.targets[image])
            assert not (known | set(step.targets[image])) & set(step.context[image])
            known |= set(step.targets[image])
