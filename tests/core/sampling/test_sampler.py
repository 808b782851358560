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
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec, chain, denoise
from gtr_pack.gtr_core.diffusion.head import HeadSpec
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.latents import LatentSpec
from gtr_pack.gtr_core.models.mar import MAR, MARSpec
from gtr_pack.gtr_core.noise import SeededNoise, image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_pack.gtr_core.sampling.sampler import sample

GTR = Schedule("small", "gtr", (4, 2, 2), diffusion=(8, 4, 4), decoder_scope="stage")
RANDOM = Schedule("small-random", "random", (6,), diffusion=(6, 6, 6))
DETAIL = FTS(0.25, 8)
ROOT = Path(__file__).resolve().parents[3]


def small_spec() -> MARSpec:
    return MARSpec(
        name="small",
        grid=(6, 6),
        dim=32,
        heads=2,
        encoder_depth=2,
        decoder_depth=2,
        classes=5,
        buffer=4,
        head=HeadSpec(4, 32, 32, 2),
        latent=LatentSpec(channels=4),
        diffusion=DiffusionSpec(beta_cap=0.2),
    )


def seeded_model(dtype=None) -> MAR:
    """Random weights from an explicit generator, the same in every process."""
    model = MAR(small_spec(), dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> MAR:
    return seeded_model()


def run(model, schedule=GTR, seeds=(11, 12, 13), labels=None, **settings):
    plan = make_plan(schedule, model.spec.grid, seeds)
    settings = {"guidance": Guidance(2.0), "fts": DETAIL} | settings
    labels = torch.arange(len(seeds)) if labels is None else torch.tensor(labels)
    return sample(model, plan, labels, SeededNoise(tuple(seeds), model.spec.head.channels), **settings)


@pytest.mark.parametrize("schedule", [GTR, RANDOM], ids=["gtr", "random"])
def test_plan_and_noise_of_an_image_do_not_depend_on_its_batch(schedule):
    seeds = image_seeds(40, 5)
    whole = make_plan(schedule, (6, 6), seeds)
    noise = SeededNoise(seeds, 4)
    for images in ([0], [4], [1, 3]):
        part = make_plan(schedule, (6, 6), [seeds[k] for k in images])
        some = SeededNoise(tuple(seeds[k] for k in images), 4)
        for index, (ours, theirs) in enumerate(zip(part.steps, whole.steps)):
            for name in ("known", "positions", "context"):
                assert np.array_equal(getattr(ours, name), getattr(theirs, name)[images])
            for mine, all_of_them in zip(some.draw(index, ours.tokens, 5), noise.draw(index, ours.tokens, 5)):
                assert torch.equal(mine, all_of_them[..., images, :, :])


@pytest.mark.parametrize("schedule", [GTR, RANDOM], ids=["gtr", "random"])
def test_teacher_forced_steps_of_an_image_do_not_depend_on_its_batch(model, schedule):
    """Every AR step from the batch's state, alone and together: equal within float32 rounding."""
    seeds = image_seeds(7, 3)
    plan, states = make_plan(schedule, (6, 6), seeds), []
    run(model, schedule, seeds, callback=lambda p: states.append(p.tokens.clone()) if not p.diffusion_step else None)
    noise = SeededNoise(seeds, 4)
    for index, step in enumerate(plan.steps):
        for k, seed in enumerate(seeds):
            alone = replace(
                plan,
                batch=1,
                steps=(
                    replace(
                        step,
                        known=step.known[k : k + 1],
                        positions=step.positions[k : k + 1],
                        context=step.context[k : k + 1],
                    ),
                ),
            )
            out = sample(
                model,
                alone,
                torch.tensor([k]),
                Shifted(SeededNoise((seed,), 4), index),
                tokens=states[index][k : k + 1],
                guidance=Guidance(2.0),
                fts=DETAIL,
            )
            torch.testing.assert_close(out, states[index + 1][k : k + 1], rtol=1e-4, atol=1e-5)
    assert noise.draw(0, 2, 3)[0].shape == (3, 2, 4)


class Shifted:
    """The noise of AR step ``offset`` as that of step 0."""

    def __init__(self, noise, offset):
        self.noise, self.offset = noise, offset

    def draw(self, step, tokens, diffusion_steps):
        return self.noise.draw(step + self.offset, tokens, diffusion_steps)

    def shuffled(self, step, tokens):
        return self.noise.shuffled(step + self.offset, tokens)


def test_the_seed_of_an_image_is_seed_plus_index():
    assert image_seeds(2**64 - 1, 3) == (2**64 - 1, 0, 1)
    assert image_seeds(5, [4, 2]) == (9, 7)


def test_runs_repeat_bitwise_also_after_a_cancel_and_an_error(model):
    first = run(model)

    def cancel(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, callback=cancel)
    with pytest.raises(GtRError):
        run(model, labels=[1])
    assert torch.equal(run(model), first)


def test_a_fresh_process_gives_the_same_bits(model, tmp_path):
    """Invariant 3, against a process in which nothing ran before."""
    script = (
        f"import importlib.util, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"spec = importlib.util.spec_from_file_location('gtr_pack', {str(ROOT / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(ROOT)!r}])\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['gtr_pack'] = module\n"
        "import torch, test_sampler as t\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        f"torch.save(t.run(t.seeded_model()), {str(tmp_path / 'out.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    run(model, RANDOM)
    assert torch.equal(run(model), torch.load(tmp_path / "out.pt", weights_only=True))


def test_a_cancel_takes_effect_within_one_step(model):
    calls = []

    def cancel(progress):
        calls.append((progress.step, progress.diffusion_step))
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, callback=cancel)
    assert len(calls) == 4 and calls[-1][0] <= 3


def test_no_tensor_outlives_a_run(model):
    alive = []

    def remember(progress):
        alive.extend([weakref.ref(progress.tokens), weakref.ref(progress.known)])

    out = run(model, callback=remember)
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
        run(model, callback=cancel)
    del caught
    gc.collect()
    assert [ref for ref in alive if ref() is not None] == []


def test_no_global_state_changes(model):
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.is_grad_enabled()
    run(model)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == torch.is_grad_enabled()


class DeviceNoise(SeededNoise):
    """Noise that is on the meta device already."""

    def draw(self, step, tokens, diffusion_steps):
        return tuple(t.to("meta") for t in super().draw(step, tokens, diffusion_steps))


@pytest.mark.parametrize("selection", ["high", "random"])
def test_no_host_sync_in_the_loop(selection):
    """On the meta device there are no values: item(), nonzero() or a branch on a tensor would raise."""
    model = MAR(small_spec(), device="meta")
    plan = make_plan(GTR, (6, 6), (1, 2))
    out = sample(
        model,
        plan,
        torch.zeros(2, dtype=torch.int64),
        DeviceNoise((1, 2), 4),
        device="meta",
        guidance=Guidance(3.0),
        fts=FTS(0.25, 8, selection),
    )
    assert out.shape == (2, 36, 4) and out.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chain_and_head_are_float32_whatever_the_weights(dtype):
    model = seeded_model(dtype)
    seen = set()
    model.head.register_forward_hook(lambda module, inputs, output: seen.add((inputs[0].dtype, output.dtype)))
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    out = run(model, dtype=dtype)
    assert out.dtype == torch.float32 and torch.isfinite(out).all()
    assert seen == {(torch.float32, torch.float32)}


def test_the_chain_recovers_a_point_mass():
    """For data that is one point m the exact eps is known; the chain must end in m (closed form)."""
    spec, point = DiffusionSpec(beta_cap=0.2), torch.tensor([[1.5, -0.5]])
    table = chain(40, spec)
    cumulative = dict(zip(table.timesteps, table.alphas_cumprod))

    def exact(i, x, t):
        a = torch.tensor([cumulative[int(k)] for k in t])[:, None]
        eps = (x.double() - a.sqrt() * point) / (1 - a).sqrt()
        return eps.float(), torch.full_like(x, -1.0)

    generator = torch.Generator().manual_seed(0)
    out = denoise(exact, table, torch.randn(6, 2, generator=generator), torch.randn(40, 6, 2, generator=generator))
    torch.testing.assert_close(out, point.expand(6, 2), rtol=0, atol=2e-3)


def test_temperature_zero_ignores_the_step_noise(model):
    class Louder(SeededNoise):
        def draw(self, step, tokens, diffusion_steps):
            init, steps = super().draw(step, tokens, diffusion_steps)
            return init, steps * 7

    plan = make_plan(GTR, (6, 6), (1,))
    quiet, loud = (
        sample(model, plan, torch.tensor([1]), source((1,), 4), temperature=0.0) for source in (SeededNoise, Louder)
    )
    assert torch.equal(quiet, loud)


def test_known_tokens_come_back_bitwise(model):
    unknown = np.zeros((6, 6), bool)
    unknown[2:5, 1:4] = True
    given = torch.randn(2, 36, 4, generator=torch.Generator().manual_seed(5))
    plan = make_plan(GTR, (6, 6), (1, 2), unknown=unknown)
    out = sample(model, plan, torch.tensor([0, 1]), SeededNoise((1, 2), 4), tokens=given, guidance=Guidance(2.0))
    kept = torch.from_numpy(~unknown.ravel())
    assert torch.equal(out[:, kept], given[:, kept])
    assert not torch.equal(out[:, ~kept], given[:, ~kept])


def test_guidance_of_one_runs_half_the_rows(model):
    rows = []
    handle = model.head.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    run(model, guidance=Guidance(1.0), fts=None)
    plain = sum(rows)
    rows.clear()
    run(model, guidance=Guidance(2.0), fts=None)
    handle.remove()
    assert sum(rows) == 2 * plain


@pytest.mark.parametrize("cache", [None, Reference()], ids=["direct", "reference"])
def test_guidance_from_a_part_on(model, cache):
    """Before its start a run is the unguided one, and evaluates the head on half the rows."""
    rows = []
    handle = model.head.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))

    def tokens_and_rows(**guidance):
        rows.clear()
        seen = []
        run(
            model,
            RANDOM,
            fts=None,
            guidance=Guidance(**guidance),
            cache=cache,
            callback=lambda p: None if p.diffusion_step else seen.append(p.tokens.clone()),
        )
        return seen, sum(rows)

    plain, fewest = tokens_and_rows(scale=1.0)
    never, also_fewest = tokens_and_rows(scale=2.0, start=1.0)
    late, some = tokens_and_rows(scale=2.0, start=0.5)
    handle.remove()
    assert fewest == also_fewest < some < 2 * fewest and all(map(torch.equal, plain, never))
    steps = make_plan(RANDOM, model.spec.grid, (11, 12, 13)).steps
    first = next(k for k, step in enumerate(steps) if step.progress >= 0.5)
    assert [torch.equal(*pair) for pair in zip(plain, late)] == [k <= first for k in range(len(steps) + 1)]


def test_progress_counts_up_to_the_end(model):
    seen = []
    run(model, callback=lambda p: seen.append((p.step, p.steps, p.known.shape[1])) if not p.diffusion_step else None)
    assert [step for step, _, _ in seen] == list(range(9)) and seen[-1] == (8, 8, 36)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            dict(schedule=replace(preset("gtr-full"), steps=(2, 1, 1)), grid=(8, 8)),
            "small draws 96 x 96 pixels only, found 128 x 128",
        ),
        (dict(labels=[0]), "give one per image"),
        (dict(temperature=-1.0), "expected 0 or more"),
        (dict(labels=[0, 5]), "small has classes 0 to 4"),
        (dict(labels=[-2, 1]), "small has classes 0 to 4"),
        (dict(fts=FTS(0.1, 1000), model=True), "has 500"),
        (dict(tokens=torch.zeros(2, 36, 5)), "expected \\(2, 36, 4\\)"),
    ],
)
def test_what_does_not_fit_is_refused(model, change, words):
    plan = make_plan(change.pop("schedule", GTR), change.pop("grid", (6, 6)), (1, 2))
    if change.pop("model", False):
        model = MAR(replace(small_spec(), diffusion=DiffusionSpec(base_steps=500)))
    labels = torch.tensor(change.pop("labels", [0, 1]))
    with pytest.raises(GtRError, match=words):
        sample(model, plan, labels, SeededNoise((1, 2), 4), **change)


@pytest.mark.parametrize(
    "guidance", [dict(schedule="wavy"), dict(scale=float("nan")), dict(start=1.5), dict(start=float("nan"))]
)
def test_wrong_guidance(guidance):
    with pytest.raises(GtRError, match="expected"):
        Guidance(**guidance)
