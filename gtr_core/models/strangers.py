"""Files that look like a model of this library, or nearly, and are another: called by their name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stranger:
    """What a file is, ``tells``: ends of names that together only such a file has, and what to do."""

    what: str
    tells: tuple[str, ...]
    remedy: str


STRANGERS = (
    Stranger(
        "a Hi-MAR model, which draws in two scales and is not supported",
        ("cond_z_proj.weight", "encoder_task_emb.weight"),
        "choose a MAR file",
    ),
    Stranger(
        "a MAETok or SoftVQ tokenizer, whose latents lie in one row and make no grid; it is not supported",
        ("encoder.latent_tokens", "decoder.latent_pos_embed"),
        "choose the KL-16 VAE or the l-DeTok tokenizer",
    ),
)


def stranger_of(names: Iterable[str]) -> Stranger | None:
    """Which one has these names, behind any prefix; None for what may be ours."""
    names = tuple(names)
    return next((s for s in STRANGERS if all(any(name.endswith(tell) for name in names) for tell in s.tells)), None)
