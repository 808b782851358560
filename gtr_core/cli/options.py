"""What several verbs share: groups of options, and the typed values behind them. A verb passes on values, never its
options."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..checkpoints import prompt_states
from ..checkpoints.checkpoint import checked_model, read_checkpoint
from ..checkpoints.tokenizer import REMEDY as TOKENIZER_REMEDY
from ..checkpoints.tokenizer import load_tokenizer
from ..demo import DEMO_MAR, DEMO_VAE
from ..device import DTYPES, Runtime, best_dtype
from ..errors import GtRError, first_line
from ..jobs.workers import ENGINES, WorkerPool
from ..models import ModelSpec, published_specs
from ..models.labels import parse_labels
from ..models.prompts import ids_of
from ..plans.fts import FTS, SELECTIONS
from ..plans.method import GUIDANCE_SCHEDULES, LARGEST_REVISION, Cache, Guidance, Method
from ..plans.orders import ORDERS
from ..plans.partition import PARTITIONS
from ..plans.presets import PRESETS, preset
from ..plans.schedule import SCOPES, Schedule, parse_numbers
from ..sampling.lazymar import LazyMAR
from ..sampling.recap import ReCAP
from ..sampling.reference import Reference

DEMO, LAZYMAR, RECAP, REFERENCE, AUTO = "demo", "lazymar", "recap", "reference", "auto"
DEFAULT_PRESET = "gtr-paper"
# Presets of any number of AR steps, made from those of 16.
STEPPED = re.compile(r"(step|halton)-(\d{1,5})")
STEPPED_NAMES = ("step-N", "halton-N")
# AR steps per stage behind the name of a preset.
STAGES = re.compile(r"\d{1,5}(-\d{1,5})*")
CACHES = {LAZYMAR: LazyMAR, RECAP: ReCAP}
LARGEST_BATCH = 4096
LONGEST_PROMPTS = 64 << 20  # bytes of a file of prompts
DEVICES = ("cpu", "cuda", "mps", "xpu")
Parser = argparse.ArgumentParser
Options = argparse.Namespace


@dataclass(frozen=True)
class Verb:
    """One verb of the command line. The ``examples`` in its help are what follows the program's name. A ``resumable``
    one goes on where it was stopped."""

    name: str
    summary: str
    examples: tuple[str, ...]
    add_options: Callable[[Parser], None]
    run: Callable[[Options], None]
    resumable: bool = False


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Adds every default that says something, unless the text does, and leaves the examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


# Models and VAEs


def add_model_options(sub: Parser, families: str) -> None:
    sub.add_argument("--model", default=DEMO, help=f"a {families} file, or demo")
    sub.add_argument("--vae", metavar="FILE", help="the model's VAE file (not needed for demo)")


def model_file(model: str) -> Path:
    """The file behind --model."""
    return DEMO_MAR if model == DEMO else Path(model)


def vae_file(options: Options) -> Path:
    """The file behind --vae, the demo's own by default. Raises GtRError for another model without one."""
    if options.vae:
        return Path(options.vae)
    if options.model != DEMO:
        raise GtRError("no VAE: give the model's VAE file with --vae (kl16 for the published MAR models)")
    return DEMO_VAE


def model_spec(model: str) -> ModelSpec:
    """The spec of a published model by name, or of a file."""
    known = published_specs()
    return known[model] if model in known else checked_model(read_checkpoint(model_file(model)))[0]


# Conditions and sizes


@dataclass(frozen=True)
class Conditions:
    """What is asked for: ``labels``, token ``ids`` of prompts, or the file of encoded ones and how many they are."""

    labels: tuple[int, ...] = ()
    prompts: Path | None = None
    count: int = 0
    ids: tuple[tuple[int, ...], ...] = ()


def add_prompt_options(sub: Parser) -> None:
    sub.add_argument("--prompt", action="append", metavar="TEXT", help="Harmon: what to draw; may be given again")
    sub.add_argument("--prompts", metavar="FILE", help="Harmon: a text file, UTF-8, with one prompt per line")
    sub.add_argument(
        "--tokenizer", metavar="FOLDER", help="Harmon: Qwen2.5's vocab.json, merges.txt and tokenizer_config.json"
    )


