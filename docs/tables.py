"""Writes the numbers of the documentation: ``python -m docs.tables``, from the repository's root.

Every number has one home. Measured numbers are the files docs/figures/*.json, each the output of one command below;
FLOPs and memory are counted here. A page holds ``<!-- table: NAME -->`` or ``<!-- value: NAME -->``, the text, and
``<!-- end -->``; this command replaces the text. Where a file is missing the text stays, and the command that writes
the file is printed.

    python -m docs.tables                        write pages and charts
    python -m docs.tables --measure bench_demo   run the command behind a file first
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gtr_core.cli.options import named_schedule
from gtr_core.costs.flops import report
from gtr_core.costs.paper_table import LIGHTGEN_SPEEDS, SPEEDS
from gtr_core.costs.paper_table import MODELS as MARS
from gtr_core.device import Machine, Runtime
from gtr_core.drawing.bars import Line, bar_chart, line_chart, write_chart
from gtr_core.models import ModelSpec, build, published_specs
from gtr_core.plans.fts import FTS
from gtr_core.plans.method import Guidance, Method
from gtr_core.plans.plan import make_plan
from gtr_core.plans.presets import PRESETS, preset
from gtr_core.sampling.lazymar import LazyMAR
from gtr_core.sampling.memory import activation_bytes
from gtr_core.sampling.packed_linear import packed_bytes
from gtr_core.sampling.recap import ReCAP

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("web/docs/**/*.md")))
BLOCK = re.compile(r"<!-- (table|value): ([\w-]+) -->(.*?)<!-- end -->", re.DOTALL)
GIB, MIB = 2**30, 2**20

MAR_PRESETS = "origin,gtr-paper,gtr-full,gtr-extreme,gtr-best-4x,gtr-best-6x"
LARGE_PRESETS = "origin,gtr-paper,gtr-extreme"
MANY = "generate-many --preset gtr-extreme --images 64 --shard 8 --batch 8 --manifest jsonl"
STAGES = ("15-3", "10-6-2", "10-4-2-2", "8-3-3-2-2")


def in_both(names: str) -> str:
    """Presets between commas, and behind them the same in bf16."""
    return ",".join([names, *(f"{name}@bfloat16" for name in names.split(","))])


# Torch, oneDNN and MKL keep to AVX2 where the processor has more.
AVX2 = "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2"
# What writes docs/figures/NAME.json, with --json: a verb of `python -m gtr_core`, or another module after -m. Before it
# may stand environment variables. A tuple writes a list of results.
COMMANDS: dict[str, str | tuple[str, ...]] = {
    "bench_demo": "bench --model demo --rounds 3 "
    "--presets origin,step-16,step-8,halton-16,disa-24,disa-16,lazymar,gtr-paper,gtr-full,gtr-extreme",
    "bench_mar_b": f"bench --model mar-b --rounds 3 --presets reference,{in_both(MAR_PRESETS)}",
    "bench_mar_l": f"bench --model mar-l --rounds 1 --presets reference,{in_both(LARGE_PRESETS)}",
    "bench_mar_h": f"bench --model mar-h --rounds 1 --presets reference,{in_both(LARGE_PRESETS)}",
    "bench_recap": "bench --model mar-b --rounds 2 "
    "--presets reference,gtr-paper,gtr-paper+recap,gtr-paper@bfloat16,gtr-paper+recap@bfloat16",
    "bench_avx2": f"{AVX2} bench --model mar-b --rounds 2 --presets reference,gtr-paper,gtr-paper+recap",
    "bench_lightgen": "bench --model lightgen --size 512x512 --cfg 4 --rounds 1 "
    "--presets lightgen-origin,gtr-lightgen,gtr-lightgen-fast,gtr-lightgen@bfloat16,gtr-lightgen-fast@bfloat16",
    "bench_harmon": "bench --model harmon-0.5b --rounds 1 "
    "--presets reference,harmon-origin,gtr-harmon,harmon-origin@bfloat16,gtr-harmon@bfloat16",
    **{f"many_{n}": f"{MANY} --workers {n} -o output/many_{n}" for n in (1, 2)},
    **{f"ray_{n}": f"{MANY} --engine ray --workers {n} -o output/ray_{n}" for n in (1, 2)},
    "startup": "-m docs.startup --rounds 3",
    "waiting": "-m docs.waiting --rounds 2",
    "int8": "-m docs.int8 --images 96 --seeds 3",
    "growth_batch": (
        *(f"bench --model demo --rounds 3 --presets gtr-paper --batch {n}" for n in (1, 2, 4, 8, 16, 32, 64)),
        *(f"bench --model mar-b --rounds 1 --presets gtr-paper@bfloat16 --batch {n}" for n in (1, 4, 16, 64)),
    ),
    "growth_tokens": tuple(
        f"bench --model {model} --rounds 1 --presets {name}@bfloat16 --cfg 4 --size {side}x{side}"
        for model, name, sides in (
            ("lightgen", "gtr-lightgen", (256, 512)),
            ("harmon-0.5b", "gtr-harmon", (256, 512, 1024)),
        )
        for side in sides
    ),
    "growth_stages": tuple(
        f"bench --model {model} --rounds 3 --presets " + ",".join(f"gtr-full:{steps}{dtype}" for steps in STAGES)
        for model, dtype in (("demo", ""), ("mar-b", "@bfloat16"))
    ),
}
# A machine of which only the room matters: a GPU with units for 16 bit.
GPU = Machine((torch.bfloat16, torch.float16, torch.float32))


def commands(name: str) -> list[str]:
    """The commands behind a file of docs/figures, as the pages show them."""
    chosen = COMMANDS[name]
    return list(map(whole_command, (chosen,) if isinstance(chosen, str) else chosen))


def whole_command(line: str) -> str:
    """A line of COMMANDS with its program behind its variables."""
    variables, words = split_variables(line)
    program = "python" if words[0] == "-m" else "python -m gtr_core"
    return " ".join([*variables, program, *words])


def split_variables(line: str) -> tuple[list[str], list[str]]:
    """The words NAME=value before a command, and the command's own."""
    words = line.split()
    count = next(index for index, word in enumerate(words) if "=" not in word)
    return words[:count], words[count:]


