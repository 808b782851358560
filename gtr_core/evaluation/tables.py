"""From measured images to a table: figures per seed, their intervals, and differences over the same seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import torch

from ..errors import GtRError
from . import metrics
from .features import ImageFeatures
from .metrics import Interval, interval, paired

# Figure -> (heading, whether less is better).
FIGURES = {
    "frechet": ("Frechet distance", True),
    "kernel": ("kernel distance", True),
    "accuracy": ("class accuracy", False),
    "inception": ("inception score", False),
    "precision": ("precision", False),
    "recall": ("recall", False),
    "spectrum": ("spectrum distance", True),
    "confidence": ("factor confidence", False),
    "coherence": ("coherence", False),
    "fid": ("FID", True),
    "is": ("IS", False),
}
FLOOR = "real images"
Figures = dict[str, float]


def figures(made: ImageFeatures, real: ImageFeatures, seed: int = 0) -> Figures:
    """All default figures of one set of images against the reference.

    Precision and recall take as many real images as there are made ones, chosen by ``seed``.
    """
    equal = real.take(real.balanced(len(made), seed))
    precision, recall = metrics.precision_recall(equal.features, made.features)
    values = {
        "frechet": metrics.frechet(made.features, real.features),
        "kernel": metrics.kernel_distance(made.features, real.features),
        "accuracy": metrics.accuracy(made.scores, made.labels),
        "inception": metrics.inception_score(made.scores),
        "precision": precision,
        "recall": recall,
        "spectrum": metrics.spectrum_distance(made.spectra, made.labels, real.spectra, real.labels),
    }
    shares = {"confidence": made.confidence, "coherence": made.coherent}
    return values | {name: float(share.double().mean()) for name, share in shares.items() if share.shape[1]}


def floor_sets(real: ImageFeatures, count: int, seeds: Sequence[int]) -> Iterator[tuple[ImageFeatures, ImageFeatures]]:
    """Per seed ``count`` real images, no two seeds share one, and all the others. Raises GtRError for too few."""
    free = torch.ones(len(real), dtype=torch.bool)
    for seed in seeds:
        rows = free.nonzero()[:, 0]
        own = rows[real.take(rows).balanced(count, seed)]
        free[own] = False
        others = torch.ones(len(real), dtype=torch.bool)
        others[own] = False
        yield real.take(own), real.take(others)


class Measures(Protocol):
    """What turns measured images into figures."""

    def figures(self, made: ImageFeatures, seed: int) -> Figures:
        """Of one set of images, that of a seed."""

    def floor(self, seeds: Sequence[int]) -> dict:
        """What a result says about real images: the row ``floor``, or why there is none; nothing."""


@dataclass(frozen=True, eq=False)
class AgainstReal:
    """The project's own figures, against ``real`` images, of sets of ``images`` each."""

    real: ImageFeatures
    images: int

    def __post_init__(self) -> None:
        self.real.balanced(self.images, 0)  # refuses more images than the reference can be compared with

    def figures(self, made: ImageFeatures, seed: int) -> Figures:
        return figures(made, self.real, seed)

    def floor(self, seeds: Sequence[int]) -> dict:
        """Real images against other real images: what a perfect model would get."""
        try:
            pairs = floor_sets(self.real, self.images, seeds)
            values = [figures(some, others, seed) for (some, others), seed in zip(pairs, seeds)]
        except GtRError as error:
            return {"floor_missing": str(error)}
        return {"floor": row(FLOOR, self.images, values)}


def row(name: str, images: int, values: Sequence[Figures], first: Sequence[Figures] | None = None, **facts) -> dict:
    """A line of the result as plain data: ``values`` has one entry per seed.

    With the figures of the ``first`` method, the differences to it over the same seeds are added.
    """
    per_figure = {key: [value[key] for value in values] for key in values[0]}
    result = {
        "method": name,
        "images": images,
        "seeds": len(values),
        **facts,
        "values": per_figure,
        "figures": {key: asdict(interval(series)) for key, series in per_figure.items()},
    }
    if first is not None:
        result["difference"] = {
            key: _difference(paired(series, [value[key] for value in first])) for key, series in per_figure.items()
        }
    return result


def rows(
    measured: Mapping[str, Sequence[ImageFeatures]], seeds: Sequence[int], measures: Measures, facts: Mapping[str, dict]
) -> list[dict]:
    """A row per method; ``facts`` are what else a row says."""
    values = {
        name: [measures.figures(made, seed) for made, seed in zip(sets, seeds)] for name, sets in measured.items()
    }
    first = next(iter(values))
    return [
        row(name, len(measured[name][0]), own, None if name == first else values[first], **facts.get(name, {}))
        for name, own in values.items()
    ]


def markdown(result: dict) -> str:
    """The rows as a table, and below it the differences to the first method."""
    keys = list(result["rows"][0]["figures"])
    head = ["method", "n", "speed-up ↑", *(f"{FIGURES[key][0]} {'↓' if FIGURES[key][1] else '↑'}" for key in keys)]
    lines = [head, ["---"] * len(head)]
    for own in [*result["rows"], *([result["floor"]] if "floor" in result else [])]:
        speedup = f"{own['speedup']:.2f}×" if "speedup" in own else ""
        lines.append(
            [
                own["method"],
                f"{own['seeds']} × {own['images']}",
                speedup,
                *(str(Interval(**own["figures"][key])) if key in own["figures"] else "" for key in keys),
            ]
        )
    compared = [own for own in result["rows"] if "difference" in own]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if not compared:
        return text
    head = ["difference", *(FIGURES[key][0] for key in keys)]
    lines = [head, ["---"] * len(head)]
    lines += [
        [f"{own['method']} - {result['rows'][0]['method']}", *(_cell(own["difference"][key]) for key in keys)]
        for own in compared
    ]
    return text + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _difference(found: Interval) -> dict:
    return asdict(found) | {"clear": found.clear}


def _cell(difference: dict) -> str:
    found = Interval(difference["mean"], difference["half"], difference["n"])
    return f"{found}{'' if found.clear else ' (noise)' if found.half is not None else ' (one seed)'}"
