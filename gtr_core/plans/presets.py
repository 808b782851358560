"""Schedules by name."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import GtRError, nearest
from .schedule import Schedule

PRESETS: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule("origin", "random", (64,), diffusion=(100, 100, 100), note="MAR's own: cosine, 64 AR steps"),
        Schedule("step-16", "random", (16,), diffusion=(100, 100, 100), note="the origin in 16 AR steps"),
        Schedule("step-8", "random", (8,), diffusion=(100, 100, 100), note="the origin in 8 AR steps"),
        Schedule("halton-16", "halton", (16,), diffusion=(100, 100, 100), note="Halton order, 16 AR steps"),
        Schedule("halton-8", "halton", (8,), diffusion=(100, 100, 100), note="Halton order, 8 AR steps"),
        Schedule(
            "disa-24",
            "random",
            (24,),
            diffusion=(50, 5, 5),
            profile="disa-linear",
            max_timestep=950,
            note="DiSA: 24 AR steps, 50 to 5 diffusion steps",
        ),
        Schedule(
            "disa-16",
            "random",
            (16,),
            diffusion=(50, 5, 5),
            profile="disa-linear",
            max_timestep=950,
            note="DiSA: 16 AR steps, 50 to 5 diffusion steps",
        ),
        Schedule("gtr-paper", "gtr", (24, 6, 2), decoder_scope="stage", note="the paper's printed rates"),
        Schedule("gtr-full", "gtr", (10, 6, 2), note="fits the paper's FLOPs with the full decoder"),
        Schedule("gtr-extreme", "gtr", (8, 3, 2), decoder_scope="stage", note="about the paper's extreme setting"),
        Schedule(
            "gtr-best-4x",
            "gtr",
            (12, 1, 1, 2, 2),
            diffusion=(25, 15, 25),
            note="found by a search at 4 x on an earlier demo model",
        ),
        Schedule(
            "gtr-best-6x",
            "gtr",
            (8, 2, 2, 3, 2),
            diffusion=(75, 15, 15),
            decoder_scope="stage",
            note="found by a search at 6 x on an earlier demo model",
        ),
        Schedule(
            "lightgen-origin",
            "random",
            (32,),
            diffusion=(50, 50, 50),
            note="the paper's baseline: 32 AR, 50 diffusion steps",
        ),
        Schedule(
            "gtr-lightgen", "gtr", (10, 6, 4, 2), decoder_scope="stage", note="for 1024 tokens, fits the paper's 3.3 x"
        ),
        Schedule("gtr-lightgen-fast", "gtr", (12, 4, 2, 2), decoder_scope="stage", note="for 1024 tokens, fits 3.8 x"),
        Schedule(
            "harmon-origin", "random", (64,), diffusion=(100, 100, 100), note="Harmon's: 64 AR, 100 diffusion steps"
        ),
        Schedule("gtr-harmon", "gtr", (12, 6, 4, 2), decoder_scope="stage", note="for 1024 tokens, about 5.2 x"),
        Schedule("gtr-harmon-fast", "gtr", (12, 4, 2, 2), decoder_scope="stage", note="for 1024 tokens, about 6.4 x"),
        Schedule(
            "unipic-origin", "random", (32,), diffusion=(100, 100, 100), note="UniPic's: 32 AR, 100 diffusion steps"
        ),
        Schedule("gtr-unipic", "gtr", (12, 6, 4, 3, 2), decoder_scope="stage", note="for 4096 tokens, about 3.9 x"),
        Schedule("gtr-unipic-fast", "gtr", (8, 4, 3, 2, 1), decoder_scope="stage", note="for 4096 tokens, about 5.6 x"),
    )
}


def preset(name: str, others: Sequence[str] = ()) -> Schedule:
    """A preset by name. Names are part of shared workflows: they never change meaning.

    Raises GtRError, which also names the ``others`` that the caller knows.
    """
    if name not in PRESETS:
        known = (*PRESETS, *others)
        near = "".join(f"the nearest is {other}; " for other in nearest(name, known, 1))
        raise GtRError(f"unknown preset '{name}': {near}expected one of {', '.join(known)}")
    return PRESETS[name]
