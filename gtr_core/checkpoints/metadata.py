"""What shapes cannot tell about a model travels in the safetensors metadata, as the JSON of its spec."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..diffusion.chain import DiffusionSpec
from ..errors import GtRError
from ..models import ModelSpec, infer_spec, recognise
from ..models.latents import LatentSpec
from ..models.shapes import Shapes, shape_of
from ..models.vae import VAESpec, infer_vae_spec, is_vae

SPEC_KEY = "gtr.spec"
WEIGHTS_KEY = "gtr.weights"
LARGEST, LARGEST_PATCH, LONGEST_TEXT, LONGEST_GRID = 2**24, 64, 65_536, 256
REMEDY = "convert the original file again"


def spec_metadata(spec: ModelSpec, weights: str) -> dict[str, str]:
    """Metadata of a safetensors file: the spec's fields that shapes do not give, and which weights it holds.

    ``weights`` is ``ema``, ``model`` (not averaged) or ``unknown``.
    """
    fields = asdict(spec)
    stored = {key: fields[key] for key in spec.stored} | {"depths": spec.depths}
    return {"format": "pt", WEIGHTS_KEY: weights, SPEC_KEY: json.dumps(stored)}


def read_spec(
    shapes: Shapes,
    metadata: Mapping[str, str] | None = None,
    *,
    heads: int | None = None,
    grid: tuple[int, int] | None = None,
    patch: int | None = None,
    vae_stride: int | None = None,
    class_names: Sequence[str] | None = None,
) -> ModelSpec:
    """The spec of a model's state dict: inferred from shapes, completed by metadata and by what is given.

    Raises GtRError when the metadata is not what :func:`spec_metadata` writes, or something does not fit the shapes.
    """
    family = recognise(shapes)
    stored = {} if family is None else _stored(metadata, _PARSERS | dict(family.parsers))
    if family is not None:
        given = {
            "grid": ("--grid", grid and _checked(_grid, grid, "--grid")),
            "class_names": ("--class-names", class_names and _checked(parse_names, class_names, "--class-names")),
        }
        if patch is not None or vae_stride is not None:
            stored["latent"] = _latent_of(shapes, stored.get("latent") or family.spec.latent, patch, vae_stride)
        stored |= {field: value for field, (_, value) in given.items() if value}
        strange = next((option for f, (option, value) in given.items() if value and f not in family.spec.stored), None)
        if strange is not None:
            raise GtRError(f"{family.name} models have nothing that {strange} sets: leave it out")
    return infer_spec(shapes, stored, heads=heads)


def _checked(parse: Callable, value: Any, option: str) -> Any:
    try:
        return parse(value)
    except (TypeError, ValueError) as error:
        raise GtRError(f"{option}: {error}") from error


def _latent_of(shapes: Shapes, latent: LatentSpec, patch: int | None, stride: int | None) -> LatentSpec:
    """The latent whose patches make the head's tokens."""
    patch, stride = latent.patch if patch is None else patch, latent.stride if stride is None else stride
    for option, value in (("--patch", patch), ("--vae-stride", stride)):
        _checked(lambda given: parse_count(given, LARGEST_PATCH), value, option)
    values = shape_of(shapes, "diffloss.net.input_proj.weight", 2)[1]
    if values % patch**2:
        raise GtRError(
            f"tokens have {values} values, which patches of {patch} x {patch} do not divide: correct --patch"
        )
    changed = replace(latent, patch=patch, stride=stride, channels=values // patch**2)
    return replace(changed, rgb=latent.rgb if changed.channels == latent.channels else None)


def vae_metadata(spec: VAESpec) -> dict[str, str]:
    """Metadata of a VAE file: the number of norm groups, which shapes do not give."""
    return {"format": "pt", SPEC_KEY: json.dumps({"groups": spec.groups})}


def read_vae_spec(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> VAESpec:
    """The spec of a KL VAE state dict: inferred from shapes, with the groups of its metadata. Raises GtRError."""
    stored = _stored(metadata, _PARSERS | {"groups": parse_count}) if is_vae(shapes) else {}
    surplus = set(stored) - {"groups"}
    if surplus:
        raise GtRError(f"metadata '{SPEC_KEY}' does not fit a VAE (it has {', '.join(sorted(surplus))}): {REMEDY}")
    return infer_vae_spec(shapes, **stored)


def _stored(metadata: Mapping[str, str] | None, parsers: Mapping[str, Callable]) -> dict:
    text = (metadata or {}).get(SPEC_KEY)
    return {} if text is None else read_fields(text, SPEC_KEY, parsers, REMEDY)


def read_fields(text: str, key: str, parsers: Mapping[str, Callable], remedy: str) -> dict:
    """The checked fields of the JSON object stored under metadata ``key``. Raises GtRError, ending in ``remedy``."""
    try:
        fields = json.loads(text)
        unknown = set(fields) - set(parsers)
        if unknown:
            raise GtRError(f"metadata '{key}' has unknown fields {sorted(unknown)}: update the pack")
        return {name: parsers[name](value) for name, value in fields.items()}
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, GtRError):
            raise
        raise GtRError(f"metadata '{key}' cannot be read ({error}): {remedy}") from error


def _latent(fields: Mapping) -> LatentSpec:
    rgb = fields.get("rgb")
    latent = LatentSpec(
        channels=parse_count(fields["channels"]),
        stride=parse_count(fields["stride"], LARGEST_PATCH),
        patch=parse_count(fields["patch"], LARGEST_PATCH),
        scale=parse_finite(fields["scale"]),
        shift=parse_finite(fields["shift"]),
        rgb=None if rgb is None else tuple(tuple(parse_finite(x) for x in row) for row in rgb),
    )
    if latent.scale == 0:
        raise ValueError("latent scale is 0")
    if latent.rgb is not None and ({len(row) for row in latent.rgb} != {3} or len(latent.rgb) != latent.channels + 1):
        raise ValueError(f"rgb needs {latent.channels} + 1 rows of 3")
    return latent


def _diffusion(fields: Mapping) -> DiffusionSpec:
    clip = fields.get("max_timestep")
    spec = DiffusionSpec(
        base_steps=parse_count(fields["base_steps"]),
        beta_cap=parse_finite(fields["beta_cap"]),
        max_timestep=None if clip is None else parse_count(clip),
    )
    if not 0 < spec.beta_cap < 1 or spec.base_steps > 100_000:
        raise ValueError(f"beta cap {spec.beta_cap} or base steps {spec.base_steps} out of range")
    return spec


def parse_count(value, most: int = LARGEST) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a positive whole number")
    if value > most:
        raise ValueError(f"a number above {most}")
    return value


def parse_finite(value) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _positive(value) -> float:
    number = parse_finite(value)
    if number <= 0:
        raise ValueError(f"{number} is not above 0")
    return number


def parse_name(value) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 100:
        raise ValueError("a name is not one printable line")
    return value


def parse_names(values: Iterable) -> tuple[str, ...]:
    return tuple(map(parse_name, values))


def _grid(value) -> tuple[int, int]:
    rows, columns = value
    return parse_count(rows, LONGEST_GRID), parse_count(columns, LONGEST_GRID)


_PARSERS = {
    "name": parse_name,
    "grid": _grid,
    "heads": parse_count,
    "latent": _latent,
    "diffusion": _diffusion,
    "norm_eps": _positive,
    "class_names": parse_names,
    "text_length": lambda length: parse_count(length, LONGEST_TEXT),
    "depths": lambda depths: tuple(map(parse_count, depths)),
}
