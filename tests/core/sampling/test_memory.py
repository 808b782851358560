"""The estimate of activations against the storages that a run really holds at once, on the meta device."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from gtr_pack.gtr_core.models import build
from gtr_pack.gtr_core.models.lightgen import LIGHTGEN
from gtr_pack.gtr_core.models.mar import mar_spec
from gtr_pack.gtr_core.noise import SeededNoise, image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling import evaluator as engine
from gtr_pack.gtr_core.sampling import memory
from gtr_pack.gtr_core.sampling.memory import activation_bytes, images_that_fit
from gtr_pack.gtr_core.sampling.sampler import sample
from torch.utils._python_dispatch import TorchDispatchMode

SCHEDULES = [
    Schedule("gtr", "gtr", (2, 1, 1), diffusion=(3, 2, 2)),
    Schedule("stage", "gtr", (2, 1, 1), diffusion=(3, 2, 2), decoder_scope="stage"),
    Schedule("random", "random", (3,), diffusion=(3, 3, 3)),
]
SPECS = {
    "mar-b": replace(mar_spec("mar-b"), encoder_depth=2, decoder_depth=2),
    "mar-h": replace(mar_spec("mar-h"), encoder_depth=2, decoder_depth=2),
    "lightgen": replace(LIGHTGEN, encoder_depth=2, decoder_depth=2, aligner_depth=1),
}


class Peak(TorchDispatchMode):
    """The most bytes of storages alive at once, weights aside, of those that were made while this is on."""

    def __init__(self, model):
        super().__init__()
        self.alive, self.now, self.most = {p.untyped_storage()._cdata for p in model.parameters()}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.is_meta:
                self._watch(t.untyped_storage())
        return result

    def _watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self.alive.discard(key)
        self.now -= size


class MetaNoise(SeededNoise):
    def draw(self, step, tokens, diffusion_steps):
        shape = (len(self.seeds), tokens, self.channels)
        return torch.empty(shape, device="meta"), torch.empty(diffusion_steps, *shape, device="meta")


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    "batch, at_once",
    [(1, 100), pytest.param(12, 100, marks=pytest.mark.slow), pytest.param(12, 3, marks=pytest.mark.slow)],
)
def test_an_upper_estimate_that_is_not_far_off(name, schedule, batch, at_once, monkeypatch):
    """Whether the transformer takes all images at once, or as on a processor a few."""
    for module in (memory, engine):
        monkeypatch.setattr(module, "images_at_once", lambda *_: at_once)
    spec, seeds, fts = SPECS[name], image_seeds(0, batch), FTS(0.1, 4)
    plan = make_plan(schedule, spec.grid, seeds)
    model = build(spec, device="meta").requires_grad_(False)
    condition = (
        torch.zeros(batch, dtype=torch.int64)
        if name != "lightgen"
        else torch.zeros(batch, spec.text_length, spec.caption_dim, device="meta")
    )
    with Peak(model) as peak:
        sample(
            model, plan, condition, MetaNoise(seeds, spec.head.channels), guidance=Guidance(3.0), fts=fts, device="meta"
        )
    estimate = activation_bytes(plan, spec, guided=True, itemsize=4, device="meta", fts=fts)
    print(f"{name} {schedule.name} {batch}: {peak.most / 2**20:.1f} MiB, estimate {estimate / 2**20:.1f} MiB")
    assert peak.most <= estimate <= 5 * peak.most


def test_what_fits():
    spec = SPECS["mar-b"]
    plan = make_plan(SCHEDULES[0], spec.grid, image_seeds(0, 10))
    settings = dict(guided=True, itemsize=4, device="cuda", fts=None)
    parts = [activation_bytes(replace(plan, batch=batch), spec, **settings) for batch in range(1, 11)]
    slopes = {after - before for before, after in zip(parts, parts[1:])}
    assert len(slopes) == 1 and min(slopes) > 0
    budgets = (0, parts[3], parts[3] - 1, 10 * parts[9])
    assert [images_that_fit(budget, plan, spec, **settings) for budget in budgets] == [1, 4, 3, 10]


def test_a_part_of_a_plan():
    plan = make_plan(SCHEDULES[1], (16, 16), image_seeds(5, 5))
    alone = make_plan(SCHEDULES[1], (16, 16), image_seeds(5, 5)[3:])
    part = plan.part(slice(3, 8))
    assert part.batch == 2 and [s.positions.tolist() for s in part.steps] == [s.positions.tolist() for s in alone.steps]
