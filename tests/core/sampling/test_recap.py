"""ReCAP in closed form: where a local step equals a full one, what it reads, which steps are local, what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import build
from gtr_pack.gtr_core.models.mar import MAR, mar_spec
from gtr_pack.gtr_core.noise import image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import Plan, make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.acceleration import Prepared
from gtr_pack.gtr_core.sampling.evaluator import DirectEvaluator, Run
from gtr_pack.gtr_core.sampling.recap import ReCAP
from gtr_tests.models import SMALL_MAR, seeded
from gtr_tests.recorded import error
from gtr_tests.runs import positions_of, run
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

GTR = Schedule("x", "gtr", (6, 3, 2), diffusion=(4, 3, 3))
RANDOM = Schedule("x", "random", (9,), diffusion=(4, 3, 3))
FULL_SCOPE, STAGE_SCOPE = (
    Method(GTR, Guidance(2.0), FTS(0.3, 6)),
    Method(replace(GTR, decoder_scope="stage"), Guidance(2.0)),
)
METHODS = {"gtr": FULL_SCOPE, "stage": STAGE_SCOPE, "random": Method(RANDOM, Guidance(2.0)), "unguided": Method(RANDOM)}
SEEDS = image_seeds(4, 3)
ROUNDING = 1e-5


@dataclass
class Forced:
    """Conditioning vectors of an evaluator that is given the tokens of every AR step, not what it made itself."""

    model: nn.Module
    plan: Plan
    condition: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, model: nn.Module, method: Method, condition: Tensor, unknown: np.ndarray | None = None) -> Forced:
        grid = model.spec.grid
        plan = make_plan(method, grid, SEEDS, unknown=unknown)
        shape = (len(SEEDS), grid[0] * grid[1], model.spec.head.channels)
        return cls(model, plan, condition, torch.randn(shape, generator=torch.Generator().manual_seed(8)))

    def run(self) -> Run:
        return Run(Prepared(self.model), self.plan, (self.condition, None), Runtime())

    def step(self, evaluator, index: int, tokens: Tensor | None = None) -> Tensor:
        """z (branches, B, T, D) of one AR step."""
        step = self.plan.steps[index]
        return torch.stack(
            evaluator.conditioning(step, self.tokens if tokens is None else tokens, positions_of(step))[: step.branches]
        )

    def plain(self) -> list[Tensor]:
        direct = DirectEvaluator.start(self.run())
        return [self.step(direct, index) for index in range(len(self.plan.steps))]

    def cached(self, cache: ReCAP) -> list[Tensor]:
        evaluator = cache.start(self.run())
        return [self.step(evaluator, index) for index in range(len(self.plan.steps))]


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 3, 4])


def is_local(cache: ReCAP, plan: Plan) -> list[bool]:
    return [step is not group[0] for group in cache.groups(plan) for step in group]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep_buffer", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_full_steps_are_the_models_own_and_local_ones_come_near(name, keep_buffer, masked, small_mar, labels):
    unknown = np.ones((6, 6), bool)
    unknown[0, :4] = not masked
    forced, cache = Forced.of(small_mar, METHODS[name], labels, unknown), ReCAP(2, 1, keep_buffer)
    local = is_local(cache, forced.plan)
    assert 3 <= sum(local) < len(local)
    distances = [error(found, plain) for found, plain in zip(forced.cached(cache), forced.plain())]
    assert max(distance for distance, of_local in zip(distances, local) if not of_local) < ROUNDING
    assert all(ROUNDING < distance < 0.7 for distance, of_local in zip(distances, local) if of_local)


@pytest.mark.parametrize("cache", [ReCAP(0, 0), ReCAP(99, 3)])
def test_without_local_steps_a_run_is_the_plain_one(cache, small_mar, labels):
    plain = run(small_mar, FULL_SCOPE, labels)
    assert error(run(small_mar, replace(FULL_SCOPE, cache=cache), labels), plain) < ROUNDING


def all_at_once(steps: int) -> Method:
    """Whose plan is one group of a full step and ``steps - 1`` local ones, from nothing."""
    return Method(replace(RANDOM, steps=(steps,)), Guidance(2.0))


def test_from_nothing_to_everything_in_one_group_is_exact(small_mar, labels):
    """Nothing stale is left then but the buffer, which is computed again."""
    forced = Forced.of(small_mar, all_at_once(5), labels)
    assert is_local(ReCAP(0, 9, False), forced.plan) == [False] + [True] * 4
    for found, plain in zip(forced.cached(ReCAP(0, 9, False)), forced.plain()):
        assert error(found, plain) < ROUNDING


def test_from_nothing_with_one_decoder_block_is_exact(labels):
    """Kept decoder rows are then mask tokens before their first block, which have seen nothing."""
    model = seeded(MAR(replace(SMALL_MAR, encoder_depth=3, decoder_depth=1)))
    forced, cache = Forced.of(model, all_at_once(8), labels), ReCAP(0, 3, False)
    found, plain = forced.cached(cache), forced.plain()
    assert max(error(a, b) for a, b in zip(found[:4], plain[:4])) < ROUNDING
    assert min(error(a, b) for a, b in zip(found[5:], plain[5:])) > ROUNDING


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep_buffer", [True, False])
def test_where_rows_do_not_see_each_other_every_local_step_is_exact(name, keep_buffer, labels):
    """Every position is attended to once, by the values of its own row."""
    model = seeded(MAR(replace(SMALL_MAR, encoder_depth=2, decoder_depth=3)))
    for block in [*model.encoder_blocks, *model.decoder_blocks[:-1]]:
        block.attn.proj.weight.zero_()
    forced = Forced.of(model, METHODS[name], labels)
    for found, plain in zip(forced.cached(ReCAP(0, 2, keep_buffer)), forced.plain()):
        assert error(found, plain) < ROUNDING


def test_a_local_step_reads_what_its_group_decoded_and_nothing_else(small_mar, labels):
    """Neither tokens from before the full step, nor what the local step before it computed."""
    forced, cache = Forced.of(small_mar, METHODS["random"], labels), ReCAP(0, 2)
    expected = forced.cached(cache)
    evaluator, full = cache.start(forced.run()), forced.plan.steps[3]
    forced.step(evaluator, 3)
    decoded = np.concatenate([full.targets, forced.plan.steps[4].targets], axis=1)
    only = torch.full_like(forced.tokens, torch.nan)
    for image, places in enumerate(decoded):
        only[image, places] = forced.tokens[image, places]
    assert error(forced.step(evaluator, 5, only), expected[5]) < ROUNDING


@pytest.mark.parametrize("name", METHODS)
def test_an_image_does_not_depend_on_its_batch(name, small_mar, labels):
    forced, cache = Forced.of(small_mar, METHODS[name], labels), ReCAP(1, 1)
    together = forced.cached(cache)
    for k, seed in enumerate(SEEDS):
        plan = make_plan(METHODS[name], (6, 6), (seed,))
        alone = Forced(small_mar, plan, labels[k : k + 1], forced.tokens[k : k + 1])
        for one, all_of_them in zip(alone.cached(cache), together):
            assert error(one, all_of_them[:, k : k + 1]) < ROUNDING


def test_parts_of_a_batch_keep_their_own(small_mar, labels, monkeypatch):
    """What a processor takes through the transformer at once does not change the image."""
    forced, cache = Forced.of(small_mar, FULL_SCOPE, labels), ReCAP(1, 1)
    whole = forced.cached(cache)
    monkeypatch.setattr("gtr_pack.gtr_core.sampling.evaluator.images_at_once", lambda *_: 2)
    for parts, together in zip(forced.cached(cache), whole):
        assert error(parts, together) < ROUNDING


def test_runs_repeat_bitwise_also_after_a_cancel(small_mar, labels):
    method = replace(FULL_SCOPE, cache=ReCAP(1, 1))
    first = run(small_mar, method, labels)

    def cancel(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small_mar, method, labels, callback=cancel)
    assert torch.equal(run(small_mar, method, labels), first)
    assert not torch.equal(run(small_mar, FULL_SCOPE, labels), first)


@pytest.mark.parametrize(
    "method, cache, local",
    [
        (FULL_SCOPE, ReCAP(0, 1), "01010101010"),
        (FULL_SCOPE, ReCAP(4, 1), "00000101010"),
        (FULL_SCOPE, ReCAP(1, 2), "00110110110"),
        # The decoder of a stage has not seen the next stage's positions: the first step of each is full.
        (STAGE_SCOPE, ReCAP(0, 3), "01110101101"),
        # Guidance begins with the third step, inside a group: nothing was kept for the null condition.
        (Method(replace(RANDOM, steps=(6,)), Guidance(2.0, start=0.1)), ReCAP(0, 5), None),
    ],
)
def test_which_steps_are_local(method, cache, local):
    plan = make_plan(method, (6, 6), SEEDS)
    found = is_local(cache, plan)
    if local is not None:
        assert "".join("01"[of] for of in found) == local
        return
    begins = next(step.index for step in plan.steps if step.branches == 2)
    assert begins > 0 and not found[begins] and found[1:begins] + found[begins + 1 :] == [True] * 4


def test_lightgen_from_nothing_to_everything_is_exact(lightgen, golden):
    """Its trunk is evaluated once for both conditions; without a buffer the kept encoder is empty at first."""
    text = golden("lightgen_tiny_backbone")["text_in"][:1].expand(3, -1, -1)
    forced = Forced.of(lightgen, all_at_once(4), text)
    for found, plain in zip(forced.cached(ReCAP(0, 9)), forced.plain()):
        assert error(found, plain) < 1e-4
    later = Forced.of(lightgen, all_at_once(12), text)
    distances = [error(a, b) for a, b in zip(later.cached(ReCAP(4, 1)), later.plain())]
    assert [distance > 1e-4 for distance in distances] == is_local(ReCAP(4, 1), later.plan)


@pytest.mark.parametrize("keep_buffer", [True, False])
@pytest.mark.parametrize("scope", ["full", "stage"])
def test_its_flops_are_what_torch_counts(keep_buffer, scope):
    """Counted as the plain computation; of the last block only the step's own rows are really computed."""
    spec = replace(mar_spec("mar-b"), encoder_depth=2, decoder_depth=3)
    cache = ReCAP(1, 2, keep_buffer)
    method = Method(Schedule("x", "gtr", (6, 3, 2), diffusion=(4, 3, 3), decoder_scope=scope), Guidance(3.0))
    plan, model = make_plan(method, spec.grid, (0,)), build(spec, device="meta").requires_grad_(False)
    evaluator = cache.start(
        Run(Prepared(model), plan, (torch.zeros(1, dtype=torch.int64, device="meta"), None), Runtime("meta"))
    )
    tokens, seen = torch.empty(1, 256, 16, device="meta"), 0
    for group in cache.groups(plan):
        full, tokens_of_group = group[0], sum(step.tokens for step in group)
        for step in group:
            with FlopCounterMode(display=False) as counter:
                evaluator.conditioning(step, tokens, positions_of(step, "meta"))
            if step is full:
                continue
            parts = cache.flops(plan, step, spec).parts
            rows = tokens_of_group + (0 if keep_buffer else spec.buffer)
            keys = spec.buffer + full.known.shape[1] + full.masked
            left_out = (rows - step.tokens) * (2 * spec.dim**2 * (1 + 2 * spec.mlp_ratio) + 4 * keys * spec.dim)
            assert counter.get_total_flops() == parts["encoder"] + parts["decoder"] - step.branches * left_out
            seen += 1
    assert seen >= 4


