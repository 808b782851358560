"""Writes docs/quality.md from the experiments' results: every number in it comes from a file beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gtr_core.evaluation.metrics import Interval, paired
from gtr_core.plans.schedule import Schedule

from . import runs
from .models import REVISED

INTRODUCTION = """No published weights were at hand, so these experiments compare decoding methods on the demo model of
this repository ([model card](../demo/MODEL_CARD.md)), a small MAR that knows 48 sprites. The metric is the Fréchet
distance of the features of a classifier trained on the same world, and lower is better. *Coherence* is the share of
images that show one sprite and not a mixture of two, and higher is better. Guidance is off unless
stated, and the models run in bf16.

Each ± is the half width of Student's 95 % interval over seeds, and n is seeds × images. Differences are paired over the
same seeds, labels and noise. A difference whose interval contains 0 is *within the noise*. The JSON file of an
experiment has every metric of every seed (kernel distance, class accuracy, inception score, precision, recall,
spectrum, factor confidence, coherence)."""

WORLD = """The class is given, and which of its four sprites is drawn is the sampler's choice, as is the hue of the
background. Tokens that are decoded at once before enough is known belong to two sprites or two hues. Photographs fail
in the same way under parallel decoding. The world favours no order by construction. A sprite covers most of the image,
so far tokens depend on each other until sprite, size, place and direction are settled, and hardly afterwards."""

GATE = """These criteria were set before the experiments. A model that fails one of them cannot rank methods."""

FAILED = """**The gate is not passed, so nothing on this page ranks methods.** Differences as small as those that it
could not tell apart cannot be judged here. World and training were changed twice to pass it. The earlier models, of
sprites in one place and one size, did not tell 8 AR steps from 64 either. `gtr-best-4x` and `gtr-best-6x` come from a
search on a still earlier one."""

ORDERS = """All methods take 18 AR steps of 50 diffusion steps. Only the order differs, and with it the tokens per step
(a cosine for one stage, even within a stage of GtR). The paper finds raster far worse than subsample, subsample worse
than random, and random worse than GtR."""

RECAP = """From the same experiment, the [ReCAP cache](python.md) with its first 4 steps full. 1 or 2 is the number of
local steps after every full one."""

SEARCH = """The search draws random schedules of a given cost (FLOPs of MAR-H), keeps the better third, measures these
on twice the images, and repeats. The winner is compared with presets on seeds that the search has not seen. As the gate
is not passed, no preset was changed by what it found. The files hold the commands."""

MISPLACED = """Some images have a token that does not fit the others, seen as a square of another colour. As an image of
this world is one sprite before a gradient, the one that fits best can be computed (sprite and place as the classifier
sees them, brightness and colours by least squares). A token that lies further from it than {limit} (root mean square of
its pixels on a scale of [0, 1]) counts as misplaced."""

AGAIN = ", revised "  # between a method's name and the share that it draws again

HEAT = """In these images FTS selects tokens at the borders of the image and some inside the sprites (`python -m
demo.experiments heat`)."""


def load(folder: Path, name: str) -> dict | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


# -- what results say, in words ----------------------------------------------------------------------------------------


def verdict(gate: dict) -> tuple[bool, list[str]]:
    """Whether the gate is passed, and its criteria as lines of a list."""
    rows = {own["method"]: own for own in gate["rows"]}
    origin, floor = rows["origin"]["figures"], gate["floor"]["figures"]["frechet"]["mean"]
    parts = []
    for other in ("random-18", "random-8"):
        difference = rows[other]["difference"]["frechet"]
        steps = other.removeprefix("random-")
        words = f"{steps} AR steps should be clearly worse than 64, and the difference is {_interval(difference)}"
        parts.append((difference["clear"] and difference["mean"] > 0, words))
    accuracy = origin["accuracy"]
    parts.append((accuracy["mean"] > 0.95, f"the class accuracy of {_interval(accuracy)} is above 0.95"))
    times, pooled = origin["frechet"]["mean"] / floor, gate["together"]
    parts.append((times < 5, f"the distance is {times:.1f} times that of real images ({floor:.3g}), less than 5"))
    times = pooled["frechet"] / pooled["floor"]
    parts.append((pooled["frechet"] < 5 * pooled["floor"], f"over the images of all seeds it is {times:.1f} times"))
    words = f"{pooled['images']:,} images over {len(gate['seeds'])} seeds were measured, at least 1,000"
    parts.append((pooled["images"] >= 1000, words))
    return all(ok for ok, _ in parts), [f"- {'Passed' if ok else '**Failed**'}, {text}." for ok, text in parts]


def gate_coherence(gate: dict) -> str:
    """What coherence says on the same images; no criterion."""
    names = {f"`{name}`": name for name in ("random-18", "random-8")}
    return f"- No criterion, but what the world was made for: {coherence(gate, names, 'origin')}"


def versus(result: dict, name: str, other: str, figure: str = "frechet") -> str:
    """Where the Fréchet distance or the coherence of a method lies against another's, over the same seeds."""
    values = {own["method"]: own["values"][figure] for own in result["rows"]}
    found = paired(values[name], values[other])
    if figure == "coherence":
        mean, half = 100 * found.mean, 100 * (found.half or 0.0)
        if found.clear:
            return f"lies {abs(mean):.1f} ± {half:.1f} points {'higher' if mean > 0 else 'lower'}"
        return f"lies within the noise ({round(mean, 1) + 0.0:+.1f} ± {half:.1f} points)"
    if found.clear:
        return f"lies {abs(found.mean):.3g} ± {found.half:.2g} {'higher' if found.mean > 0 else 'lower'}"
    return f"lies within the noise ({found.mean:+.2g} ± {found.half:.2g})"