class Missing(LookupError):
    """A table needs a file of docs/figures that is not there."""


def measured(name: str) -> Any:
    """What the command of this name wrote, or the list of what its commands wrote."""
    path = FIGURES / f"{name}.json"
    if not path.is_file():
        raise Missing(name)
    return json.loads(path.read_text(encoding="utf-8"))


# -- parts of tables ---------------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *rows))


def code(*commands: str) -> str:
    return "\n".join(["```", *commands, "```"])


def digits(value: float, count: int = 3) -> str:
    """Rounded to so many significant digits: 0.261, 6.25, 144."""
    return f"{value:#.{count}g}".rstrip(".")


def times(ratio: float) -> str:
    return f"{digits(ratio)}×"


def seconds(row: dict) -> str:
    low, high = row["seconds_range"]
    return digits(low) if low == high else f"{digits(row['seconds'])} ({digits(low)} to {digits(high)})"


def command(result: dict) -> str:
    return result["command"].replace(" --json", "")


def machine(result: dict) -> str:
    """What a result was measured on; the threads are those of the process that reports."""
    facts = result["machine"]
    vectors = f" ({facts['vectors']})" if "vectors" in facts else ""
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    return f"{facts['name']}{vectors}, {threads}, torch {facts['torch']}"


def conditions(result: dict) -> str:
    """Under a table of `bench`."""
    peak = result["process_peak_bytes"]
    rounds = result["rounds"]
    how = "One run each" if rounds == 1 else f"Medians of {rounds} interleaved rounds with their range"
    return f"Measured on {machine(result)}. {how}, batch {result['batch']}, guidance and FTS on." + (
        f" The process held at most {peak / GIB:.1f} GiB, the weights of all dtypes included." if peak else ""
    )


