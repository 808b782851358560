"""Runs on devices that are not here: every tensor is where it belongs, in a dtype that the device has, and between the
first and the last step the host never waits. Families and caches of a later day take part by being registered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.cli.options import CACHES
from gtr_pack.gtr_core.device import Machine, Preparations, Runtime
from gtr_pack.gtr_core.models import FAMILIES, build
from gtr_pack.gtr_core.models.spec import ModelSpec
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling import acceleration
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_pack.gtr_core.sampling.recap import ReCAP
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_pack.gtr_core.sampling.sampler import Progress
from gtr_pack.gtr_core.sampling.transformer_graphs import TransformerGraphs
from gtr_tests.fake_device import Clash, FakeDevice, HostSync
from gtr_tests.runs import run

pytestmark = pytest.mark.slow

FULL = Schedule("full", "gtr", (2, 1, 1), diffusion=(4, 2, 2))
GUIDED = Method(FULL, Guidance(2.5), FTS(0.2, 5))
# With steps of every kind in so few: a cache that is not here runs with its own defaults.
QUICK = {"lazymar": LazyMAR(1, 2, head_period=2), "recap": ReCAP(0, 1)}
METHODS = {
    "guided": GUIDED,
    "stage scope": replace(GUIDED, schedule=replace(FULL, decoder_scope="stage")),
    "unguided": replace(GUIDED, guidance=Guidance(1.0)),
    "guided later, revised": replace(GUIDED, guidance=Guidance(2.5, start=0.4), temperature=0.9, revise=0.25),
    "random tokens": replace(GUIDED, fts=FTS(0.2, 5, "random")),
    "random order": Method(Schedule("random", "random", (3,), diffusion=(4, 4, 4)), Guidance(2.5)),
    "reference": replace(GUIDED, cache=Reference()),
    **{name: Method(FULL, Guidance(2.5), cache=QUICK.get(name, cache())) for name, cache in CACHES.items()},
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
UNITS = Machine(tuple(DTYPES.values()))


def small(spec: Any) -> Any:
    """Two blocks of every kind, in all parts of a spec: more are the same."""
    values = {each.name: getattr(spec, each.name) for each in fields(spec)}
    parts = {name: small(value) for name, value in values.items() if is_dataclass(value)}
    return replace(spec, **parts, **{name: 2 for name in values if name.endswith(("depth", "layers"))})


def grid_of(spec: ModelSpec) -> tuple[int, int]:
    """A small one where the model draws any."""
    return (8, 8) if spec.can_draw((8, 8)) else spec.grid


SPECS = {name: small(next(iter(family.published.values()))) for name, family in FAMILIES.items()}


def cases(dtypes: Iterable[str]) -> list:
    """Every method in the first dtype with the first family: only the loop tells these from each other. In this dtype
    each way to evaluate every family, in the others one with every family and each with the first."""

    def needed(method: Method, first_dtype: bool, first_family: bool) -> bool:
        if method.cache is not None:
            return first_dtype or first_family
        return method is GUIDED or (first_dtype and first_family)

    return [
        pytest.param(spec, method, DTYPES[dtype], id=f"{family} {name}-{dtype}")
        for k, dtype in enumerate(dtypes)
        for n, (family, spec) in enumerate(SPECS.items())
        for name, method in METHODS.items()
        if getattr(spec, f"supports_{name}", True) and needed(method, k == 0, n == 0)
    ]


every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def sampled(device: FakeDevice, spec: ModelSpec, method: Method, runtime: Runtime, **settings) -> torch.Tensor:
    """A run of two images on a fake device, in whose loop nothing waits."""
    waiting = device.without_waiting()

    def watch(progress: Progress) -> None:
        if progress.step == progress.diffusion_step == 0:
            waiting.__enter__()
        if progress.step == progress.steps:
            waiting.__exit__(None, None, None)

    model = build(spec, device="meta", dtype=runtime.dtype).requires_grad_(False)
    model.to_empty(device=runtime.device)
    condition = settings.pop("condition", spec.random_condition(2))
    settings.setdefault("grid", grid_of(spec))
    out = run(model, method, condition, callback=watch, runtime=runtime, **settings)
    assert (out.dtype, out.device, device.computed > 500) == (torch.float32, torch.device(runtime.device), True)
    return out


@pytest.mark.parametrize("spec, method, dtype", cases(DTYPES))
def test_a_run_on_cuda_never_waits(spec, method, dtype):
    with FakeDevice("cuda:0") as device:
        out = sampled(device, spec, method, Runtime("cuda:0", dtype, machine=UNITS))
    height, width = grid_of(spec)
    assert out.shape == (2, height * width, spec.head.channels)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@every_dtype
@every_spec
def test_an_accelerated_run_on_cuda_never_waits(spec, dtype, monkeypatch):
    """The graphs' way, operation by operation, and the head in 16 bit."""
    monkeypatch.setattr(acceleration, "Capture", lambda: None)
    monkeypatch.setattr(acceleration, "TransformerGraphs", partial(TransformerGraphs, meetings=0))
    kept = Preparations()
    runtime = Runtime("cuda:0", dtype, accelerate=True, machine=UNITS, preparations=kept)
    with FakeDevice("cuda:0") as device:
        sampled(device, spec, GUIDED, runtime)
        assert kept.value.graphs.graphs and kept.value.transformer.graphs