def each(result: dict, names: dict[str, str], other: str, figure: str = "frechet") -> str:
    """The same for several methods: what to call them, and their names in the result."""
    parts = [f"{words} {versus(result, name, other, figure)}" for words, name in names.items()]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def coherence(result: dict, names: dict[str, str], other: str) -> str:
    """The share of coherent images of a method, and the differences of others from it."""
    found = next(Interval(**own["figures"]["coherence"]) for own in result["rows"] if own["method"] == other)
    share = f"{100 * found.mean:.1f} ± {100 * (found.half or 0):.1f} %"
    return f"Coherent are {share} of the images with `{other}`. Against it, {each(result, names, other, 'coherence')}."


def ratio(result: dict, name: str) -> str:
    return next(f"{own['speedup']:.2f}×" for own in result["rows"] if own["method"] == name)


def source(result: dict, folder: str, name: str) -> str:
    """n, the command and the file."""
    row = result["rows"][0]
    n = f"{row['seeds']} × {row['images']}"
    return f"n = {n}. `{result['command']}` wrote [{name}.json]({folder}/{name}.json)."


def orders(result: dict) -> Sequence[str]:
    plain = {f"`{name}`": name for name in ("raster", "subsample", "halton")}
    diagonal = {f"{k} stages": f"gtr diagonal, {k} stages" for k in (2, 3, 4, 5)}
    quincunx = {f"{k} stages": f"gtr quincunx, {k} stages" for k in (3, 5)}
    tried = [
        f"An order of farthest points, `spread`, was tried and left out. Against random order it "
        f"{versus(result, 'spread', 'random')}, and inside three stages of GtR it "
        f"{versus(result, 'gtr diagonal, 3 stages, spread', 'gtr diagonal, 3 stages')}."
        for own in result["rows"]
        if own["method"] == "spread"
    ]
    return (
        f"Against random order, {each(result, plain, 'random')}.",
        f"Against random order, GtR by diagonal with {each(result, diagonal, 'random')}.",
        f"Against random order, GtR by quincunx with {each(result, quincunx, 'random')}.",
        *tried,
        coherence(result, plain | diagonal, "random"),
    )