def conditions_of(options: Options, spec: ModelSpec, classes: str, *, edit: bool = False) -> Conditions:
    """The classes (``all`` for every one) or the prompts, whichever the model takes; with ``edit`` instructions to
    change a picture. Raises GtRError."""
    if spec.condition == "prompt":
        return _prompts(options, spec, edit)
    if edit:
        raise GtRError(f"{spec.name} does not change pictures as a prompt says: leave out --edit")
    if options.prompt or options.prompts:
        raise GtRError(f"{spec.name} takes no prompt as it is written: leave out --prompt and --prompts")
    if spec.condition == "text":
        if not options.prompt_embeds:
            raise GtRError(f"{spec.name} draws from text: give its encoded prompts with --prompt-embeds FILE")
        return Conditions((), Path(options.prompt_embeds), len(prompt_states(options.prompt_embeds, spec)))
    if options.prompt_embeds:
        raise GtRError(f"{spec.name} draws from classes, not text: leave out --prompt-embeds")
    everything = classes.strip().lower() == "all"
    labels = tuple(range(spec.classes)) if everything else parse_labels(classes, spec)
    return Conditions(labels, None, len(labels))


def _prompts(options: Options, spec: ModelSpec, edit: bool) -> Conditions:
    """Prompts as they are written, by the given tokenizer."""
    texts = [*(options.prompt or ()), *(read_prompts(Path(options.prompts)) if options.prompts else ())]
    if not texts or options.prompt_embeds:
        raise GtRError(f"{spec.name} draws from prompts: give them with --prompt TEXT or --prompts FILE, nothing else")
    if not options.tokenizer:
        raise GtRError(f"{spec.name} needs Qwen2.5's tokenizer for prompts: {TOKENIZER_REMEDY} with --tokenizer")
    encode = spec.encode_edits if edit else spec.encode_prompts
    condition = encode(texts, load_tokenizer(options.tokenizer))
    note = spec.length_note(condition)
    if note:
        print(f"note: {note}", file=sys.stderr)
    return Conditions(count=len(texts), ids=tuple(ids_of(condition)))


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one per line. Raises GtRError."""
    try:
        if path.stat().st_size > LONGEST_PROMPTS:
            raise ValueError(f"more than {LONGEST_PROMPTS} bytes")
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise GtRError(f"--prompts {path}: cannot be read ({first_line(error)}): expected a text in UTF-8") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise GtRError(f"--prompts {path}: expected one prompt per line, found none")
    return prompts


def grid_of(size: str | None, spec: ModelSpec) -> tuple[int, int] | None:
    """WIDTHxHEIGHT in pixels -> the token grid; None for the model's own size. Raises GtRError."""
    if not size:
        return None
    values, token = numbers(size.lower().replace("x", ","), int), spec.latent.stride * spec.latent.patch
    if len(values) != 2 or any(value < 1 or value % token for value in values):
        raise GtRError(f"size '{size}': expected width x height in multiples of {token}, such as 512x512")
    grid = spec.latent.grid((values[1], values[0]))
    try:
        spec.check_grid(grid)
    except GtRError as error:
        raise GtRError(f"{error} (leave out --size)") from None
    return grid


# Methods


def add_method_options(sub: Parser) -> None:
    """A preset and what changes it; FTS."""
    sub.add_argument(
        "--preset",
        metavar="NAME",
        help=f"{', '.join((*PRESETS, LAZYMAR))}, or step-N and halton-N of any N AR steps. --order, --steps, --rates, "
        f"--diffusion, --partition and --scope change it (default: {DEFAULT_PRESET}; origin with another --order)",
    )
    sub.add_argument("--cache", choices=tuple(CACHES), help="what is reused between AR steps (default: nothing)")
    sub.add_argument(
        "--recap",
        metavar="START,LOCAL",
        help="with --cache recap: its first full steps, and its local steps after each full one (default: "
        f"{ReCAP().start_step},{ReCAP().local_steps})",
    )
    sub.add_argument("--order", choices=tuple(ORDERS), help="the order of decoding; all but gtr have one stage")
    sub.add_argument("--steps", metavar="N,N,...", help="AR steps per stage, such as 24,6,2")
    sub.add_argument("--rates", metavar="R,R,...", help="or tokens per AR step of every stage, such as 2.67,10.67,64")
    sub.add_argument(
        "--diffusion", metavar="N,N,N", help="diffusion steps: start, end, reconstruction, such as 50,20,20"
    )
    sub.add_argument("--partition", choices=PARTITIONS, help="how the tokens are split into stages")
    sub.add_argument("--scope", choices=SCOPES, help="mask tokens that the decoder sees: of all stages, or of its own")
    add_fts_options(sub)
    add_revision_option(sub)


