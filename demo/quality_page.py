"""Writes docs/quality.md from the experiments' results: every number in it comes from a file beside it."""

from __future__ import annotations

import json
from pathlib import Path

from gtr_core.evaluation import tables
from gtr_core.evaluation.metrics import Interval
from gtr_core.evaluation.tables import versus

from . import runs

GATE = """The gate, set before the experiments: 64 steps clearly better than 18 and 8 at 1,000 pictures over 3 seeds, \
class accuracy above 95 %, and a Frechet distance below about 5 times that of real pictures."""


def load(folder: Path, name: str) -> dict | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def verdict(gate: dict) -> tuple[bool, list[str]]:
    """Whether the gate is passed, and its parts as lines of a list."""
    rows = {row["method"]: row for row in gate["rows"]}
    origin, floor = rows["origin"]["figures"], gate["floor"]["figures"]["frechet"]["mean"]
    parts = []
    for other in ("random-18", "random-8"):
        difference = rows[other]["difference"]["frechet"]
        parts.append(
            (
                difference["clear"] and difference["mean"] > 0,
                f"{other} clearly worse than origin: Frechet distance {_interval(difference)} higher",
            )
        )
    parts.append((origin["accuracy"]["mean"] > 0.95, f"class accuracy {_interval(origin['accuracy'])}"))
    ratio = origin["frechet"]["mean"] / floor
    parts.append((ratio < 5, f"Frechet distance {ratio:.1f} times the floor ({floor:.3g})"))
    pooled = gate["together"]
    parts.append(
        (
            pooled["frechet"] < 5 * pooled["floor"],
            f"the same with all seeds' pictures as one set: {pooled['frechet'] / pooled['floor']:.1f} times "
            f"({pooled['frechet']:.3g} and {pooled['floor']:.3g}; both fall with the number of pictures)",
        )
    )
    parts.append((pooled["pictures"] >= 1000, f"{pooled['pictures']:,} pictures over {len(gate['seeds'])} seeds"))
    return all(ok for ok, _ in parts), [f"- {'yes' if ok else '**no**'}: {text}" for ok, text in parts]


def section(title: str, result: dict | None, folder: str, text: str) -> list[str]:
    """Heading, text, command, table and plot of an experiment."""
    if result is None:
        return [f"## {title}", text, "Not run yet."]
    return [
        f"## {title}",
        text,
        f"`{result['command']}`",
        tables.markdown(result),
        f"![{title}: Frechet distance against speed-up]({folder}/{result['experiment']}.png)",
    ]


def decision(orders: dict | None, budgets: dict | None, defaults: dict | None) -> list[str]:
    """Which partition and decoder scope a custom schedule has unless told otherwise, and why."""
    if orders is None or budgets is None or defaults is None:
        return []
    long, short = (_row(budgets, name) for name in ("gtr 24,6,2 stage", "gtr 8,3,2 full"))
    return [
        "### Decision",
        f"The default decoder scope is **stage**. With it and the quincunx partition the Frechet distance of the "
        f"same steps is {versus(defaults, 'quincunx, stage', 'quincunx, full')} against the full scope, for fewer "
        f"FLOPs; and what they cost can go into more steps: {long['method']} ({long['speedup']:.2f} x) is "
        f"{versus(budgets, long['method'], short['method'])} against {short['method']} "
        f"({short['speedup']:.2f} x).",
        f"The default partition stays **quincunx**: within the stage scope diagonal is "
        f"{versus(defaults, 'diagonal, stage', 'quincunx, stage')} against it, no reason to change what released "
        f"nodes show. With the full scope it is {versus(defaults, 'diagonal, full', 'quincunx, full')}, and with "
        f"five stages {versus(orders, 'gtr diagonal, 5 stages', 'gtr quincunx, 5 stages')} (order at equal "
        f"steps): there take `diagonal`, as the presets that the search found do. This world flatters it: its "
        f"first stage has tokens in every row and column, quincunx's only in every second (of 3 stages) or fourth "
        f"(of 5), and threads run along rows and columns: presumably what is decoded at once along a thread not "
        f"seen yet contradicts itself. Presets keep their partition: a name in a saved workflow never changes its "
        f"meaning.",
    ]


def _row(result: dict, name: str) -> dict:
    return next(row for row in result["rows"] if row["method"] == name)


def searched(result: dict | None) -> list[str]:
    """What a search found, and how it did on seeds that the search had not seen."""
    if result is None:
        return []
    winner, seeds = result["winner"]["schedule"], len(result["verification_seeds"])
    return [
        f"### At {result['target']:g} times fewer FLOPs",
        f"`{result['command']}`",
        f"Of {len(result['rounds'][0])} candidates: AR steps {', '.join(map(str, winner['steps']))}, diffusion "
        f"steps {', '.join(map(str, winner['diffusion']))}, partition {winner['partition']}, decoder scope "
        f"{winner['decoder_scope']}, FTS {'off' if result['winner']['fts'] is None else 'on'}. "
        f"On {seeds} other seeds:",
        tables.markdown(result),
    ]


def winners(best: dict | None) -> list[str]:
    """The presets that the search found against the paper's of about the same cost."""
    pairs = (("gtr-best-4x", "gtr-paper"), ("gtr-best-4x", "gtr-full"), ("gtr-best-6x", "gtr-extreme"))
    return (
        []
        if best is None
        else [
            "Frechet distance, directly: "
            + "; ".join(f"{own} against {other} {versus(best, own, other)}" for own, other in pairs)
            + "."
        ]
    )


