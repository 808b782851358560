"""A long queue of prompts: their kinds and graphs, what is noted after each, and the figures and curves of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from PIL import Image, ImageDraw, ImageFont

from .rest import Graph
from .stand_ins import LIGHTGEN_FILE, MAR_FILE, SD3_VAE_FILE, VAE_FILE

MIB = 1 << 20
DEMO = "demo (built-in)"
FILES = {"demo": (DEMO, DEMO), "mar": (MAR_FILE, VAE_FILE), "lightgen": (LIGHTGEN_FILE, SD3_VAE_FILE)}
BEGIN, END = "<!-- long run: begin (written by the test) -->", "<!-- long run: end -->"
SUBJECTS = ("a red fox", "an owl at night", "two boats", "a paper lamp")


@dataclass(frozen=True)
class Kind:
    """What a prompt asks for; ``size`` is (width, height), 0 for the model's own."""

    model: str
    batch: int
    order: str
    steps: str
    fts: bool = False
    lazy: bool = False
    masked: bool = False
    cfg: float = 2.5
    size: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        marks = {
            "FTS": self.fts,
            "LazyMAR": self.lazy,
            "mask": self.masked,
            "no guidance": self.cfg == 1,
            "{} x {}".format(*self.size): any(self.size),
        }
        used = [mark for mark, wanted in marks.items() if wanted]
        return ", ".join([self.model, f"batch {self.batch}", self.order, *used])


KINDS = (
    Kind("demo", 1, "gtr", "2, 1", fts=True),
    Kind("demo", 3, "random", "2", cfg=1),
    Kind("demo", 2, "gtr", "1, 1, 1", lazy=True),
    Kind("demo", 1, "gtr", "1, 1", fts=True, masked=True),
    Kind("demo", 2, "halton", "2", cfg=4),
    Kind("mar", 1, "gtr", "1, 1", fts=True),
    Kind("mar", 2, "random", "3", lazy=True),
    Kind("mar", 1, "subsample", "2", masked=True),
    Kind("lightgen", 1, "gtr", "2, 1", fts=True, size=(64, 64)),
    Kind("lightgen", 2, "random", "2", size=(128, 64)),
    Kind("lightgen", 1, "raster", "2", cfg=1, size=(64, 128)),
    Kind("lightgen", 1, "gtr", "1, 1", masked=True, size=(96, 96)),
)


def order_of_kinds(count: int) -> list[Kind]:
    """Every twelve prompts hold every kind once, each time in another order: windows of that length are comparable."""
    kinds, chance = [], random.Random(1)
    while len(kinds) < count:
        kinds += chance.sample(KINDS, len(KINDS))
    return kinds[:count]


def graph_of(kind: Kind, number: int) -> Graph:
    """The prompt of this number: its own seed, class or text."""
    model_file, vae_file = FILES[kind.model]
    text = kind.model == "lightgen"
    graph: Graph = {
        "model": node(
            "GtR_LoadLightGen" if text else "GtR_LoadMAR",
            model_name=model_file,
            weight_dtype="default",
            **({"weights": "model", "corrected_positions": False} if text else {}),
        ),
        "vae": node("VAELoader" if text else "GtR_LoadMARVAE", vae_name=vae_file),
        "latent": node(
            "GtR_EmptyLatent", model=["model", 0], width=kind.size[0], height=kind.size[1], batch_size=kind.batch
        ),
        "schedule": node(
            "GtR_Scheduler",
            preset="custom",
            order=kind.order,
            steps=kind.steps,
            rates="",
            partition="diagonal",
            decoder_scope="full" if kind.lazy else "stage",
            diffusion_start=3,
            diffusion_end=2,
            diffusion_reconstruction=2,
        ),
        "sampler": sampler("latent", kind, number),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=f"longrun/{number:05}"),
    }
    if text:
        graph["clip"] = node("GtRTest_TinyT5", masked=True)
        subject = SUBJECTS[number % len(SUBJECTS)]
        graph["condition"] = node("GtR_EncodeText", clip=["clip", 0], text=f"{subject}, {number}")
    else:
        graph["condition"] = node(
            "GtR_ClassCondition", model=["model", 0], class_name="207: golden retriever", class_list=str(number % 10)
        )
    if kind.fts:
        graph["fts"] = node("GtR_FTS", fraction=0.1, detail_steps=4, selection="high")
    if kind.lazy:
        graph["cache"] = node("GtR_LazyMAR", start_step=1, period=3, prune_block=3, extra=15, head_period=2)
    if kind.masked:
        graph |= {
            "all": node("SolidMask", value=0.0, width=64, height=64),
            "part": node("SolidMask", value=1.0, width=32, height=32),
            "mask": node(
                "MaskComposite", destination=["all", 0], source=["part", 0], x=number % 32, y=16, operation="add"
            ),
            "masked": node("SetLatentNoiseMask", samples=["sampler", 0], mask=["mask", 0]),
            "second": sampler("masked", kind, number + 1),
        }
        graph["decode"]["inputs"]["samples"] = ["second", 0]
    return graph


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(latent: str, kind: Kind, seed: int) -> dict[str, Any]:
    optional = {name: [name, 0] for name, wanted in (("fts", kind.fts), ("cache", kind.lazy)) if wanted}
    return node(
        "GtR_Sampler",
        model=["model", 0],
        positive=["condition", 0],
        schedule=["schedule", 0],
        latent_image=[latent, 0],
        seed=seed,
        cfg=kind.cfg,
        cfg_schedule="linear",
        temperature=1.0,
        **optional,
    )


