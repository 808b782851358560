"""The search for a schedule: its candidates keep to the cost, its rounds keep the best."""

from __future__ import annotations

import pytest
from gtr_pack.gtr_core.costs.flops import count_method, origin_of
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation.evaluate import Effort, Kept, evaluate
from gtr_pack.gtr_core.evaluation.features import ImageFeatures
from gtr_pack.gtr_core.evaluation.search import KEPT, CostTarget, Space, candidates, search
from gtr_pack.gtr_core.evaluation.tables import Figures
from gtr_pack.gtr_core.models.mar import mar_spec
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule


def test_candidates_keep_to_the_cost():
    spec, space = mar_spec("mar-b"), Space(guidance=(Guidance(1.0), Guidance(3.0)))
    target = CostTarget(spec, 4.0)
    found = candidates(space, target, 12, seed=1)
    assert len({method.name for method in found}) == 12
    assert {method.guidance.scale for method in found} == {1.0, 3.0}
    assert len({method.schedule.stages for method in found}) > 2
    for method in found:
        tokens = [step.tokens for step in make_plan(method, spec.grid, (0,)).steps]
        assert all(after >= before - 1 for before, after in zip(tokens, tokens[1:]))  # even counts differ by one
        own = count_method(method, spec, spec.grid).total
        origin = count_method(origin_of(spec, guided=method.guidance.enabled), spec, spec.grid).total
        assert 4.0 <= origin / own <= 4.0 * 1.06 and target.reached(method) == pytest.approx(origin / own)
    assert found == candidates(space, target, 12, seed=1) != candidates(space, target, 12, seed=2)


def test_a_cost_out_of_reach_is_refused():
    with pytest.raises(GtRError, match="0 of 3 candidates found at 500 x: choose a target"):
        candidates(Space(), CostTarget(mar_spec("mar-b"), 500.0), 3, seed=0)


class SumOfFeatures:
    """A figure that is quickly computed."""

    def figures(self, made: ImageFeatures, seed: int) -> Figures:
        return {"frechet": float(made.features.sum())}

    def floor(self, seeds) -> dict:
        return {}


@pytest.mark.slow
def test_rounds_keep_the_best(evaluation, tmp_path):
    methods = [Method(Schedule(f"{count} steps", "random", (count,), diffusion=(2, 2, 2))) for count in (1, 2, 3, 4, 5)]
    measures, effort = SumOfFeatures(), Effort(Kept(tmp_path), batch=4)
    first, last = search(evaluation, methods, (0, 1), 4, measures, effort)
    assert [len(first), len(last)] == [5, KEPT] and [first[0]["images"], last[0]["images"]] == [4, 8]
    for rows in (first, last):
        means = [row["figures"]["frechet"]["mean"] for row in rows]
        assert means == sorted(means)
    assert {row["method"] for row in last} == {row["method"] for row in first[:KEPT]}
    alone = evaluate(
        evaluation,
        [method for method in methods if method.name == last[0]["method"]],
        (0, 1),
        8,
        Effort(Kept(tmp_path / "again"), batch=4),
    )[last[0]["method"]]
    assert last[0]["values"]["frechet"] == pytest.approx([measures.figures(made, 0)["frechet"] for made in alone])
