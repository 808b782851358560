"""Measured latency and memory of schedules: all of them in one run, interleaved, so that ratios mean something."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ..models import Model, ModelSpec, build
from ..models.lightgen import LightGenSpec
from ..noise import SeededNoise, image_seeds
from ..plans.fts import FTS
from ..plans.method import Guidance
from ..plans.plan import Plan, make_plan
from ..plans.schedule import Schedule, respaced
from ..sampling.lazymar import LazyMAR
from ..sampling.memory import activation_bytes
from ..sampling.reference import Reference
from ..sampling.sampler import sample
from .flops import count_evaluations, count_plan

Method = tuple[Schedule, LazyMAR | Reference | None]


@dataclass(frozen=True)
class Contender:
    """A method with the transformer in ``dtype``."""

    name: str
    schedule: Schedule
    cache: LazyMAR | Reference | None = None
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Setting:
    """What is measured: ``batch`` images of ``grid`` tokens, guided or not, on ``device``, with what
    :func:`gtr_core.sampler.sample` calls ``accelerate`` or without."""

    batch: int = 1
    grid: tuple[int, int] | None = None
    device: str = "cpu"
    guidance: Guidance = Guidance(3.0)
    fts: FTS | None = FTS()
    accelerate: bool = True


def random_model(spec: ModelSpec, device: str, dtype: torch.dtype, seed: int = 0) -> Model:
    """A model with random weights of the usual size: enough for speed."""
    model = build(spec, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, max(parameter[0].numel(), 1) ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def random_condition(spec: ModelSpec, batch: int) -> Tensor:
    """Labels, or text states."""
    if isinstance(spec, LightGenSpec):
        return torch.randn(batch, spec.text_length, spec.caption_dim, generator=torch.Generator().manual_seed(0))
    return torch.arange(batch) % spec.classes


def bench(
    models: Mapping[torch.dtype, Model],
    contenders: Sequence[Contender],
    setting: Setting,
    *,
    rounds: int = 3,
    on_run: Callable[[str, int], None] | None = None,
) -> dict:
    """Run every contender once per round, in turn, and report medians; the first one is the reference. ``models`` are
    one model in the dtypes that they ask for.

    The result is plain data: what ran where, and per schedule seconds (median, least, most), processor seconds of all
    threads, AR steps, head evaluations per image, TFLOPs per image, the ratios of both times and peak bytes (measured
    on CUDA; elsewhere the plan's estimate of activations). ``on_run(name, round)`` is called before every run.
    """
    spec = next(iter(models.values())).spec
    grid = setting.grid or spec.grid
    seeds = image_seeds(0, setting.batch)
    plans = {each: make_plan(each.schedule, grid, seeds) for each in contenders}
    seconds: dict[Contender, list[tuple[float, float]]] = {each: [] for each in plans}
    peaks: dict[Contender, int] = {}
    for index in range(rounds):
        for each, plan in plans.items():
            if on_run is not None:
                on_run(each.name, index)
            elapsed, peaks[each] = _run(models[each.dtype], plan, each, setting)
            seconds[each].append(elapsed)
    reference = medians(next(iter(seconds.values())))
    rows = [_row(spec, plans[each], each, setting, times, peaks[each], reference) for each, times in seconds.items()]
    return {
        "model": spec.name,
        "grid": list(grid),
        "batch": setting.batch,
        "rounds": rounds,
        "process_peak_bytes": process_peak_bytes(),
        "machine": describe_machine(setting.device),
        "rows": rows,
    }


def medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Of seconds and of processor seconds."""
    elapsed, processor = zip(*times)
    return median(elapsed), median(processor)


def describe_machine(device: str) -> dict:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name()
    return {
        "device": device,
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }


def processor_name() -> str:
    """The processor as the system calls it."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def process_peak_bytes() -> int | None:
    """The most memory that this process ever held, weights included; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def markdown(result: dict) -> str:
    """The rows as a table."""
    lines = [
        "| preset | transformer | AR steps | head evaluations | TFLOPs | seconds (median, range) | ratio | "
        "processor seconds | ratio | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["seconds_range"]
        lines.append(
            f"| {row['preset']} | {row['dtype']} | {row['ar_steps']} | {row['head_evaluations']} | "
            f"{row['tflops']:.2f} | {row['seconds']:.3f} ({low:.3f} to {high:.3f}) | {row['ratio']:.2f} x | "
            f"{row['processor_seconds']:.2f} | {row['processor_ratio']:.2f} x | "
            f"{row['peak_bytes'] / 2**20:.0f}{'' if row['peak_measured'] else ' (estimate)'} |"
        )
    return "\n".join(lines)


def _run(model: Model, plan: Plan, contender: Contender, setting: Setting) -> tuple[tuple[float, float], int]:
    """(seconds, processor seconds) and peak bytes of one run."""
    cuda = setting.device.startswith("cuda")
    condition = random_condition(model.spec, setting.batch)
    noise = SeededNoise(image_seeds(0, setting.batch), model.spec.head.channels)
    if cuda:
        torch.cuda.reset_peak_memory_stats(setting.device)
        torch.cuda.synchronize(setting.device)
    accelerate = setting.accelerate and not isinstance(contender.cache, Reference)
    started, processor = time.perf_counter(), time.process_time()
    sample(
        model,
        plan,
        condition,
        noise,
        guidance=setting.guidance,
        fts=setting.fts,
        cache=contender.cache,
        accelerate=accelerate,
        device=setting.device,
        dtype=contender.dtype,
    )
    if cuda:
        torch.cuda.synchronize(setting.device)
    elapsed = time.perf_counter() - started, time.process_time() - processor
    peak = (
        torch.cuda.max_memory_allocated(setting.device)
        if cuda
        else activation_bytes(
            plan,
            model.spec,
            guided=setting.guidance.enabled,
            itemsize=contender.dtype.itemsize,
            device=setting.device,
            fts=setting.fts,
            cached=contender.cache is not None,
        )
    )
    return elapsed, peak


def _row(
    spec: ModelSpec,
    plan: Plan,
    contender: Contender,
    setting: Setting,
    times: list[tuple[float, float]],
    peak: int,
    reference: tuple[float, float],
) -> dict:
    (seconds, processor), wall = medians(times), [elapsed for elapsed, _ in times]
    process = respaced(plan.schedule, spec.diffusion)
    evaluations = sum(count_evaluations(step, process, setting.fts) for step in plan.steps)
    flops = count_plan(
        plan,
        spec,
        guided=setting.guidance.enabled,
        fts=setting.fts,
        cache=contender.cache if isinstance(contender.cache, LazyMAR) else None,
    )
    return {
        "preset": contender.name,
        "dtype": str(contender.dtype).removeprefix("torch."),
        "ar_steps": len(plan.steps),
        "head_evaluations": evaluations,
        "tflops": flops.total / 1e12,
        "seconds": seconds,
        "seconds_range": [min(wall), max(wall)],
        "ratio": reference[0] / seconds,
        "processor_seconds": processor,
        "processor_ratio": reference[1] / processor,
        "peak_bytes": peak,
        "peak_measured": setting.device.startswith("cuda"),
    }