def spread(kinds: Sequence[Kind], count: int) -> list[int]:
    """Numbers of ``count`` prompts from the last to the first at even distances, of different kinds while there are."""
    taken: dict[Kind, int] = {}
    for index in range(count):
        place = (len(kinds) - 1) * (count - index) // count
        number = next((k for k in range(place, -1, -1) if kinds[k] not in taken), None)
        if number is not None:
            taken[kinds[number]] = number
    return sorted(taken.values())


@dataclass(frozen=True)
class Note:
    """What was seen when a prompt had ended: the server's memory in bytes, its open descriptors, its processor seconds
    so far, and the seconds of this run."""

    number: int
    kind: str
    resident: int
    descriptors: int
    processor: float
    seconds: float


def look(pid: int) -> tuple[int, int, float]:
    """Resident bytes, open descriptors and processor seconds of a process."""
    process = psutil.Process(pid)
    spent = process.cpu_times()
    return process.memory_info().rss, process.num_fds(), spent.user + spent.system


@dataclass(frozen=True)
class Figures:
    """A long run in numbers. Memory in MiB and descriptors are medians over two rounds of all kinds."""

    prompts: int
    mark: int
    """After so many prompts the first look is taken."""
    memory: tuple[float, float]
    most_memory: float
    descriptors: tuple[float, float]
    processor: tuple[float, float]
    """Processor seconds per prompt in the second and in the last third: while the first runs, prompts still come in."""
    seconds: tuple[float, float]
    """Median of the kinds' medians in the first and in the last third."""
    drift: dict[str, float]
    """Per kind the median of the last third over that of the first."""

    @property
    def growth(self) -> float:
        """Of memory from the mark to the end, as a share."""
        return self.memory[1] / self.memory[0] - 1


