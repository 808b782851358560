"""LazyMAR against a recorded run: conditioning vectors, samples, and which tokens the pruning keeps."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.mar import MAR, infer_mar_spec
from gtr_pack.gtr_core.noise import SeededNoise
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.plans.plan import make_plan, plan_from_sequences
from gtr_pack.gtr_core.plans.schedule import Schedule, cosine_counts
from gtr_pack.gtr_core.sampling.lazymar import LazyEngine, LazyMAR
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.recorded import error

GUIDANCE = Guidance(3.25, "linear")


@pytest.fixture(scope="module")
def model(golden_weights) -> MAR:
    weights = golden_weights("lazymar_tiny_fp16")
    model = MAR(infer_mar_spec({name: tuple(t.shape) for name, t in weights.items()}, heads=2))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


class Recorded:
    """Noise of all AR steps in one array of rows, conditional half only."""

    def __init__(self, g):
        self.g, self.counts = g, g["n_pred"].tolist()

    def draw(self, step, tokens, diffusion_steps):
        start = sum(self.counts[:step])
        rows = slice(start, start + tokens)
        return self.g["init"][None, rows], self.g["steps_cond"][rows].transpose(0, 1)[:, None]


class Watching(LazyEngine):
    """Records what the sampling loop and the pruning see."""

    def conditioning(self, index, *rest):
        self.kept = None
        z = super().conditioning(index, *rest)
        self.record.append((z, self.kept))
        return z


def test_equals_the_recorded_run(golden, model, monkeypatch):
    g, record = golden("lazymar_tiny_lazy"), []
    Watching.record = record
    monkeypatch.setattr("gtr_pack.gtr_core.sampling.lazymar.LazyEngine", Watching)
    schedule = Schedule("recorded", "random", (64,), diffusion=(21, 21, 21))
    plan = plan_from_sequences(schedule, (16, 16), [g["orders"].numpy()[:, ::-1]], [cosine_counts(256, 64)])
    out = sample(model, plan, torch.tensor([4]), Recorded(g), guidance=GUIDANCE, cache=LazyMAR())
    assert error(out, g["latent"].flatten(2).transpose(1, 2)) < 1e-3
    conditional = torch.cat([z[0][0] for z, _ in record])
    unconditional = torch.cat([z[1][0] for z, _ in record])
    assert error(conditional, g["z"][0]) < 1e-3 and error(unconditional, g["z"][1]) < 1e-3
    lazy = [index for index, (_, kept) in enumerate(record) if kept is not None]
    assert lazy == g["kept_step"].tolist() and len(lazy) == 52
    for index, mask in zip(lazy, g["kept_mask"]):
        assert record[index][1][0].tolist() == torch.nonzero(mask)[:, 0].tolist()


def test_the_same_run_without_a_cache(golden, model):
    g, plain = golden("lazymar_tiny_lazy"), golden("lazymar_tiny_plain")
    schedule = Schedule("recorded", "random", (64,), diffusion=(21, 21, 21))
    plan = plan_from_sequences(schedule, (16, 16), [g["orders"].numpy()[:, ::-1]], [cosine_counts(256, 64)])
    out = sample(model, plan, torch.tensor([4]), Recorded(g), guidance=GUIDANCE)
    assert error(out, plain["latent"].flatten(2).transpose(1, 2)) < 1e-3


def test_a_cache_that_is_always_fresh_changes_nothing(model):
    """With every AR step fresh and every diffusion step key, LazyMAR is the plain run."""
    plan = make_plan(Schedule("x", "gtr", (3, 2, 1), diffusion=(5, 5, 5)), (16, 16), (1, 2))
    noise, labels = SeededNoise((1, 2), model.spec.head.channels), torch.tensor([1, 2])
    plain = sample(model, plan, labels, noise, guidance=GUIDANCE)
    fresh = sample(model, plan, labels, noise, guidance=GUIDANCE, cache=LazyMAR(period=1, head_period=1))
    assert error(fresh, plain) < 1e-3


def test_state_belongs_to_one_run(model):
    plan = make_plan(Schedule("x", "random", (12,), diffusion=(8, 8, 8)), (16, 16), (1, 2))
    noise, labels, cache = SeededNoise((1, 2), model.spec.head.channels), torch.tensor([1, 2]), LazyMAR()
    first = sample(model, plan, labels, noise, guidance=GUIDANCE, cache=cache)
    assert torch.equal(sample(model, plan, labels, noise, guidance=GUIDANCE, cache=cache), first)
    for k in range(2):
        one = make_plan(plan.schedule, (16, 16), (1 + k,))
        alone = sample(
            model,
            one,
            labels[k : k + 1],
            SeededNoise((1 + k,), model.spec.head.channels),
            guidance=GUIDANCE,
            cache=cache,
        )
        assert error(alone[0], first[k]) < 1e-2


@pytest.mark.parametrize(
    "schedule, guidance, cache, words",
    [
        (Schedule("x", "random", (8,)), Guidance(1.0), LazyMAR(), "needs guidance"),
        (Schedule("x", "gtr", (2, 1), decoder_scope="stage"), GUIDANCE, LazyMAR(), "needs the full decoder scope"),
    ],
)
def test_where_it_does_not_apply(schedule, guidance, cache, words, model):
    plan = make_plan(schedule, (16, 16), (1,))
    with pytest.raises(GtRError, match=words):
        sample(
            model, plan, torch.tensor([1]), SeededNoise((1,), model.spec.head.channels), guidance=guidance, cache=cache
        )


def test_a_shallow_decoder_prunes_in_its_last_block(model):
    plan, last = make_plan(Schedule("x", "random", (8,)), (16, 16), (1,)), model.spec.decoder_depth - 1
    engines = [LazyMAR(prune_block=block).start(model, plan, GUIDANCE) for block in (last, 64, last - 1)]
    assert [engine.settings.prune_block for engine in engines] == [last, last, last - 1]


def test_wrong_settings():
    with pytest.raises(GtRError, match="at least 1"):
        LazyMAR(period=0)