def chart(name: str, words: str) -> str:
    """The line that shows the chart of a result."""
    return f"![{words}]({name}.png)"


# -- FLOPs and memory, counted -----------------------------------------------------------------------------------------


def grid_of(spec: ModelSpec) -> tuple[int, int]:
    """LightGen's pages are about 512 px."""
    return (32, 32) if spec.condition == "text" else spec.grid


def made_for(name: str) -> str:
    """The model that a preset is counted on."""
    others = {"lightgen": "lightgen", "harmon": "harmon-1.5b", "unipic": "unipic"}
    return next((model for word, model in others.items() if word in name), "mar-h")


def flops(model: str, name: str, **settings) -> tuple[float, float]:
    """TFLOPs per image with guidance and FTS, and the ratio to the model's origin."""
    spec = published_specs()[model]
    facts = report(Method(named_schedule(name), Guidance(3.0), FTS(), **settings), spec, grid_of(spec))
    return facts["tflops"]["total"], facts["speedup"]


def counted(model: str, name: str) -> str:
    tera, ratio = flops(model, name)
    return f"{tera:.2f}" if ratio == 1 else f"{tera:.2f} ({ratio:.2f}×)"


def ratio(model: str, name: str) -> str:
    value = flops(model, name)[1]
    return "1×" if value == 1 else f"{value:.2f}×"


def ar_steps(name: str) -> str:
    return ", ".join(map(str, preset(name).steps))


def diffusion(name: str) -> str:
    start, end, last = preset(name).diffusion
    falling = f"{start}" if start == end else f"{start} to {end}"
    return falling if preset(name).stages == 1 or last == end else f"{falling}, then {last}"


def scope(name: str) -> str:
    return "all" if preset(name).decoder_scope == "full" else "stages so far"


def flops_table() -> str:
    rows = []
    for name in PRESETS:
        if made_for(name) == "mar-h":
            printed = f"{SPEEDS[name][2]:.2f}×" if name in SPEEDS else ""
            cells = [counted(model, name) for model in MARS]
            rows.append((f"`{name}`", ar_steps(name), diffusion(name), scope(name), *cells, printed))
    head = ("preset", "AR steps", "diffusion steps", "mask tokens in the decoder")
    return table((*head, *(f"{model.upper()} ↓" for model in MARS), "paper, MAR-H"), rows)


def flops_lightgen() -> str:
    printed = {name: f"{speed:.2f}×" for name, speed in LIGHTGEN_SPEEDS.items()}
    names = [name for name in PRESETS if "lightgen" in name]
    rows = [
        (f"`{name}`", ar_steps(name), diffusion(name), counted("lightgen", name), printed.get(name, ""))
        for name in names
    ]
    return table(("preset", "AR steps", "diffusion steps", "TFLOPs at 512 px ↓", "paper"), rows)


def flops_harmon() -> str:
    rows = []
    for name in PRESETS:
        models = {"harmon-1.5b": ("harmon-0.5b", "harmon-1.5b"), "unipic": ("unipic",)}.get(made_for(name))
        if models:
            cells = {model: counted(model, name) for model in models}
            columns = [cells.get(model, "") for model in ("harmon-0.5b", "harmon-1.5b", "unipic")]
            rows.append((f"`{name}`", ar_steps(name), diffusion(name), *columns))
    head = ("preset", "AR steps", "diffusion steps", "Harmon-0.5B at 512 px ↓", "Harmon-1.5B at 512 px ↓")
    return table((*head, "UniPic at 1024 px ↓"), rows)


