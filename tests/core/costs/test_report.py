"""What a run says about itself while it goes on."""

from __future__ import annotations

from gtr_pack.gtr_core.costs.report import progress_text
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule


def test_progress_counts_both_stages() -> None:
    plan = make_plan(Schedule("s", "gtr", (4, 2, 2)), (8, 8), (0,))
    texts = [progress_text(plan, index) for index in range(8)]
    assert texts == [*(f"generation {k}/6" for k in range(1, 7)), "reconstruction 1/2", "reconstruction 2/2"]
    assert progress_text(plan, 6, 2, 3) == "window 2/3, reconstruction 1/2"
    assert progress_text(make_plan(Schedule("o", "random", (3,)), (8, 8), (0,)), 2) == "generation 3/3"
