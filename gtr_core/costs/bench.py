"""Measured latency and memory of schedules: all of them in one run, interleaved, so that ratios mean something."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from ..device import Preparations, Runtime
from ..models import Model, ModelSpec, build
from ..noise import SeededNoise, image_seeds
from ..plans.method import Method
from ..plans.plan import Plan, make_plan
from ..sampling.memory import activation_bytes
from ..sampling.sampler import sample
from .flops import count_evaluations, count_plan

# Of a case on CUDA: a graph of the transformer is recorded when its shape is met again.
WARM_UPS = 2


@dataclass(frozen=True)
class Seconds:
    """Time of one run: by the clock, and of the processor with all threads together."""

    elapsed: float
    processor: float


@dataclass(frozen=True)
class BenchCase:
    """A method with the transformer in ``dtype``, and what the table calls it."""

    name: str
    method: Method
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Setting:
    """What is measured: ``batch`` images of ``grid`` tokens on ``device``, with what a runtime calls ``accelerate`` or
    without."""

    batch: int = 1
    grid: tuple[int, int] | None = None
    device: str = "cpu"
    accelerate: bool = True

    def runtime(self, dtype: torch.dtype) -> Runtime:
        return Runtime(self.device, dtype, self.accelerate)


def random_model(spec: ModelSpec, device: str, dtype: torch.dtype, seed: int = 0) -> Model:
    """A model with random weights of the usual size: enough for speed."""
    model = build(spec, device=device, dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, max(parameter[0].numel(), 1) ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def bench(
    models: Mapping[torch.dtype, Model],
    cases: Sequence[BenchCase],
    setting: Setting,
    *,
    rounds: int = 3,
    on_run: Callable[[str, int], None] | None = None,
) -> dict:
    """Run every case once per round, in turn, and report medians; the first one is what the others are compared with.

    ``models`` are one model in the dtypes that the cases ask for. The result is plain data: what ran where, and per
    case seconds (median, least, most), processor seconds of all threads, AR steps, head evaluations per image, TFLOPs
    per image, the ratios of both times and peak bytes (measured on CUDA; elsewhere the plan's estimate of activations).
    ``on_run(name, round)`` is called after every run.

    What a run prepares is kept for the next round, as a host keeps it for the next prompt: packed weights are made in
    the first round only. On CUDA, where kernels are compiled and graphs recorded, every case runs WARM_UPS times before
    the first round, and a peak counts what all cases keep.
    """
    spec = next(iter(models.values())).spec
    grid = setting.grid or spec.grid
    seeds = image_seeds(0, setting.batch)
    plans = {case: make_plan(case.method, grid, seeds) for case in cases}
    times: dict[BenchCase, list[Seconds]] = {case: [] for case in plans}
    peaks: dict[BenchCase, int] = {}
    runtimes = _runtimes(cases, setting)
    if torch.device(setting.device).type == "cuda":
        for case, plan in plans.items():
            for _ in range(WARM_UPS):
                _run(models[case.dtype], plan, runtimes[case])
    for index in range(rounds):
        for case, plan in plans.items():
            times[case].append(_run(models[case.dtype], plan, runtimes[case]))
            peaks[case] = _peak_bytes(plan, spec, runtimes[case])
            if on_run is not None:
                on_run(case.name, index)
    first = medians(next(iter(times.values())))
    rows = [
        _row(case, plan, spec, times[case], first) | _peak_row(peaks[case], setting) for case, plan in plans.items()
    ]
    return {
        "model": spec.name,
        "grid": list(grid),
        "batch": setting.batch,
        "rounds": rounds,
        "process_peak_bytes": process_peak_bytes(),
        "machine": describe_machine(setting.device),
        "rows": rows,
    }


def medians(times: Sequence[Seconds]) -> Seconds:
    """The median of each."""
    return Seconds(median(time.elapsed for time in times), median(time.processor for time in times))


def describe_machine(device: str) -> dict:
    """What the numbers were measured on."""
    on_gpu = device.startswith("cuda")
    return {
        "device": device,
        "name": torch.cuda.get_device_name(device) if on_gpu else processor_name(),
        **({} if on_gpu else {"vectors": torch.backends.cpu.get_cpu_capability()}),
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
            f"{row['tflops']:.2f} | {row['seconds']:.3f} ({low:.3f} to {high:.3f}) | {row['ratio']:.2f}× | "
            f"{row['processor_seconds']:.2f} | {row['processor_ratio']:.2f}× | "
            f"{row['peak_bytes'] / 2**20:.0f}{'' if row['peak_measured'] else ' (estimate)'} |"
        )
    return "\n".join(lines)


def _runtimes(cases: Sequence[BenchCase], setting: Setting) -> dict[BenchCase, Runtime]:
    """Cases share what they can share: those of a dtype that have a cache, and those that have none. Otherwise a case
    would pay for what its neighbour had to replace."""
    kept = {(case.dtype, case.method.cache is None): Preparations() for case in cases}
    return {
        case: replace(setting.runtime(case.dtype), preparations=kept[case.dtype, case.method.cache is None])
        for case in cases
    }


def _run(model: Model, plan: Plan, runtime: Runtime) -> Seconds:
    condition = model.spec.random_condition(plan.batch)
    noise = SeededNoise(image_seeds(0, plan.batch), model.spec.head.channels)
    if runtime.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
        torch.cuda.synchronize(runtime.device)
    started, processor = time.perf_counter(), time.process_time()
    sample(model, plan, condition, noise, runtime=runtime)
    if runtime.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return Seconds(time.perf_counter() - started, time.process_time() - processor)


def _peak_bytes(plan: Plan, spec: ModelSpec, runtime: Runtime) -> int:
    if runtime.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    return activation_bytes(plan, spec, runtime)


def _peak_row(peak: int, setting: Setting) -> dict:
    return {"peak_bytes": peak, "peak_measured": setting.device.startswith("cuda")}


def _row(case: BenchCase, plan: Plan, spec: ModelSpec, times: Sequence[Seconds], first: Seconds) -> dict:
    middle, elapsed = medians(times), [time.elapsed for time in times]
    return {
        "preset": case.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "ar_steps": len(plan.steps),
        "head_evaluations": sum(count_evaluations(plan, step, spec) for step in plan.steps),
        "tflops": count_plan(plan, spec).total / 1e12,
        "seconds": middle.elapsed,
        "seconds_range": [min(elapsed), max(elapsed)],
        "ratio": first.elapsed / middle.elapsed,
        "processor_seconds": middle.processor,
        "processor_ratio": first.processor / middle.processor,
    }
