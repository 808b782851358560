"""The invariants of the one loop."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.mar import MAR
from gtr_pack.gtr_core.models.prompts import EditCondition
from gtr_pack.gtr_core.noise import SeededNoise, image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.models import SMALL_MAR, seeded_mar
from gtr_tests.runs import inputs_of
from gtr_tests.runs import run as run_method

GTR = Schedule("small", "gtr", (4, 2, 2), diffusion=(8, 4, 4), decoder_scope="stage")
METHOD = Method(GTR, Guidance(2.0), FTS(0.25, 8))
RANDOM = replace(METHOD, schedule=Schedule("small-random", "random", (6,), diffusion=(6, 6, 6)))
SEEDS = (11, 12, 13)
TESTS = Path(__file__).resolve().parents[2]


def run(model, method=METHOD, seeds=SEEDS, labels=None, **settings):
    labels = torch.arange(len(seeds)) if labels is None else torch.tensor(labels)
    return run_method(model, method, labels, seeds, **settings)


def of_one_image(step, k: int):
    """An AR step of image ``k`` alone."""
    rows = slice(k, k + 1)
    return replace(step, known=step.known[rows], targets=step.targets[rows], context=step.context[rows])


@pytest.mark.parametrize("method", [METHOD, RANDOM], ids=["gtr", "random"])
def test_plan_and_noise_of_an_image_do_not_depend_on_its_batch(method):
    seeds = image_seeds(40, 5)
    whole = make_plan(method, (6, 6), seeds)
    noise = SeededNoise(seeds, 4)
    for images in ([0], [4], [1, 3]):
        part = make_plan(method, (6, 6), [seeds[k] for k in images])
        some = SeededNoise(tuple(seeds[k] for k in images), 4)
        for index, (ours, theirs) in enumerate(zip(part.steps, whole.steps)):
            for name in ("known", "targets", "context"):
                assert np.array_equal(getattr(ours, name), getattr(theirs, name)[images])
            for mine, all_of_them in zip(some.draw(index, ours.tokens, 5), noise.draw(index, ours.tokens, 5)):
                assert torch.equal(mine, all_of_them[..., images, :, :])


@pytest.mark.parametrize("method", [METHOD, RANDOM], ids=["gtr", "random"])
def test_teacher_forced_steps_of_an_image_do_not_depend_on_its_batch(small_mar, method):
    """Every AR step from the batch's state, alone and together: equal within float32 rounding."""
    seeds = image_seeds(7, 3)
    plan, states = make_plan(method, (6, 6), seeds), []
    run(small_mar, method, seeds, callback=lambda p: states.append(p.tokens.clone()) if not p.diffusion_step else None)
    for index, step in enumerate(plan.steps):
        for k, seed in enumerate(seeds):
            alone = replace(plan, batch=1, steps=(of_one_image(step, k),))
            tokens = states[index][k : k + 1]
            out = sample(small_mar, alone, torch.tensor([k]), SeededNoise((seed,), 4), tokens=tokens)
            torch.testing.assert_close(out, states[index + 1][k : k + 1], rtol=1e-4, atol=1e-5)
    assert SeededNoise(seeds, 4).draw(0, 2, 3)[0].shape == (3, 2, 4)


def test_the_seed_of_an_image_is_seed_plus_index():
    assert image_seeds(2**64 - 1, 3) == (2**64 - 1, 0, 1)
    assert image_seeds(5, [4, 2]) == (9, 7)


