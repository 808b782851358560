"""LazyMAR against a recorded run: conditioning vectors, samples, and which tokens the pruning keeps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan, plan_from_sequences
from gtr_pack.gtr_core.plans.schedule import Schedule, cosine_counts
from gtr_pack.gtr_core.sampling.acceleration import Prepared
from gtr_pack.gtr_core.sampling.evaluator import Run
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.recorded import error
from gtr_tests.runs import run

GUIDANCE = Guidance(3.25, "linear")
RECORDED = Method(Schedule("recorded", "random", (64,), diffusion=(21, 21, 21)), GUIDANCE)


class Recorded:
    """Noise of all AR steps in one array of rows, conditional branch only."""

    def __init__(self, g):
        self.g, self.counts = g, g["n_pred"].tolist()

    def draw(self, step, tokens, diffusion_steps):
        start = sum(self.counts[:step])
        rows = slice(start, start + tokens)
        return self.g["init"][None, rows], self.g["steps_cond"][rows].transpose(0, 1)[:, None]


@dataclass
class Watching:
    """LazyMAR as a cache, whose evaluator notes z of every AR step and the places that its pruning kept."""

    accelerated = False
    own_head = True
    record: list = field(default_factory=list)

    def start(self, run):
        self.evaluator = LazyMAR().start(run)
        return self

    def conditioning(self, step, tokens, positions):
        self.evaluator.kept = None
        z = self.evaluator.conditioning(step, tokens, positions)
        self.record.append((z, self.evaluator.kept))
        return z

    def diffuse(self, *arguments):
        return self.evaluator.diffuse(*arguments)


def recorded_run(model, g, cache):
    method = replace(RECORDED, cache=cache)
    plan = plan_from_sequences(method, (16, 16), [g["orders"].numpy()[:, ::-1]], [cosine_counts(256, 64)])
    return sample(model, plan, torch.tensor([4]), Recorded(g))


def test_a_run_equals_the_recorded_one(golden, lazymar_mar):
    g, cache = golden("lazymar_tiny_lazy"), Watching()
    out = recorded_run(lazymar_mar, g, cache)
    assert error(out, g["latent"].flatten(2).transpose(1, 2)) < 1e-3
    conditional = torch.cat([z[0][0] for z, _ in cache.record])
    unconditional = torch.cat([z[1][0] for z, _ in cache.record])
    assert error(conditional, g["z"][0]) < 1e-3 and error(unconditional, g["z"][1]) < 1e-3
    lazy = [index for index, (_, kept) in enumerate(cache.record) if kept is not None]
    assert lazy == g["kept_step"].tolist() and len(lazy) == 52
    for index, mask in zip(lazy, g["kept_mask"]):
        assert cache.record[index][1][0].tolist() == torch.nonzero(mask)[:, 0].tolist()
    assert torch.equal(recorded_run(lazymar_mar, g, LazyMAR()), out)


def test_the_same_run_without_a_cache(golden, lazymar_mar):
    out = recorded_run(lazymar_mar, golden("lazymar_tiny_lazy"), None)
    assert error(out, golden("lazymar_tiny_plain")["latent"].flatten(2).transpose(1, 2)) < 1e-3


def test_a_cache_that_is_always_fresh_changes_nothing(lazymar_mar):
    """With every AR step fresh and every diffusion step key, LazyMAR is the plain run."""
    method, labels = Method(Schedule("x", "gtr", (3, 2, 1), diffusion=(5, 5, 5)), GUIDANCE), torch.tensor([1, 2])
    plain = run(lazymar_mar, method, labels, (1, 2))
    fresh = run(lazymar_mar, replace(method, cache=LazyMAR(period=1, head_period=1)), labels, (1, 2))
    assert error(fresh, plain) < 1e-3


def test_a_revision_is_computed_in_full(lazymar_mar):
    """Tokens that were known are not, so nothing that was kept holds: with every other step fresh it makes no
    difference that the step before was not."""
    method = Method(Schedule("x", "gtr", (3, 2, 1), diffusion=(5, 5, 5)), GUIDANCE, revise=0.25)
    plan = make_plan(method, (16, 16), (1, 2))
    assert [LazyMAR(1, 2).fresh(step) for step in plan.steps] == [True, True, False, True, False, True, True]
    labels = torch.tensor([1, 2])
    always = run(lazymar_mar, replace(method, cache=LazyMAR(6, 9, head_period=1)), labels, (1, 2))
    assert error(always, run(lazymar_mar, method, labels, (1, 2))) < 1e-3


def test_a_revision_changes_no_step_before_it(lazymar_mar):
    """Least of all how many tokens they prune."""
    method = Method(Schedule("x", "random", (21,), diffusion=(4, 4, 4)), GUIDANCE, cache=LazyMAR())
    plan = make_plan(replace(method, revise=0.25), (16, 16), (1,))
    first, revised = (run(lazymar_mar, replace(method, revise=share), torch.tensor([1]), (1,)) for share in (0, 0.25))
    kept = np.setdiff1d(np.arange(256), plan.steps[-1].targets[0])
    assert plan.steps[-1].revision and len(kept) == 192
    assert torch.equal(first[0, kept], revised[0, kept]) and not torch.equal(first, revised)


def test_its_state_belongs_to_one_run(lazymar_mar):
    method = Method(Schedule("x", "random", (12,), diffusion=(8, 8, 8)), GUIDANCE, cache=LazyMAR())
    labels = torch.tensor([1, 2])
    first = run(lazymar_mar, method, labels, (1, 2))
    assert torch.equal(run(lazymar_mar, method, labels, (1, 2)), first)
    for k in range(2):
        alone = run(lazymar_mar, method, labels[k : k + 1], (1 + k,))
        assert error(alone[0], first[k]) < 1e-2


@pytest.mark.parametrize(
    "schedule, guidance, words",
    [
        (Schedule("x", "random", (8,)), Guidance(1.0), "needs guidance, found a scale of 1"),
        (Schedule("x", "random", (8,)), Guidance(3.0, start=0.5), "needs guidance from the first step on"),
        (Schedule("x", "gtr", (2, 1), decoder_scope="stage"), GUIDANCE, "needs the full decoder scope"),
    ],
)
def test_where_it_does_not_apply_it_says_so(schedule, guidance, words, lazymar_mar):
    with pytest.raises(GtRError, match=words):
        run(lazymar_mar, Method(schedule, guidance, cache=LazyMAR()), torch.tensor([1]), (1,))


def test_it_works_with_mar_only(lightgen, golden):
    method = Method(Schedule("x", "random", (4,)), GUIDANCE, cache=LazyMAR())
    with pytest.raises(GtRError, match="works with MAR models, found lightgen"):
        run(lightgen, method, golden("lightgen_tiny_backbone")["text_in"], grid=(8, 8))


def test_a_shallow_decoder_prunes_in_its_last_block(lazymar_mar):
    plan = make_plan(Method(Schedule("x", "random", (8,)), GUIDANCE), (16, 16), (1,))
    last = lazymar_mar.spec.decoder_depth - 1
    conditions = Run(Prepared(lazymar_mar), plan, (torch.tensor([1]), None), Runtime())
    evaluators = [LazyMAR(prune_block=block).start(conditions) for block in (last, 64, last - 1)]
    assert [evaluator.settings.prune_block for evaluator in evaluators] == [last, last, last - 1]


def test_wrong_settings_say_what_is_expected():
    with pytest.raises(GtRError, match="at least 1"):
        LazyMAR(period=0)