def add_fts_options(sub: Parser) -> None:
    sub.add_argument(
        "--fts",
        choices=(*SELECTIONS, "off"),
        default="high",
        help="which tokens of a reconstruction step get the detail steps",
    )
    sub.add_argument("--fts-fraction", metavar="SHARE", type=float, default=0.1, help="how many of its tokens, 0 to 1")
    sub.add_argument("--fts-steps", metavar="N", type=int, default=50, help="the detail steps")


def add_revision_option(sub: Parser) -> None:
    sub.add_argument(
        "--revise",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="how many of the tokens, those drawn first, one more AR step draws again: "
        f"0 to {LARGEST_REVISION:g}; 0 = none",
    )


def add_guidance_options(sub: Parser) -> None:
    add_scale_option(sub)
    sub.add_argument(
        "--cfg-schedule",
        choices=GUIDANCE_SCHEDULES,
        default="linear",
        help="linear: the scale grows from 1 with the decoded share of the tokens",
    )
    sub.add_argument(
        "--cfg-start",
        metavar="SHARE",
        type=float,
        default=0.0,
        help="the share of the tokens that is drawn without guidance",
    )
    sub.add_argument("--temperature", type=float, default=1.0, help="of the noise in the diffusion head")


def add_scale_option(sub: Parser) -> None:
    sub.add_argument("--cfg", metavar="SCALE", type=float, default=3.0, help="guidance scale; 1 = off")


def method_of(options: Options, guidance: Guidance | None = None) -> Method:
    """The method that the options describe, with their guidance unless another is given."""
    method = Method(schedule_of(options), fts=fts_of(options), cache=cache_of(options), revise=options.revise)
    if guidance is not None:
        return replace(method, guidance=guidance)
    return replace(method, guidance=guidance_of(options), temperature=options.temperature)


def schedule_of(options: Options) -> Schedule:
    """The preset, with whatever of it the options change; the name says that it was changed."""
    changes = {
        "order": options.order,
        "steps": numbers(options.steps, int),
        "rates": numbers(options.rates, float),
        "diffusion": numbers(options.diffusion, int),
        "partition": options.partition,
        "decoder_scope": options.scope,
    }
    changes = {key: value for key, value in changes.items() if value}
    other_order = options.order not in (None, "gtr")
    chosen = named_schedule(options.preset or ("origin" if other_order else DEFAULT_PRESET), (LAZYMAR,))
    if not changes:
        return chosen
    if "steps" in changes or "rates" in changes:
        changes = {"steps": (), "rates": ()} | changes
    changed = replace(chosen, name=f"{chosen.name} (changed)", **changes)
    if options.preset:
        return changed
    if other_order and changed.steps:
        return replace(changed, name=f"{options.order}-{changed.steps[0]}")
    return replace(changed, name="custom") if options.steps or options.rates else changed


def named_schedule(name: str, others: Sequence[str] = ()) -> Schedule:
    """A preset, ``step-N`` or ``halton-N``, or ``lazymar``'s schedule. Raises GtRError that also names ``others``.

    ``NAME:15-3`` has these AR steps per stage instead of its own.
    """
    name, colon, steps = name.partition(":")
    if colon:
        if not STAGES.fullmatch(steps):
            raise GtRError(f"'{name}:{steps}': expected AR steps per stage after the colon, such as {name}:15-3")
        changes = {"steps": tuple(map(int, steps.split("-"))), "rates": (), "note": ""}
        return replace(named_schedule(name, others), name=f"{name}:{steps}", **changes)
    if name == LAZYMAR:
        return replace(preset("origin"), name=LAZYMAR)
    stepped = STEPPED.fullmatch(name)
    if name in PRESETS or stepped is None:
        return preset(name, (*others, *STEPPED_NAMES))
    return replace(preset(f"{stepped[1]}-16"), name=name, steps=(int(stepped[2]),), note="")


def cache_of(options: Options) -> Cache | None:
    """Raises GtRError for settings of another cache."""
    if options.recap and options.cache != RECAP:
        raise GtRError("--recap has settings of ReCAP: give --cache recap too")
    if options.cache == RECAP and options.recap:
        values = numbers(options.recap, int)
        if len(values) != 2:
            raise GtRError(f"--recap {options.recap}: expected the first full steps and the local steps, such as 4,1")
        return ReCAP(*values)
    if options.cache:
        return CACHES[options.cache]()
    return LazyMAR() if is_lazymar(options.preset or "") else None


def is_lazymar(name: str) -> bool:
    """Whether a name is ``lazymar``, with steps of its own or not."""
    return name.partition(":")[0] == LAZYMAR