def presets_short() -> str:
    uses = (
        ("gtr-paper", "the default for MAR, the paper's printed settings", "mar-h"),
        ("origin", "exactly the original schedule", "mar-h"),
        ("gtr-extreme", "faster, for drafts", "mar-h"),
        ("gtr-lightgen", "the default for LightGen, four stages", "lightgen"),
        ("gtr-harmon", "the default for Harmon, four stages", "harmon-1.5b"),
        ("gtr-unipic", "the default for UniPic, five stages", "unipic"),
        ("step-16", "a baseline, the original schedule in fewer steps", "mar-h"),
    )
    called = {"mar-h": "MAR-H", "lightgen": "LightGen", "harmon-1.5b": "Harmon-1.5B", "unipic": "UniPic"}
    rows = [(f"`{name}`", use, ar_steps(name), f"{ratio(own, name)} ({called[own]})") for name, use, own in uses]
    return table(("preset", "what it is for", "AR steps per stage", "fewer FLOPs ↑"), rows)


def scheduler(words: tuple[str, str, str], all_tokens: str, mark: str) -> str:
    """The table of the scheduler's help page in one language."""
    names = [name for name in PRESETS if not name.startswith(("halton", "disa"))]
    rows = []
    for name in names:
        full = f"{mark}{all_tokens}" if preset(name).order == "gtr" and preset(name).decoder_scope == "full" else ""
        rows.append((f"`{name}`", f"{ar_steps(name)}{full}", ratio(made_for(name), name)))
    return table(words, rows)


def memory() -> str:
    rows = []
    for model, name, dtype in (
        ("mar-b", "gtr-full", torch.float32),
        ("mar-b", "gtr-full", torch.bfloat16),
        ("mar-l", "gtr-full", torch.bfloat16),
        ("mar-h", "gtr-full", torch.bfloat16),
        ("lightgen", "gtr-lightgen", torch.bfloat16),
        ("harmon-1.5b", "gtr-harmon", torch.bfloat16),
        ("unipic", "gtr-unipic", torch.bfloat16),
    ):
        spec = published_specs()[model]
        method = Method(preset(name), Guidance(3.0), FTS())

        def needed(batch: int, graphs: bool = False) -> float:
            plan = make_plan(method, grid_of(spec), range(batch))
            return activation_bytes(plan, spec, Runtime("cuda", dtype, graphs, GPU)) / MIB

        sizes = {batch: needed(batch) for batch in (1, 2, 63, 64)}
        slope = max(sizes[2] - sizes[1], sizes[64] - sizes[63])
        label = {"lightgen": "LightGen, 512 px", "harmon-1.5b": "Harmon-1.5B, 512 px", "unipic": "UniPic, 1024 px"}.get(
            model, model.upper()
        )
        rows.append(
            (
                f"{label}, `{name}`, {'fp32' if dtype == torch.float32 else '16 bit'}",
                f"{sizes[1]:.0f}",
                digits(slope) if slope < 1000 else f"{slope:.0f}",
                f"{sizes[64]:.0f}",
                f"{needed(1, graphs=True) - sizes[1]:.0f}",
            )
        )
    head = ("model, preset, transformer", "batch 1 ↓", "each further image ↓", "batch 64 ↓", "CUDA graphs add")
    return table(head, rows)


def packed_weights() -> str:
    """GiB of packed weights in fp32."""
    sizes = {}
    for name, spec in published_specs().items():
        model = build(spec, device="meta", dtype=torch.float32)
        sizes[name] = digits(packed_bytes(model, torch.float32, GPU.smallest_packed) / GIB, 2)
    mar_b, mar_l, mar_h, lightgen = (sizes[name] for name in (*MARS, "lightgen"))
    return f"{mar_b} GiB for MAR-B, {mar_l} for MAR-L, {mar_h} for MAR-H and {lightgen} for LightGen"


