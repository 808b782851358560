"""The tokenizer that ComfyUI ships for its own Qwen2.5 text encoders."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import comfy.sd

from ..gtr_core.checkpoints.tokenizer import load_tokenizer


@lru_cache(maxsize=1)
def qwen_tokenizer() -> Callable[[str], list[int]]:
    """What makes ids of a text. The host's class is not used: it reads weights and embeddings out of prompts, which
    changes their ids. Raises GtRError."""
    return load_tokenizer(Path(comfy.sd.__file__).parent / "text_encoders" / "qwen25_tokenizer")