def test_the_papers_way_counts_as_the_plain_one_where_nothing_is_kept():
    """Nothing known, everything decoded in the group, the buffer again: all rows are computed."""
    spec = mar_spec("mar-b")
    plan = make_plan(Method(replace(RANDOM, steps=(4,)), Guidance(3.0)), spec.grid, (0,))
    for step in plan.steps[1:]:
        counted = ReCAP(0, 3, False).flops(plan, step, spec).parts
        plain = (spec.transformer_flops(step.known.shape[1], step.masked) * step.branches).parts
        assert counted["encoder"] == plain["encoder"] and counted["decoder"] == plain["decoder"]


def test_it_says_what_it_saves(small_mar):
    plan = make_plan(FULL_SCOPE, (6, 6), SEEDS)
    assert ReCAP(4, 1).summary(plan, small_mar.spec).startswith("ReCAP: 8 full and 3 local AR steps, ")
    assert (
        ReCAP(99)
        .summary(plan, small_mar.spec)
        .endswith("11 full and 0 local AR steps, 0% of the transformer's FLOPs saved")
    )


@pytest.mark.parametrize("settings", [dict(start_step=-1), dict(local_steps=-1)])
def test_wrong_settings_say_what_is_expected(settings):
    with pytest.raises(GtRError, match="expected 0 or more of each"):
        ReCAP(**settings)
