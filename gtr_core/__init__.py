"""Masked autoregressive image models and GtR sampling on plain PyTorch.

    import gtr_core as gtr
    model  = gtr.load_model("mar-base-ema.pth", device="cuda", dtype="bfloat16")
    vae    = gtr.load_vae("kl16.safetensors", device="cuda")
    method = gtr.Method(gtr.preset("gtr-paper"), guidance=gtr.Guidance(3.0), fts=gtr.FTS())
    images = gtr.generate(model, vae, labels=[207, 360], method=method, seed=0)  # (2, 256, 256, 3) uint8

Names are imported when they are first used: importing this package costs nothing and does not need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints import load_model, load_vae
    from .checkpoints.convert import convert
    from .checkpoints.tokenizer import load_tokenizer
    from .demo import DEMO_MAR, DEMO_VAE
    from .device import Runtime
    from .errors import GtRError
    from .pipeline import generate
    from .plans.fts import FTS
    from .plans.method import Guidance, Method
    from .plans.plan import make_plan
    from .plans.presets import preset
    from .plans.schedule import Schedule
    from .sampling.lazymar import LazyMAR
    from .sampling.recap import ReCAP
    from .sampling.sampler import sample

_HOMES = {
    "load_model": "checkpoints",
    "load_vae": "checkpoints",
    "convert": "checkpoints.convert",
    "load_tokenizer": "checkpoints.tokenizer",
    "DEMO_MAR": "demo",
    "DEMO_VAE": "demo",
    "Runtime": "device",
    "GtRError": "errors",
    "generate": "pipeline",
    "FTS": "plans.fts",
    "Guidance": "plans.method",
    "Method": "plans.method",
    "make_plan": "plans.plan",
    "preset": "plans.presets",
    "Schedule": "plans.schedule",
    "LazyMAR": "sampling.lazymar",
    "ReCAP": "sampling.recap",
    "sample": "sampling.sampler",
}

__all__ = [
    "DEMO_MAR",
    "DEMO_VAE",
    "FTS",
    "GtRError",
    "Guidance",
    "LazyMAR",
    "Method",
    "ReCAP",
    "Runtime",
    "Schedule",
    "convert",
    "generate",
    "load_model",
    "load_tokenizer",
    "load_vae",
    "make_plan",
    "preset",
    "sample",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