def longer_orders(result: dict) -> Sequence[str]:
    stages = {f"{kind} with {k} stages": f"gtr {kind}, {k} stages" for k in (3, 5) for kind in ("diagonal", "quincunx")}
    return (
        f"Against random order, `halton` {versus(result, 'halton', 'random')}.",
        f"Against random order, GtR by {each(result, stages, 'random')}.",
    )


def budgets(result: dict) -> Sequence[str]:
    fewer = {f"`random-{k}`": f"random-{k}" for k in (32, 16, 8)}
    disa = {f"`{name}` ({ratio(result, name)})": name for name in ("disa-24", "disa-16", "halton-16")}
    names = ("gtr 24,6,2 stage", "gtr 10,6,2 full", "gtr 8,3,2 stage", "gtr-best-4x", "gtr-best-6x")
    gtr = {f"{name.removeprefix('gtr ')} ({ratio(result, name)})": name for name in names}
    return (
        f"Against `origin` with its 64 AR steps, {each(result, fewer, 'origin')}.",
        f"Against `origin`, GtR with {each(result, gtr, 'origin')}.",
        f"Against `origin`, {each(result, disa, 'origin')}.",
        coherence(result, fewer | disa | gtr, "origin"),
    )


def recap(result: dict) -> Sequence[str]:
    """ReCAP at about equal FLOPs, from the experiment on budgets."""
    pairs = (
        ("gtr 20,12,4 full ReCAP 1", "gtr 10,6,2 full"),
        ("gtr 30,18,6 full ReCAP 2", "gtr 10,6,2 full"),
        ("gtr 24,6,2 stage ReCAP 1", "gtr 8,3,2 stage"),
        ("gtr 12,3,1 full ReCAP 1", "gtr 8,3,2 full"),
        ("gtr 20,12,4 full ReCAP 1", "gtr 24,6,2 stage"),
        ("gtr 20,12,4 full ReCAP 1", "gtr-best-4x"),
        ("gtr 24,6,2 stage ReCAP 1", "gtr-best-6x"),
    )
    return [
        f"Against {other.removeprefix('gtr ')} without it ({ratio(result, other)}), {own.removeprefix('gtr ')} "
        f"({ratio(result, own)}) {versus(result, own, other)}, and its coherence "
        f"{versus(result, own, other, 'coherence')}."
        for own, other in pairs
    ]


def defaults(result: dict, by_order: dict | None, by_budget: dict | None) -> Sequence[str]:
    """What scope and partition change, and what a custom schedule has unless told otherwise."""
    scope = f"Against full scope at equal steps, stage scope {versus(result, 'diagonal, stage', 'diagonal, full')}."
    if by_budget is not None:
        long, short = "gtr 24,6,2 stage", "gtr 8,3,2 full"
        scope += (
            f" Against 8,3,2 in full scope ({ratio(by_budget, short)}), 24,6,2 in stage scope "
            f"({ratio(by_budget, long)}) {versus(by_budget, long, short)} at about equal FLOPs."
        )
    shares = coherence(result, {name: name for name in ("diagonal, stage", "quincunx, full")}, "diagonal, full")
    partition = (
        f"Against quincunx, diagonal {versus(result, 'diagonal, stage', 'quincunx, stage')} in stage scope and "
        f"{versus(result, 'diagonal, full', 'quincunx, full')} in full scope."
    )
    if by_order is not None:
        five = versus(by_order, "gtr diagonal, 5 stages", "gtr quincunx, 5 stages")
        partition += f" With five stages (order at equal steps) it {five}."
    default = Schedule.__dataclass_fields__["partition"].default
    return (
        scope,
        partition,
        shares,
        f"Presets and custom schedules take `{default}`, as notes on the paper give its Algorithm 1.",
    )


