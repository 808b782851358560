"""What shapes cannot tell about a model travels in the safetensors metadata, as the JSON of its spec."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict

from .errors import GtRError
from .infer import Shapes, block_depths, infer_lightgen_spec, infer_mar_spec, is_lightgen
from .partition import LONGEST_SIDE
from .spec import DiffusionSpec, LatentSpec, ModelSpec

SPEC_KEY = "gtr.spec"
WEIGHTS_KEY = "gtr.weights"
LARGEST, LARGEST_PATCH, LONGEST_TEXT = 2**24, 64, 65_536
_CARRIED = ("name", "grid", "heads", "latent", "diffusion", "norm_eps", "class_names", "text_length")


def spec_metadata(spec: ModelSpec, weights: str) -> dict[str, str]:
    """Metadata of a safetensors file: the spec's fields that shapes do not give, and which weights it holds.

    ``weights`` is ``ema``, ``model`` (not averaged) or ``unknown``.
    """
    fields = asdict(spec)
    return {"format": "pt", WEIGHTS_KEY: weights, SPEC_KEY: json.dumps(
        {key: fields[key] for key in _CARRIED if key in fields} | {"depths": block_depths(spec)})}


def read_spec(shapes: Shapes, metadata: Mapping[str, str] | None = None, *, heads: int | None = None) -> ModelSpec:
    """The spec of a MAR or LightGen state dict: inferred from shapes, completed by metadata where there is some.

    Raises GtRError when the metadata is not what :func:`spec_metadata` writes or does not fit the shapes.
    """
    overrides = _overrides((metadata or {}).get(SPEC_KEY))
    stored_heads = overrides.pop("heads", None)
    infer = infer_lightgen_spec if is_lightgen(shapes) else infer_mar_spec
    try:
        return infer(shapes, heads=heads or stored_heads, **overrides)
    except TypeError as error:
        raise GtRError(
            f"metadata '{SPEC_KEY}' does not fit the model ({error}): convert the original file again"
        ) from error


def _overrides(text: str | None) -> dict:
    if text is None:
        return {}
    try:
        fields = json.loads(text)
        unknown = set(fields) - set(_PARSERS)
        if unknown:
            raise GtRError(f"metadata '{SPEC_KEY}' has unknown fields {sorted(unknown)}: update the pack")
        return {key: _PARSERS[key](value) for key, value in fields.items()}
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, GtRError):
            raise
        raise GtRError(f"metadata '{SPEC_KEY}' cannot be read ({error}): convert the original file again") from error


def _latent(fields: Mapping) -> LatentSpec:
    rgb = fields.get("rgb")
    latent = LatentSpec(channels=_count(fields["channels"]), stride=_count(fields["stride"], LARGEST_PATCH),
                        patch=_count(fields["patch"], LARGEST_PATCH), scale=_finite(fields["scale"]),
                        shift=_finite(fields["shift"]),
                        rgb=None if rgb is None else tuple(tuple(_finite(x) for x in row) for row in rgb))
    if latent.scale == 0:
        raise ValueError("latent scale is 0")
    if latent.rgb is not None and ({len(row) for row in latent.rgb} != {3} or len(latent.rgb) != latent.channels + 1):
        raise ValueError(f"rgb needs {latent.channels} + 1 rows of 3")
    return latent


def _diffusion(fields: Mapping) -> DiffusionSpec:
    clip = fields.get("max_timestep")
    spec = DiffusionSpec(base_steps=_count(fields["base_steps"]), beta_cap=_finite(fields["beta_cap"]),
                         max_timestep=None if clip is None else _count(clip))
    if not 0 < spec.beta_cap < 1 or spec.base_steps > 100_000:
        raise ValueError(f"beta cap {spec.beta_cap} or base steps {spec.base_steps} out of range")
    return spec


def _count(value, most: int = LARGEST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a positive whole number")
    if value > most:
        raise ValueError(f"a number above {most}")
    return value


def _finite(value) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _positive(value) -> float:
    number = _finite(value)
    if number <= 0:
        raise ValueError(f"{number} is not above 0")
    return number


def _name(value) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 100:
        raise ValueError("a name is not one printable line")
    return value


def _grid(value) -> tuple[int, int]:
    rows, columns = value
    return _count(rows, LONGEST_SIDE), _count(columns, LONGEST_SIDE)


_PARSERS = {"name": _name, "grid": _grid, "heads": _count, "latent": _latent, "diffusion": _diffusion,
            "norm_eps": _positive, "class_names": lambda names: tuple(map(_name, names)),
            "text_length": lambda length: _count(length, LONGEST_TEXT),
            "depths": lambda depths: tuple(map(_count, depths))}