def observations(result: dict | None, folder: str) -> list[str]:
    title = "## Why a checkerboard: the paper's two observations"
    if result is None:
        return [title, "Not run yet."]
    spread, change = result["spread"], result["change"]
    lines = [
        "| distance to the decoded token | " + " | ".join(f"{known} tokens known" for known in change) + " |",
        "|---" * (1 + len(change)) + "|",
    ]
    for distance in next(iter(change.values())):
        cells = [_interval(found[distance]) if distance in found else "" for found in change.values()]
        lines.append(f"| {distance} | {' | '.join(cells)} |")
    return [
        title,
        f"`{result['command']}`",
        f"After the same half of the tokens of {result['pictures']} real pictures, {result['redraws']} seeds fill "
        f"in the rest. The pixels' standard deviation over seeds, in [-1, 1] units: checkerboard "
        f"{_interval(spread['checkerboard'])}, upper half {_interval(spread['upper half'])}; the mean ratio per "
        f"picture is {_interval(result['ratio'])}.",
        f"![four pictures filled in seven times from a checkerboard, then from their upper half]({folder}/"
        f"{result['experiment']}.png)",
        "Relative change of the conditioning of masked tokens when one more token becomes known:",
        "\n".join(lines),
    ]


def write_page(folder: Path, target: Path) -> None:
    gate = load(folder, "gate")
    passed, parts = verdict(gate) if gate else (False, ["Not run yet."])
    caution = (
        "The gate is passed: what is called clear below is this model's opinion."
        if passed
        else "**The gate is not passed: nothing on this page ranks methods.** The tables are shown for what they "
        "are, figures of a weak judge."
        if gate
        else "**Until it is, nothing on this page ranks methods.**"
    )
    blocks = [
        "# Quality, judged by the demo model",
        "No published weights were used. The judge is the demo model of this repository "
        "([model card](../demo/MODEL_CARD.md)): a small MAR that knows a small synthetic world. Figures come "
        "from the features of a classifier trained on the same world. Guidance is off. ± is the half width of "
        "Student's 95 % interval over seeds; differences are over the same seeds, labels and noise; one inside "
        "its interval is called noise.",
        "Backgrounds are woven: every row and every column of tokens has a thread or none, 32 choices that a few "
        "tokens cannot settle, and the classifier has learned to see threads that break off. That is meant to "
        "make it matter how many tokens are drawn at once. Earlier versions of this world could not tell 18 "
        "random steps from 64: in the first, the first few tokens decided all the others; in the second, "
        "backgrounds were soft and the VAE's decoder smoothed whatever did not fit (it is trained on mixed "
        "tokens now, to leave contradictions visible). Threads join far tokens as well as neighbours: the "
        "paper's assumption, that far tokens hardly depend on each other, is not built in.",
        "## The gate",
        GATE,
        "\n".join(parts),
        caution,
        *section("Gate", gate, folder.name, "")[2:],
        *section(
            "Order at equal steps",
            load(folder, "orders"),
            folder.name,
            "18 AR steps of 50 diffusion steps each; only the order differs, and with it the tokens per "
            "step: cosine for one stage (the first step decodes one token), even within a stage of GtR (6 "
            "tokens in the first step with 3 stages, 2 with 5). The paper finds raster << subsample < "
            "random < GtR.",
        ),
        *section(
            "Quality against FLOPs",
            load(folder, "budgets"),
            folder.name,
            "One line per family of methods, both decoder scopes of GtR; the paper's claim is marked.",
        ),
        *section(
            "Partition and decoder scope",
            load(folder, "defaults"),
            folder.name,
            "gtr-full's steps with both partitions and both decoder scopes, on twice as many seeds.",
        ),
        *decision(*(load(folder, name) for name in ("orders", "budgets", "defaults"))),
        *section(
            "FTS",
            load(folder, "fts"),
            folder.name,
            "On a GtR schedule with 8 diffusion steps in the reconstruction stage.",
        ),
        *(
            [
                f"Where the extra steps go (`python -m demo.experiments heat`):\n\n![pictures, and below them the "
                f"tokens that FTS gave extra diffusion steps]({folder.name}/heat.png)\n\nIn these pictures most of "
                "them lie on the lower and right borders, few in textures."
            ]
            if (folder / "heat.png").exists()
            else []
        ),
        *section(
            "Guidance",
            load(folder, "guidance"),
            folder.name,
            "gtr-full with classifier-free guidance, from the first step on or later. Speed-up against the "
            "origin with (or without) guidance throughout.",
        ),
        "## Search",
        "Random schedules of a cost (FLOPs of MAR-H), the better third of them measured again on "
        "twice the pictures, and so on; the winner against the paper's preset on seeds never seen. Guidance is "
        "left out of the space, as it does not help this model (`--guidance` and `--guidance-starts` add it).",
        *(searched(load(folder, "search-4x")) + searched(load(folder, "search-6x")) or ["Not run yet."]),
        *section(
            "What the search found, as presets",
            load(folder, "best"),
            folder.name,
            "On seeds that the search has not seen. FLOPs of MAR-H, with guidance and FTS off everywhere.",
        ),
        *winners(load(folder, "best")),
        *observations(load(folder, "observations"), folder.name),
    ]
    runs.replace_file(target, lambda part: part.write_text("\n\n".join(block for block in blocks if block) + "\n"))


def _interval(found: dict) -> str:
    return str(Interval(found["mean"], found["half"], found["n"]))