def plan_of_50000() -> str:
    """Arithmetic on stated assumptions: 80 TFLOP/s per GPU, 10 GB/s of shared disk, 0.5 GB/s of hashing."""
    images, rate, disk, hashing, weights = 50_000, 80, 10, 0.5, 3.77
    each = flops("mar-h", "gtr-paper")[0] / rate
    columns = []
    for gpus, shard in ((1, 64), (8, 64), (256, 64), (256, 16)):
        tasks = ceil(images / shard)
        busiest = ceil(tasks / gpus)
        making = min(busiest * shard, images) * each
        loading = gpus * weights / disk
        columns.append((gpus, shard, tasks, busiest, making, loading, making + loading + weights / hashing))
    alone = columns[0][-1]
    head = ("", *(f"{gpus} GPU{'s' * (gpus > 1)}, `--shard {shard}`" for gpus, shard, *_ in columns))
    return table(
        head,
        [
            ("tasks", *(f"{column[2]}" for column in columns)),
            ("tasks of the busiest worker", *(f"{column[3]}" for column in columns)),
            ("seconds of generating", *(f"{column[4]:,.0f}" for column in columns)),
            ("seconds of loading", *(digits(column[5], 2) for column in columns)),
            ("seconds in all, with hashing", *(f"{column[6]:,.0f}" for column in columns)),
            ("speed-up over 1 GPU ↑", *(times(alone / column[6]) for column in columns)),
        ],
    )


def fid_hours() -> str:
    """Arithmetic on stated assumptions: the share of its peak that a GPU reaches, 60 % in fp32, 25 % in 16 bit."""
    gpus = {"A100, fp32": 0.6 * 19.5, "A100, bf16": 0.25 * 312, "H100, fp32": 0.6 * 67, "H100, bf16": 0.25 * 989}
    rows = []
    for model in MARS:
        for name in ("step-256", "origin", "gtr-paper"):
            tera = flops(model, name)[0]
            hours = (50_000 * tera / rate / 3600 for rate in gpus.values())
            printed = (f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in hours)
            rows.append((published_specs()[model].name.upper(), f"`{name}`", digits(tera), *printed))
    return table(("model", "method", "TFLOPs per image ↓", *(f"{gpu}, hours ↓" for gpu in gpus)), rows)


# -- measured ----------------------------------------------------------------------------------------------------------


def bench_demo() -> str:
    result = measured("bench_demo")
    rows = [
        (
            f"`{row['preset']}`",
            f"{row['ar_steps']}",
            f"{row['head_evaluations']}",
            f"{row['tflops']:.2f}",
            seconds(row),
            times(row["ratio"]),
        )
        for row in result["rows"]
    ]
    head = ("preset", "AR steps", "head evaluations", "TFLOPs ↓", "seconds ↓", "speed-up ↑")
    words = "Bars of the median seconds per image, origin longest and gtr-extreme shortest"
    return "\n\n".join([code(command(result)), table(head, rows), chart("bench_demo", words), conditions(result)])


def bench_dtypes(name: str, words: str) -> Callable[[], str]:
    """A row per preset, fp32 and bf16 side by side, as far as they were measured."""

    def text() -> str:
        result = measured(name)
        by_name = {row["preset"]: row for row in result["rows"]}
        low = any(key.endswith("@bfloat16") for key in by_name)
        rows = []
        for key, row in by_name.items():
            if "@" not in key:
                cells = [f"`{key}`", f"{row['tflops']:.2f}", seconds(row), times(row["ratio"])]
                if low:
                    other = by_name.get(f"{key}@bfloat16")
                    cells += ["", ""] if other is None else [seconds(other), times(other["ratio"])]
                rows.append(tuple(cells))
        head = ("preset", "TFLOPs ↓", "fp32: seconds ↓", "speed-up ↑", "bf16: seconds ↓", "speed-up ↑")
        head = head if low else head[:4]
        return "\n\n".join([code(command(result)), table(head, rows), chart(name, words), conditions(result)])

    return text


def scaling() -> str:
    """Workers of both engines; the speed-up is each engine's own."""
    results, rows = [], []
    for engine, name in (("local", "many"), ("ray", "ray")):
        one = None
        for workers in (1, 2):
            result = measured(f"{name}_{workers}")
            rate = result["images"] / result["seconds"]
            one = one or rate
            results.append(result)
            rows.append((engine, f"{workers}", f"{result['seconds']:.1f}", digits(rate), times(rate / one)))
    head = ("engine", "workers", "seconds, loading included ↓", "images per second ↑", "speed-up ↑")
    where = f"Measured on {machine(results[0])}, one run each. Workers have one thread."
    return "\n\n".join([code(*map(command, results)), table(head, rows), where])