@every_spec
def test_given_tokens_and_conditions_on_the_device(spec):
    """As the nodes give them, and where a caller has them on the device already."""
    unknown = np.zeros(grid_of(spec), bool)
    unknown[1:5, 2:7] = True
    for move in (lambda t: t, lambda t: t.to("cuda:0")):
        with FakeDevice("cuda:0") as device:
            given = torch.zeros(2, unknown.size, spec.head.channels)
            condition = spec.random_condition(2)
            settings = {"unknown": unknown, "tokens": move(given), "negative": condition, "condition": condition}
            sampled(device, spec, GUIDED, Runtime("cuda:0", torch.bfloat16, machine=UNITS), **settings)


@pytest.mark.parametrize("spec, method, dtype", cases(("float32", "bfloat16")))
def test_a_run_on_a_device_without_float64(spec, method, dtype):
    """Metal has none, nor have many of Intel's and DirectML's devices."""
    name = "mps:0" if dtype == torch.float32 else "xpu:0"
    with FakeDevice(name, refused=(torch.float64,)) as device:
        sampled(device, spec, method, Runtime(name, dtype, accelerate=True))


@pytest.mark.parametrize("name", ["cuda:0", "mps:0"])
@pytest.mark.parametrize("family", [name for name, spec in SPECS.items() if spec.can_draw((8, 24))])
def test_other_sizes_need_no_operation_of_the_device(family, name):
    """Metal lacks the bicubic resize in torch before 2.7."""
    with FakeDevice(name, refused=(torch.float64,)) as device:
        out = sampled(device, SPECS[family], GUIDED, Runtime(name, machine=UNITS), grid=(8, 24))
        assert not [each for each in device.operations if "upsample" in each or "interpolate" in each]
    assert out.shape[1] == 192


def test_what_the_fake_device_finds():
    """It would be worth nothing if it let these pass."""
    with FakeDevice("cuda:0", refused=(torch.float64,)) as device:
        t = torch.zeros(3, 2, device="cuda:0")
        real = torch.ones(3) + 1
        assert real.tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="same device"):
            t + torch.ones(3, 2)
        with pytest.raises(Clash, match="mm of"):
            t @ torch.zeros(2, 2, device="cuda:0", dtype=torch.float16)
        with pytest.raises(Clash, match="float64"):
            t.double()
        with device.without_waiting():
            for wait in (
                t.sum().item,
                lambda: bool(t.any()),
                lambda: torch.where(t > 0),
                t.cpu,
                lambda: torch.ones(3).copy_(t[:, 0]),
                lambda: torch.ones(3).to("cuda:0"),
                lambda: t.copy_(torch.ones(3, 2)),
                lambda: torch.tensor([1.0, 2.0], device="cuda:0"),
            ):
                with pytest.raises(HostSync):
                    wait()
            assert torch.ones(3).pin_memory().to("cuda:0", non_blocking=True).device.type == "cuda"
