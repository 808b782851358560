"""The paper's Table 1 beside what the plans give."""

from __future__ import annotations

from ..models.mar import mar_spec
from ..plans.fts import FTS
from ..plans.method import Guidance, Method
from ..plans.presets import preset
from ..sampling.lazymar import LazyMAR
from .flops import count_method, origin_of

MODELS = ("mar-b", "mar-l", "mar-h")

# TFLOPs of the origins and speeds against them, as printed (arXiv 2510.17171, Table 1), for MAR-B, L and H.
ORIGIN_TFLOPS = (14.49, 32.75, 64.52)
SPEEDS = {
    "step-16": (2.33, 2.44, 2.38),
    "halton-16": (2.33, 2.44, 2.38),
    "disa-24": (3.01, 2.97, 2.99),
    "lazymar": (3.53, 3.50, 3.42),
    "gtr-paper": (3.74, 3.71, 3.72),
    "gtr-full": (3.74, 3.71, 3.72),
    "step-8": (2.99, 3.21, 3.09),
    "halton-8": (2.99, 3.21, 3.09),
    "disa-16": (4.19, 4.17, 4.18),
    "gtr-extreme": (6.33, 6.32, 6.28),
}
LIGHTGEN_SPEEDS = {"gtr-lightgen": 3.32, "gtr-lightgen-fast": 3.82}
NOTE = (
    "lazymar: 64 AR steps, the setting of its code, whose own page prints 2.80 x, 2.80 x and 2.83 x; the settings "
    "behind the numbers printed here are not known."
)


def compare() -> dict:
    """Rows of {preset, model, tflops, speedup, printed, deviation}."""
    rows = []
    for index, model in enumerate(MODELS):
        spec = mar_spec(model)
        origin = count_method(origin_of(spec), spec).total
        rows.append(_row("origin", model, origin, 1.0, ORIGIN_TFLOPS[index], origin / 1e12))
        for name, printed in SPEEDS.items():
            cache = LazyMAR() if name == "lazymar" else None
            schedule = preset("origin" if cache else name)
            own = count_method(Method(schedule, Guidance(3.0), FTS(), cache), spec).total
            rows.append(_row(name, model, own, origin / own, printed[index], origin / own))
    return {"convention": "2 FLOPs per multiply-add, attention counted, guidance doubled, no VAE", "rows": rows}


def markdown(table: dict) -> str:
    """One line per method, the models side by side: TFLOPs, speed, printed number and deviation from it."""
    lines = [
        "| method | " + " | ".join(f"{model}: TFLOPs, speed (printed, deviation)" for model in MODELS) + " |",
        "|---" * (len(MODELS) + 1) + "|",
    ]
    for name in ("origin", *SPEEDS):
        cells = [
            f"{row['tflops']:.2f}, {row['speedup']:.2f}× ({row['printed']:.2f}{' T' if name == 'origin' else '×'}, "
            f"{row['deviation']:+.1%})"
            for model in MODELS
            for row in table["rows"]
            if (row["preset"], row["model"]) == (name, model)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([table["convention"], "", *lines, "", NOTE])


def _row(name: str, model: str, flops: int, speedup: float, printed: float, ours: float) -> dict:
    return {
        "preset": name,
        "model": model,
        "tflops": flops / 1e12,
        "speedup": speedup,
        "printed": printed,
        "deviation": ours / printed - 1,
    }