def startup() -> str:
    result = measured("startup")
    rows = [(row["what"], seconds(row)) for row in result["rows"]]
    where = f"Measured on {machine(result)}. Medians of {result['rounds']} rounds with their range, in new processes."
    return "\n\n".join([code(command(result)), table(("what", "seconds ↓"), rows), where])


def waiting() -> str:
    result = measured("waiting")
    rows = [
        (
            row["way"],
            *(f"{digits(median(row[k]))} ({digits(min(row[k]))} to {digits(max(row[k]))})" for k in ("idle", "busy")),
        )
        for row in result["rows"]
    ]
    head = ("threads wait", "alone: seconds ↓", "beside busy programs: seconds ↓")
    n = len(result["rows"][0]["idle"])
    where = (
        f"Measured on {machine(result)}, with {result['busy_programs']} busy programs. Medians of {n} with their range."
    )
    return "\n\n".join([code(command(result)), table(head, rows), where])


def int8() -> str:
    """One line of a list: what int8 would give."""
    result = measured("int8")
    gains = [own["giga_operations"]["int8"] / own["giga_operations"]["bfloat16"] for own in result["products"]]
    errors = [own["error"]["int8"] / own["error"]["bfloat16"] for own in result["products"]]
    ran = result["seconds"]
    found = result["quality"][1]["difference"]
    distance, coherence = (
        f"{unit * found[key]['mean']:+.2g} ± {unit * found[key]['half']:.2g}"
        for key, unit in (("frechet", 1), ("coherence", 100))
    )
    return (
        f"On {machine(result)}, products of MAR-B's sizes run {min(gains):.2f} to {max(gains):.2f} times as fast as "
        f"in bf16, with {max(errors):.1f} times the rounding error. An image of MAR-B by `gtr-paper` takes "
        f"{digits(ran['int8'])} s, in bf16 {digits(ran['bfloat16'])} s. On the demo model the Fréchet "
        f"distance changes by {distance} and the share of coherent images by {coherence} points"
    )


# -- growth ------------------------------------------------------------------------------------------------------------


def over(name: str, x: Callable[[dict], float]) -> list[Line]:
    """A line per model of results with one preset each: seconds per image over ``x`` of the result."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for result in measured(name):
        (row,) = result["rows"]
        label = f"{called(result)}, {row['preset'].partition('@')[0]}, {row['dtype']}"
        lines.setdefault(label, []).append((x(result), row["seconds"] / result["batch"]))
    return [Line(label, points) for label, points in lines.items()]


def over_stages() -> list[Line]:
    lines = []
    for result in measured("growth_stages"):
        stages = [row["preset"].partition(":")[2].count("-") + 1 for row in result["rows"]]
        seconds = [row["seconds"] for row in result["rows"]]
        lines.append(Line(f"{called(result)}, {result['rows'][0]['dtype']}", list(zip(stages, seconds))))
    return lines


def called(result: dict) -> str:
    """A model's name in a figure."""
    return {"mar-b": "MAR-B", "lightgen": "LightGen", "harmon-0.5b": "Harmon-0.5B"}.get(result["model"], "demo model")


@dataclass(frozen=True)
class Growth:
    """A figure of seconds per image over something that grows; ``words`` describe the figure to who cannot see it."""

    lines: Callable[[], list[Line]]
    x_label: str
    words: str


GROWTH = {
    "growth_batch": Growth(
        lambda: over("growth_batch", lambda result: result["batch"]),
        "images in a batch",
        "Seconds per image over the size of the batch",
    ),
    "growth_tokens": Growth(
        lambda: over("growth_tokens", lambda result: prod(result["grid"])),
        "tokens of the image",
        "Seconds per image over the number of tokens",
    ),
    "growth_stages": Growth(over_stages, "stages K", "Seconds per image over the number of stages"),
}