def figures(notes: Sequence[Note]) -> Figures:
    """Of notes in the order of their prompts."""
    window, count = 2 * len(KINDS), len(notes)
    mark = min(max(count // 2, 1), 100)
    early, late = notes[max(mark - window, 0) : max(mark, 1)], notes[-window:]
    third = count // 3
    thirds = [by_kind(part) for part in (notes[:third], notes[-third:])]
    both = [kind for kind in thirds[0] if kind in thirds[1]]
    return Figures(
        count,
        mark,
        tuple(median(n.resident for n in part) / MIB for part in (early, late)),
        max(n.resident for n in notes) / MIB,
        tuple(median(n.descriptors for n in part) for part in (early, late)),
        tuple((notes[end].processor - notes[end - third].processor) / third for end in (2 * third, count - 1)),
        tuple(median(of[kind] for kind in both) for of in thirds) if both else (0.0, 0.0),
        {kind: thirds[1][kind] / thirds[0][kind] for kind in both},
    )


def by_kind(notes: Sequence[Note]) -> dict[str, float]:
    """Median seconds of every kind."""
    return {kind: median(n.seconds for n in notes if n.kind == kind) for kind in sorted({n.kind for n in notes})}


def plain(notes: Sequence[Note], found: Figures) -> dict[str, Any]:
    """Everything, to be written as JSON."""
    return {"figures": asdict(found) | {"growth": found.growth}, "notes": [asdict(note) for note in notes]}


def table(found: Figures, compared: int, machine: str) -> str:
    """The figures as a table for the documentation."""
    low, high = min(found.drift.values()), max(found.drift.values())
    rows = (
        ("measure", "before", "at the end", "change"),
        ("---",) * 4,
        (
            f"resident memory in MiB, after prompts {found.mark} and {found.prompts} ↓",
            *(f"{value:.1f}" for value in found.memory),
            f"{found.growth:+.2%}",
        ),
        (
            "open files and sockets after the same prompts ↓",
            *(f"{value:g}" for value in found.descriptors),
            f"{found.descriptors[1] - found.descriptors[0]:+g}",
        ),
        (
            "processor seconds per prompt, second and last third ↓",
            *(f"{value:.3f}" for value in found.processor),
            f"{found.processor[1] / found.processor[0]:.2f}×",
        ),
        (
            "seconds per prompt (median), first and last third ↓",
            *(f"{value:.2f}" for value in found.seconds),
            f"{low:.2f}× to {high:.2f}× by kind",
        ),
    )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(
        [
            *lines,
            "",
            f"Memory peaked at {found.most_memory:.0f} MiB at the end of a prompt. {compared} prompts were repeated "
            "in a fresh process each, and every pixel was equal.",
            "",
            f"Measured on {machine}.",
        ]
    )


def fill(page: str, text: str) -> str:
    """The page with this text between its marks."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


WIDTH, PANEL, LEFT, TOP, GAP = 1200, 300, 110, 60, 70
INK, PAPER, GRID = (40, 40, 40), (255, 255, 255), (228, 228, 228)
LINES = ((0, 114, 178), (213, 94, 0))


def draw(notes: Sequence[Note], path: Path) -> None:
    """Two panels over the prompt's number: memory and seconds, every prompt faint and the running median strong."""
    sheet = Image.new("RGB", (WIDTH, 2 * (PANEL + GAP) + TOP), PAPER)
    pen = ImageDraw.Draw(sheet)
    panels = (
        ("Resident memory of the server, MiB", [n.resident / MIB for n in notes]),
        ("Seconds per prompt (twelve kinds of prompt)", [n.seconds for n in notes]),
    )
    for index, (title, values) in enumerate(panels):
        panel(pen, TOP + index * (PANEL + GAP), title, values, LINES[index])
    pen.text(
        (LEFT, sheet.height - 34),
        f"prompt, 1 to {len(notes)}; strong: running median of two rounds of all kinds",
        font=ImageFont.load_default(18),
        fill=INK,
    )
    sheet.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def panel(pen: ImageDraw.ImageDraw, top: int, title: str, values: Sequence[float], colour: tuple) -> None:
    """One curve from zero up, with four lines of the grid."""
    highest = nice(max(values) * 1.05)
    across, font = WIDTH - LEFT - 40, ImageFont.load_default(18)

    def place(number: int, value: float) -> tuple[float, float]:
        return LEFT + across * number / max(len(values) - 1, 1), top + PANEL * (1 - value / highest)

    pen.text((LEFT, top - 34), title, font=ImageFont.load_default(22), fill=INK)
    for share in range(5):
        value = highest * share / 4
        pen.line([place(0, value), place(len(values) - 1, value)], fill=GRID, width=2)
        pen.text((LEFT - 12, place(0, value)[1]), f"{value:g}", font=font, fill=INK, anchor="rm")
    for number in sorted({0, *(len(values) * k // 10 - 1 for k in range(1, 11))} - {-1}):
        pen.text((place(number, 0)[0], top + PANEL + 16), f"{number + 1}", font=font, fill=INK, anchor="mm")
    for number, value in enumerate(values):
        x, y = place(number, value)
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=tuple((c + 3 * 255) // 4 for c in colour))
    window = 2 * len(KINDS)
    smooth = [median(values[max(k - window + 1, 0) : k + 1]) for k in range(len(values))]
    pen.line([place(number, value) for number, value in enumerate(smooth)], fill=colour, width=4, joint="curve")


def nice(value: float) -> float:
    """The next of 1, 2, 4, 8 or 12 times a power of ten that is not below: its quarters are short numbers."""
    power = 10.0 ** (len(f"{int(value)}") - 1) if value >= 1 else 0.1
    return next(step * power for step in (1, 2, 4, 8, 12, 20, 40, 80) if step * power >= value)