def fts(result: dict) -> Sequence[str]:
    kinds = {f"`{kind}`": f"{kind} 0.1, 50 steps" for kind in ("high", "low", "random", "all")}
    more = {
        "a quarter of the tokens": "high 0.25, 50 steps",
        "half of the tokens": "high 0.5, 50 steps",
        "the usual tenth with 100 steps": "high 0.1, 100 steps",
    }
    return (
        f"Against FTS off, {each(result, kinds, 'off')}.",
        f"Against FTS off, {each(result, more, 'off')}.",
        "A model of this size needs few diffusion steps, so this says little about large models.",
    )


def guidance(result: dict) -> Sequence[str]:
    scales = {name: f"cfg 2 {name}" for name in ("linear", "constant")}
    later = {
        f"starting at {share} ({ratio(result, f'cfg 2 linear from {share} on')})": f"cfg 2 linear from {share} on"
        for share in (0.25, 0.5)
    }
    return (
        f"Against no guidance, a scale of 2 with the guidance schedule {each(result, scales, 'no guidance')}.",
        f"Against no guidance, the linear schedule {each(result, later, 'no guidance')}.",
    )


def revision(result: dict) -> Sequence[str]:
    findings = []
    for row in result["rows"]:
        own = row["method"]
        name, revised, share = own.partition(AGAIN)
        if revised:
            findings.append(
                f"With {float(share):.3g} of the tokens drawn again ({ratio(result, own)}), the distance of `{name}` "
                f"{versus(result, own, name)} and its coherence {versus(result, own, name, 'coherence')}."
            )
    return findings


def best(result: dict) -> Sequence[str]:
    pairs = (("gtr-best-4x", "gtr-paper"), ("gtr-best-4x", "gtr-full"), ("gtr-best-6x", "gtr-extreme"))
    return [f"Against `{other}`, `{own}` {versus(result, own, other)}." for own, other in pairs]


def best_table(result: dict) -> str:
    first = result["rows"][0]["method"]
    lines = ["| preset | fewer FLOPs ↑ | Fréchet distance ↓ | difference |", "|---|---|---|---|"]
    for own in result["rows"]:
        name, distance = own["method"], Interval(**own["figures"]["frechet"])
        against = "" if name == first else versus(result, name, first).removeprefix("lies ")
        lines.append(f"| `{name}` | {own['speedup']:.2f}× | {distance.mean:.1f} ± {distance.half:.1f} | {against} |")
    real = Interval(**result["floor"]["figures"]["frechet"])
    return "\n".join([*lines, f"| real images | | {real.mean:.1f} ± {real.half:.1f} | |"])


def searched(result: dict | None, folder: str, name: str) -> list[str]:
    """What a search found, and how it did on seeds that the search had not seen."""
    if result is None:
        return []
    schedule, (winner, *others) = result["winner"]["schedule"], result["rows"]
    against = [f"against `{own['method']}` it {versus(result, winner['method'], own['method'])}" for own in others]
    steps, diffusion = (", ".join(map(str, schedule[key])) for key in ("steps", "diffusion"))
    return [
        f"- At {result['target']:g} times fewer FLOPs, the best of {len(result['rounds'][0])} candidates has AR steps "
        f"{steps}, diffusion steps {diffusion}, partition {schedule['partition']} and {schedule['decoder_scope']} "
        f"scope{_fts(result['winner'])}. On {winner['images']} images of each of "
        f"{len(result['verification_seeds'])} other seeds, {', '.join(against)} ([{name}.json]({folder}/{name}.json))."
    ]


def _fts(method: dict) -> str:
    """The FTS of a method's settings, in words."""
    fts = method.get("fts")
    return f", and FTS gives {fts['fraction']:.0%} of the tokens {fts['detail_steps']} steps" if fts else ""