def flags_of(method: Method) -> str:
    """The options of ``generate`` that describe a method of the order gtr with steps and without a cache."""
    schedule, fts, guidance = method.schedule, method.fts, method.guidance
    flags = {
        "steps": ",".join(map(str, schedule.steps)),
        "diffusion": ",".join(map(str, schedule.diffusion)),
        "partition": schedule.partition,
        "scope": schedule.decoder_scope,
        "fts": "off" if fts is None else fts.selection,
        **({} if fts is None else {"fts-fraction": f"{fts.fraction:g}", "fts-steps": fts.detail_steps}),
        "cfg": f"{guidance.scale:g}",
        "cfg-schedule": guidance.schedule,
        "cfg-start": f"{guidance.start:g}",
        "temperature": f"{method.temperature:g}",
        "revise": f"{method.revise:g}",
    }
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def fts_of(options: Options) -> FTS | None:
    return None if options.fts == "off" else FTS(options.fts_fraction, options.fts_steps, options.fts)


def guidance_of(options: Options) -> Guidance:
    return Guidance(options.cfg, options.cfg_schedule, options.cfg_start)


def named(name: str, base: Method, spec: ModelSpec | None = None) -> Method:
    """``base`` with the schedule of a preset, and with what else the name says.

    ``NAME+recap`` and ``NAME+lazymar`` have that cache; ``lazymar`` alone is the origin with it. Where there is a
    ``spec``, ``reference`` is the model's origin as the original code runs it. Raises GtRError for an unknown name.
    """
    name, plus, cache = name.partition("+")
    if plus:
        if cache not in CACHES:
            raise GtRError(f"'{name}+{cache}': expected one of {', '.join(CACHES)} after the +")
        method = named(name, base, spec)
        return replace(method, cache=CACHES[cache]()).renamed(f"{name}+{cache}")
    if name == REFERENCE and spec is not None:
        return replace(base, schedule=preset(spec.origin), cache=Reference()).renamed(REFERENCE)
    schedule = named_schedule(name, (LAZYMAR,) if spec is None else (LAZYMAR, REFERENCE))
    return replace(base, schedule=schedule, cache=LazyMAR() if is_lazymar(name) else base.cache)


def names(text: str) -> list[str]:
    """A list such as gtr-paper,lazymar."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str | None, kind: type) -> tuple:
    """A list such as 24,6,2; empty for none. Raises GtRError."""
    return parse_numbers(text or "", kind)


# Where and how to compute


def add_runtime_options(sub: Parser, *, automatic: bool = True) -> None:
    """``automatic``: --dtype auto can be asked for and acceleration is on unless it is switched off. Without, results
    do not depend on the machine unless it is asked for."""
    sub.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, mps or xpu"
    )
    sub.add_argument(
        "--dtype",
        choices=(*DTYPES, *([AUTO] if automatic else [])),
        default="float32",
        help="of the transformer" + ("; auto: the fastest that the device has units for" if automatic else ""),
    )
    sub.add_argument(
        "--acceleration",
        choices=(AUTO, "off"),
        default=AUTO if automatic else "off",
        help="auto: what pays on the device: CUDA graphs, packed weights, and with a 16-bit "
        "--dtype most of the head's steps in 16 bit"
        + ("" if automatic else "; it depends on the machine, and rounding with it"),
    )


def runtime_of(options: Options) -> Runtime:
    """Raises GtRError for a device that is not here."""
    check_device(options.device)
    return Runtime(options.device, dtype_of(options), options.acceleration == AUTO)


def dtype_of(options: Options) -> torch.dtype:
    """The transformer's."""
    return best_dtype(options.device) if options.dtype == AUTO else DTYPES[options.dtype]


def check_device(device: str) -> None:
    try:
        usable = torch.empty(0, device=device).device.type in DEVICES
    except (RuntimeError, AssertionError):
        usable = False
    if not usable:
        raise GtRError(f"device '{device}' cannot be used here: give an available accelerator, or --device cpu")


def add_worker_options(sub: Parser) -> None:
    sub.add_argument("--engine", choices=ENGINES, default="local", help="ray: RAY_ADDRESS, or a cluster started here")
    sub.add_argument(
        "--workers", metavar="N", type=int, help="default: this process alone; ray: as many as there is room for"
    )
    sub.add_argument("--threads", metavar="N", type=int, default=1, help="of every worker, whatever their number")


def pool_of(options: Options) -> WorkerPool:
    return WorkerPool(options.engine, options.workers, options.threads, options.device)


# Reports


def print_report(options: Options, facts: dict, text: str) -> None:
    print(json.dumps(facts) if options.json else text)
