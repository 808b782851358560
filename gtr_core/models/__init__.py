"""The model families behind one door."""

from __future__ import annotations

from .lightgen import LightGen, LightGenSpec
from .mar import MAR, MARSpec

ModelSpec = MARSpec | LightGenSpec
Model = MAR | LightGen


def build(spec: ModelSpec, **factory) -> Model:
    """The model of a spec; ``factory`` are the constructor's operations, attention, device and dtype."""
    return LightGen(spec, **factory) if isinstance(spec, LightGenSpec) else MAR(spec, **factory)