def observations(result: dict | None, folder: str) -> list[str]:
    title = "## Why a checkerboard"
    if result is None:
        return []
    spread, count = result["spread"], result["images"]
    near = [
        f"with {known} known tokens it falls from {_interval(found['1'])} at distance 1 to {_interval(found['4'])} at 4"
        for known, found in result["change"].items()
    ]
    words = "Four images filled in seven times from a checkerboard, then from their upper half"
    return [
        title,
        "The paper bases its order on two observations. Both experiments were repeated with this model.",
        f"![{words}]({folder}/observations.png)",
        f"- After the same half of the tokens of {count} real images, {result['redraws']} seeds fill in the rest. The "
        f"pixels' standard deviation over seeds is {_interval(spread['checkerboard'])} with a known checkerboard and "
        f"{_interval(spread['upper half'])} with a known upper half, in [-1, 1] units. The mean ratio per image is "
        f"{_interval(result['ratio'])}.\n"
        "- When one more token becomes known, the conditioning of masked tokens changes. This relative change depends "
        f"on the distance, and {' and '.join(near)}.",
        f"n = {count}. `{result['command']}` wrote [observations.json]({folder}/observations.json).",
    ]


def misplaced(result: dict | None, folder: str) -> list[str]:
    if result is None:
        return []
    origin, own, *revised = (
        result["methods"][name + again] for again in ("", f"{AGAIN}{REVISED:g}") for name in ("origin", "gtr-paper")
    )
    first, last = own["steps"][0]["known_below"], own["steps"][-1]["known_below"]
    early, late, end = (
        f"{100 * share_misplaced(own, *known):.2g} %" for known in ((first, 8), (64, last), (last, last))
    )
    few = f"{100 * expected_misplaced(own, first, 16) / expected_misplaced(own, first, last):.0f} %"
    words = "Share of misplaced tokens over known tokens on logarithmic axes, falling with every doubling"
    return [
        "## Where misplaced tokens come from",
        MISPLACED.format(limit=result["limit"]),
        f"![{words}]({folder}/misplaced.png)",
        f"- `origin` misplaces {_interval(origin['per_image'])} tokens per image and `gtr-paper` "
        f"{_interval(own['per_image'])}, and {_percent(origin['clean'])} and {_percent(own['clean'])} of the images "
        f"have none. Real images behind the VAE have {result['real_per_image']:.2g}.\n"
        f"- `gtr-paper` misplaces {early} of the tokens that it draws while fewer than 8 are known, and {late} of "
        f"those that it draws once 32 are known. {few} of all misplaced tokens are drawn while fewer than 16 are "
        "known.\n"
        f"- Of the half that it draws in the last two AR steps, {end} are misplaced. So mistakes come from the first "
        "AR steps, which are small in GtR, and little from its reconstruction.\n"
        f"- With the first tokens drawn again when all others are known (`revise` {REVISED:g}), `origin` "
        f"misplaces {_interval(revised[0]['per_image'])} tokens per image and `gtr-paper` "
        f"{_interval(revised[1]['per_image'])}, and {_percent(revised[0]['clean'])} and "
        f"{_percent(revised[1]['clean'])} of the images have none.",
        f"n = {result['seeds']} × {result['images']}. `{result['command']}` wrote "
        f"[misplaced.json]({folder}/misplaced.json).",
    ]


def expected_misplaced(method: dict, first: int, last: int) -> float:
    """Misplaced tokens per image in the classes of known tokens from ``first`` to ``last``."""
    chosen = [step for step in method["steps"] if first <= step["known_below"] <= last]
    return sum(step["share"]["mean"] * step["tokens_per_image"] for step in chosen)


def share_misplaced(method: dict, first: int, last: int) -> float:
    """The share of the tokens of these classes."""
    chosen = [step["tokens_per_image"] for step in method["steps"] if first <= step["known_below"] <= last]
    return expected_misplaced(method, first, last) / sum(chosen)


# -- the page ----------------------------------------------------------------------------------------------------------

Say = Callable[..., Sequence[str]]