def test_runs_repeat_bitwise_also_after_a_cancel_and_an_error(small_mar):
    first = run(small_mar)

    def cancel(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small_mar, callback=cancel)
    with pytest.raises(GtRError):
        run(small_mar, labels=[1])
    assert torch.equal(run(small_mar), first)


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(small_mar, tmp_path):
    """Invariant 3, against a process in which nothing ran before."""
    script = (
        f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(Path(__file__).parent)!r}]\n"
        "import conftest, torch, test_sampler as t\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"torch.save(t.run(t.seeded_mar()), {str(tmp_path / 'out.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    run(small_mar, RANDOM)
    assert torch.equal(run(small_mar), torch.load(tmp_path / "out.pt", weights_only=True))


def test_a_cancel_takes_effect_within_one_step(small_mar):
    calls = []

    def cancel(progress):
        calls.append((progress.step, progress.diffusion_step))
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small_mar, callback=cancel)
    assert len(calls) == 4 and calls[-1][0] <= 3


def test_no_tensor_outlives_a_run(small_mar):
    alive = []

    def remember(progress):
        alive.extend([weakref.ref(progress.tokens), weakref.ref(progress.known)])

    out = run(small_mar, callback=remember)
    result = weakref.ref(out)
    del out
    gc.collect()
    assert result() is None
    assert [ref for ref in alive if ref() is not None] == []

    def cancel(progress):
        remember(progress)
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(small_mar, callback=cancel)
    del caught
    gc.collect()
    assert [ref for ref in alive if ref() is not None] == []


def test_no_global_state_changes(small_mar):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.is_grad_enabled()
    run(small_mar)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chain_and_head_are_float32_whatever_the_weights(dtype):
    model = seeded_mar(dtype)
    seen = set()
    model.head.register_forward_hook(lambda module, inputs, output: seen.add((inputs[0].dtype, output.dtype)))
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    out = run(model, runtime=Runtime(dtype=dtype))
    assert out.dtype == torch.float32 and torch.isfinite(out).all()
    assert seen == {(torch.float32, torch.float32)}


def test_temperature_zero_ignores_the_step_noise(small_mar):
    class Louder(SeededNoise):
        def draw(self, step, tokens, diffusion_steps):
            init, steps = super().draw(step, tokens, diffusion_steps)
            return init, steps * 7

    plan = make_plan(Method(GTR, temperature=0.0), (6, 6), (1,))
    quiet, loud = (sample(small_mar, plan, torch.tensor([1]), source((1,), 4)) for source in (SeededNoise, Louder))
    assert torch.equal(quiet, loud)


def test_known_tokens_come_back_bitwise(small_mar):
    unknown = np.zeros((6, 6), bool)
    unknown[2:5, 1:4] = True
    given = torch.randn(2, 36, 4, generator=torch.Generator().manual_seed(5))
    out = run(small_mar, Method(GTR, Guidance(2.0)), (1, 2), unknown=unknown, tokens=given)
    kept = torch.from_numpy(~unknown.ravel())
    assert torch.equal(out[:, kept], given[:, kept])
    assert not torch.equal(out[:, ~kept], given[:, ~kept])


def test_guidance_of_one_runs_half_the_rows(small_mar):
    def rows(scale):
        method = Method(GTR, Guidance(scale))
        return sum(shape[0] for shape in inputs_of(small_mar.head, lambda: run(small_mar, method)))

    assert rows(2.0) == 2 * rows(1.0)


@pytest.mark.parametrize("cache", [None, Reference()], ids=["direct", "reference"])
def test_before_guidance_starts_a_run_is_the_unguided_one(small_mar, cache):
    """And evaluates the head on half the rows."""

    def tokens_and_rows(**guidance):
        seen, method = [], Method(RANDOM.schedule, Guidance(**guidance), cache=cache)

        def see(progress):
            if not progress.diffusion_step:
                seen.append(progress.tokens.clone())

        shapes = inputs_of(small_mar.head, lambda: run(small_mar, method, callback=see))
        return seen, sum(shape[0] for shape in shapes)

    plain, fewest = tokens_and_rows(scale=1.0)
    never, also_fewest = tokens_and_rows(scale=2.0, start=1.0)
    late, some = tokens_and_rows(scale=2.0, start=0.5)
    assert fewest == also_fewest < some < 2 * fewest and all(map(torch.equal, plain, never))
    steps = make_plan(RANDOM, small_mar.spec.grid, SEEDS).steps
    first = next(k for k, step in enumerate(steps) if step.progress >= 0.5)
    assert [torch.equal(*pair) for pair in zip(plain, late)] == [k <= first for k in range(len(steps) + 1)]


def test_progress_counts_up_to_the_end(small_mar):
    seen = []
    run(
        small_mar, callback=lambda p: seen.append((p.step, p.steps, p.known.shape[1])) if not p.diffusion_step else None
    )
    assert [step for step, _, _ in seen] == list(range(9)) and seen[-1] == (8, 8, 36)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            dict(schedule=replace(preset("gtr-full"), steps=(2, 1, 1)), grid=(8, 8)),
            "small draws 96 x 96 pixels only, found 128 x 128",
        ),
        (dict(labels=[0]), "give one per image"),
        (dict(labels=[0, 5]), "small has classes 0 to 4"),
        (dict(labels=[-2, 1]), "small has classes 0 to 4"),
        (dict(labels=[0.0, 1.0]), "small is conditioned on class labels"),
        (dict(negative=torch.tensor([0])), "give one per image"),
        (dict(negative=torch.tensor([0, 5])), "small has classes 0 to 4"),
        (dict(negative=EditCondition(torch.ones(2, 3), torch.zeros(2, 6, 6, 4))), "small cannot change a picture"),
        (dict(fts=FTS(0.1, 1000), base_steps=500), "has 500"),
        (dict(tokens=torch.zeros(2, 36, 5)), "expected \\(2, 36, 4\\)"),
        (dict(unknown=np.eye(6) > 0), "the plan leaves 30 tokens alone: give their values"),
    ],
)
def test_what_does_not_fit_is_refused(small_mar, change, words):
    method = Method(change.pop("schedule", GTR), fts=change.pop("fts", None))
    if steps := change.pop("base_steps", None):
        small_mar = MAR(replace(SMALL_MAR, diffusion=DiffusionSpec(base_steps=steps)))
    with pytest.raises(GtRError, match=words):
        run(small_mar, method, (1, 2), change.pop("labels", [0, 1]), **change)