def growth(name: str) -> Callable[[], str]:
    """The figure, its commands, and where they ran."""

    def text() -> str:
        results = measured(name)
        rounds = {f"{called(result)} {_runs(result['rounds'])}": None for result in results}
        where = f"Measured on {machine(results[0])}: {', '.join(rounds)}."
        return "\n\n".join([chart(name, GROWTH[name].words), code(*map(command, results)), where])

    return text


def _runs(rounds: int) -> str:
    return "once, in a new process" if rounds == 1 else f"as the median of {rounds} runs"


def speed(chosen: str, *names: str) -> Callable[[], str]:
    """How much faster than the reference a preset ran in both precisions, over the named measurements."""

    def text() -> str:
        results = [{row["preset"]: row["ratio"] for row in measured(name)["rows"]} for name in names]
        ratios = [span([found[key] for found in results]) for key in (chosen, f"{chosen}@bfloat16")]
        return f"{ratios[0]}× faster in fp32 and {ratios[1]}× in bf16"

    return text


def schedule_gain(*names: str) -> str:
    """How much faster `gtr-paper` ran than `origin` in the same precision, over the named measurements: both have the
    same accelerations, so the schedule alone is behind it."""
    results = [{row["preset"]: row["seconds"] for row in measured(name)["rows"]} for name in names]
    kinds = ("", "@bfloat16")
    gains = [found[f"origin{kind}"] / found[f"gtr-paper{kind}"] for found in results for kind in kinds]
    return f"{span(gains)}×"


def span(values: Sequence[float]) -> str:
    """From the least to the largest of the values, or the one that there is."""
    ends = sorted({digits(min(values)), digits(max(values))}, key=float)
    return " to ".join(ends)


ENGLISH = ("preset", "AR steps per stage", "speed-up in FLOPs (MAR-H or the model it is named after)")
CHINESE = ("预设", "各阶段的自回归步数", "FLOPs 减少的倍数（MAR-H 或预设名中的模型）")
TABLES: dict[str, Callable[[], str]] = {
    "flops": flops_table,
    "flops-lightgen": flops_lightgen,
    "flops-harmon": flops_harmon,
    "presets": presets_short,
    "scheduler": lambda: scheduler(ENGLISH, "decoder scope full", ", "),
    "scheduler-zh": lambda: scheduler(CHINESE, "解码器范围 full", "，"),
    "memory": memory,
    "plan-50000": plan_of_50000,
    "fid-hours": fid_hours,
    "bench-demo": bench_demo,
    "bench-mar-b": bench_dtypes(
        "bench_mar_b", "Bars of the median seconds per image of MAR-B, the reference implementation longest"
    ),
    "bench-mar-l": bench_dtypes(
        "bench_mar_l", "Bars of the seconds per image of MAR-L, the reference implementation longest"
    ),
    "bench-mar-h": bench_dtypes(
        "bench_mar_h", "Bars of the seconds per image of MAR-H, the reference implementation longest"
    ),
    "bench-recap": bench_dtypes(
        "bench_recap",
        "Bars of the median seconds per image of MAR-B, the reference longest, shorter with ReCAP in both dtypes",
    ),
    "bench-avx2": bench_dtypes(
        "bench_avx2", "Bars of the seconds per image of MAR-B with AVX2, the reference longest, shorter with ReCAP"
    ),
    "bench-lightgen": bench_dtypes(
        "bench_lightgen", "Bars of the seconds per image of LightGen, the original schedule longest"
    ),
    "bench-harmon": bench_dtypes(
        "bench_harmon", "Bars of the seconds per image of Harmon-0.5B, the reference implementation longest"
    ),
    "scaling": scaling,
    "startup": startup,
    "waiting": waiting,
    **{name.replace("_", "-"): growth(name) for name in GROWTH},
    # Values inside a sentence.
    "speed-mar-b": speed("gtr-paper", "bench_mar_b", "bench_recap"),
    "gain-large": lambda: schedule_gain("bench_mar_l", "bench_mar_h"),
    "gain-mar-h": lambda: schedule_gain("bench_mar_h"),
    "speed-harmon": speed("gtr-harmon", "bench_harmon"),
    "flops-mar-h": lambda: f"{flops('mar-h', 'gtr-paper')[1]:.1f}×",
    "flops-extreme": lambda: f"{flops('mar-h', 'gtr-extreme')[1]:.1f}×",
    "flops-lightgen-default": lambda: f"{flops('lightgen', 'gtr-lightgen')[1]:.1f}×",
    "flops-lightgen-fast": lambda: f"{flops('lightgen', 'gtr-lightgen-fast')[1]:.1f}×",
    "flops-recap": lambda: f"{flops('mar-b', 'gtr-paper', cache=ReCAP())[1]:.1f}×",
    "flops-lazymar": lambda: f"{flops('mar-b', 'gtr-full', cache=LazyMAR())[1]:.1f}×",
    "flops-revision": lambda: (
        f"{100 * (flops('mar-h', 'gtr-paper', revise=0.25)[0] / flops('mar-h', 'gtr-paper')[0] - 1):.0f} %"
    ),
    "packed-weights": packed_weights,
    "int8": int8,
    "tflops-paper": lambda: f"{flops('mar-h', 'gtr-paper')[0]:.2f}",
    "tflops-origin": lambda: f"{flops('mar-h', 'origin')[0]:.2f}",
}