def section(title: str, result: dict | None, folder: str, about: str, say: Say, *others: dict | None) -> list[str]:
    """Heading, what was done, plot, findings, and where everything else is."""
    if result is None:
        return []
    name = result["experiment"]
    return [
        f"## {title}",
        about,
        f"![{title}, Fréchet distance against fewer FLOPs]({folder}/{name}.png)",
        "\n".join(f"- {finding}" for finding in say(result, *others)),
        source(result, folder, name),
    ]


def opinion(gate: dict | None, folder: str) -> list[str]:
    """The gate, which decides whether the page may rank methods."""
    if gate is None:
        return ["Not run yet. **Until it is, nothing on this page ranks methods.**"]
    passed, parts = verdict(gate)
    warning = [] if passed else [FAILED]
    return ["\n".join([*parts, gate_coherence(gate)]), *warning, source(gate, folder, "gate")]


def write_page(folder: Path, target: Path) -> None:
    kinds = ("gate", "orders", "orders-32", "budgets", "defaults", "fts", "guidance", "revision", "best")
    names = (*kinds, "search-4x", "search-6x")
    found, at = {name: load(folder, name) for name in names}, folder.name
    order, budget = found["orders"], found["budgets"]
    searches = [line for name in ("search-4x", "search-6x") for line in searched(found[name], at, name)]
    words = "Images, and below them the tokens that FTS gave extra diffusion steps"
    heat = [f"![{words}]({at}/heat.png)", HEAT] if found["fts"] is not None else []
    blocks = [
        "# Quality on the demo model",
        INTRODUCTION,
        WORLD,
        "## May this model rank methods?",
        GATE,
        *opinion(found["gate"], at),
        *section("Order at equal steps", order, at, ORDERS, orders),
        *section("Order at more steps", found["orders-32"], at, "The same with 32 AR steps.", longer_orders),
        *section(
            "Quality against FLOPs",
            budget,
            at,
            "One panel per family of methods, with all other points in grey. The vertical line marks the paper's "
            "claim. LazyMAR is missing, because it needs guidance.",
            budgets,
        ),
        *(
            []
            if budget is None
            else ["## ReCAP at equal FLOPs", RECAP, "\n".join(f"- {line}" for line in recap(budget))]
        ),
        *section(
            "Partition and decoder scope",
            found["defaults"],
            at,
            "The steps of `gtr-full` with both partitions and both decoder scopes.",
            defaults,
            order,
            budget,
        ),
        *section("FTS", found["fts"], at, "A GtR schedule with 8 diffusion steps in the reconstruction stage.", fts),
        *heat,
        *section(
            "Guidance",
            found["guidance"],
            at,
            "`gtr-full` with classifier-free guidance from the first step on, or from a later one.",
            guidance,
        ),
        *section(
            "Revision",
            found["revision"],
            at,
            "After all others, the first tokens are drawn again in one more AR step "
            "([how](how_it_works.md#revision)). The FLOPs are those of the demo model.",
            revision,
        ),
        *(["## Search", SEARCH, "\n".join(searches)] if searches else []),
        *section(
            "The presets on new seeds",
            found["best"],
            at,
            "Both winners became presets. FLOPs are those of MAR-H, without guidance and FTS.",
            best,
        ),
        *([] if found["best"] is None else [best_table(found["best"])]),
        *observations(load(folder, "observations"), at),
        *misplaced(load(folder, "misplaced"), at),
    ]
    runs.replace_file(target, lambda part: part.write_text("\n\n".join(block for block in blocks if block) + "\n"))


def _interval(found: dict) -> str:
    half = "" if found["half"] is None else f" ± {found['half']:.2g}"
    return f"{found['mean']:.3g}{half}"


def _percent(found: dict) -> str:
    half = "" if found["half"] is None else f" ± {100 * found['half']:.2g}"
    return f"{100 * found['mean']:.3g}{half} %"
