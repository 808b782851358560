"""The tokenizer of Qwen2.5, for prompts: its files as they are published, run by the package ``tokenizers``."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import GtRError, first_line

VOCABULARY, MERGES, CONFIG = "vocab.json", "merges.txt", "tokenizer_config.json"
# Where Qwen2.5 cuts a text before the pairs of its bytes are merged.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REMEDY = "give the folder of Qwen2.5's tokenizer, such as comfy/text_encoders/qwen25_tokenizer of a ComfyUI"


def load_tokenizer(folder: str | os.PathLike) -> Callable[[str], list[int]]:
    """What makes ids of a text, special tokens included, from vocab.json, merges.txt and tokenizer_config.json.

    Raises GtRError.
    """
    folder = Path(folder)
    missing = [name for name in (VOCABULARY, MERGES, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise GtRError(f"no tokenizer at {folder}: {' and '.join(missing)} are missing; {REMEDY}")
    try:
        vocabulary, merges, added = _read(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise GtRError(f"the tokenizer at {folder} cannot be read ({first_line(error)}): {REMEDY}") from error
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = library.normalizers.NFC()
    pieces = library.pre_tokenizers.Split(library.Regex(PIECES), "isolated")
    letters = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([pieces, letters])
    for text, special in added:
        tokenizer.add_tokens([library.AddedToken(text, normalized=False, special=special)])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def _read(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], list[tuple[str, bool]]]:
    """Tokens and their ids, pairs to merge in order, and the tokens added behind, with whether they are special. Raises
    ValueError where they do not fit each other."""
    vocabulary = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    odd = next((pair for pair in merges if len(pair) != 2 or "".join(pair) not in vocabulary), None)
    if odd is not None:
        raise ValueError(f"{VOCABULARY} has no token for the pair {' '.join(odd)}")
    added = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["added_tokens_decoder"]
    numbers = sorted(map(int, added))
    if numbers != list(range(len(vocabulary), len(vocabulary) + len(added))):
        raise ValueError(f"the added tokens of {CONFIG} do not follow those of {VOCABULARY}")
    return vocabulary, merges, [(added[str(n)]["content"], added[str(n)]["special"]) for n in numbers]


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise GtRError(
            f"reading prompts needs the package tokenizers ({first_line(error)}): pip install tokenizers (the extra "
            "'prompts')"
        ) from error