# -- pages and charts --------------------------------------------------------------------------------------------------


def filled(text: str, missing: set[str]) -> str:
    """A page with its tables and values as they are made now; names of missing files are added to ``missing``."""

    def fill(match: re.Match) -> str:
        kind, name, old = match.groups()
        try:
            new = TABLES[name]()
        except Missing as error:
            missing.add(str(error))
            return match[0]
        new = new if kind == "value" else f"\n\n{new}\n\n"
        return f"<!-- {kind}: {name} -->{new}<!-- end -->"

    return BLOCK.sub(fill, text)


def draw(name: str) -> None:
    """The chart of a result of `bench`, or of several as a growth figure."""
    result = measured(name)
    if name in GROWTH:
        write_chart(
            FIGURES.parent / f"{name}.png", line_chart(GROWTH[name].lines(), GROWTH[name].x_label, "seconds per image")
        )
        return
    rows = [
        (row["preset"], row["seconds"], f"{digits(row['seconds'])} s, {times(row['ratio'])}") for row in result["rows"]
    ]
    kind = "" if result["rounds"] == 1 else " (median)"
    title = f"{result['model']}: seconds per image{kind}, {result['machine']['name']}"
    write_chart(FIGURES.parent / f"{name}.png", bar_chart(rows, title))


def measure(name: str) -> None:
    """Run the commands behind a file of docs/figures; the paths in it are relative to the repository."""
    results = [run(line) for line in commands(name)]
    facts = json.dumps(results[0] if isinstance(COMMANDS[name], str) else results, indent=1)
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / f"{name}.json").write_text(facts.replace(f"{ROOT}{os.sep}", "") + "\n", encoding="utf-8")


def run(line: str) -> dict:
    """What one command prints, with the variables that stand before it in its own account of the command."""
    variables, (_, *arguments) = split_variables(line)
    words = [sys.executable, *arguments, "--json"]
    if "-o" in words:
        shutil.rmtree(ROOT / words[-2], ignore_errors=True)  # else the images of an earlier run would be counted
    changed = {**os.environ, **dict(variable.split("=", 1) for variable in variables)}
    done = subprocess.run(words, cwd=ROOT, env=changed, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return {**result, "command": " ".join([*variables, result["command"]])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", metavar="NAME", default=[], choices=COMMANDS)
    for name in parser.parse_args().measure:
        measure(name)
    missing: set[str] = set()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = filled(before, missing)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    for name in COMMANDS:
        if name.startswith(("bench", "growth")) and (FIGURES / f"{name}.json").is_file():
            draw(name)
    for name in COMMANDS:
        if name in missing:
            print(f"docs/figures/{name}.json is missing: python -m docs.tables --measure {name}")


if __name__ == "__main__":
    main()
