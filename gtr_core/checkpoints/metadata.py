"""What shapes cannot tell about a model travels in the safetensors metadata, as the JSON of its spec."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..diffusion.chain import DiffusionSpec
from ..errors import GtRError
from ..models import ModelSpec, infer_spec, recognise, recognise_autoencoder
from ..models.autoencoder import AutoencoderSpec
from ..models.latents import DETOK, KL, KL_NORMALISED, NAMED, LatentSpec, latent_named
from ..models.shapes import Shapes, describe_names, shape_of
from ..models.spec import Traces

SPEC_KEY = "gtr.spec"
WEIGHTS_KEY = "gtr.weights"
LARGEST, LARGEST_PATCH, LONGEST_TEXT, LONGEST_GRID = 2**24, 64, 65_536, 256
LONGEST_REMARK = 500
KINDS = (KL, KL_NORMALISED, DETOK)
REMEDY = "convert the original file again"


def spec_metadata(spec: ModelSpec, weights: str) -> dict[str, str]:
    """Metadata of a safetensors file: the spec's fields that shapes do not give, and which weights it holds.

    ``weights`` is ``ema``, ``model`` (not averaged) or ``unknown``.
    """
    fields = asdict(spec)
    stored = {key: fields[key] for key in spec.stored} | {"depths": spec.depths}
    return {"format": "pt", WEIGHTS_KEY: weights, SPEC_KEY: json.dumps(stored)}


@dataclass(frozen=True)
class Told:
    """What somebody says of a model that its file does not tell: attention ``heads``, ``grid`` (rows, columns),
    ``patch``, ``vae_stride``, ``class_names``, and ``latent``: a name or SCALE or SCALE,SHIFT."""

    heads: int | None = None
    grid: tuple[int, int] | None = None
    patch: int | None = None
    vae_stride: int | None = None
    class_names: Sequence[str] | None = None
    latent: str | None = None


def read_spec(
    shapes: Shapes, metadata: Mapping[str, str] | None = None, traces: Traces = Traces(), **told: Any
) -> ModelSpec:
    """The spec of a model's state dict: inferred from shapes, completed by metadata, by other ``traces`` in the file
    and by what is ``told`` (the fields of :class:`Told`).

    Raises GtRError when the metadata is not what :func:`spec_metadata` writes, or something does not fit the shapes.
    """
    said, family = Told(**told), recognise(shapes)
    stored = {} if family is None else _stored(metadata, _PARSERS | dict(family.parsers))
    if family is not None:
        given = {
            "grid": ("--grid", said.grid and _checked(_grid, said.grid, "--grid")),
            "class_names": (
                "--class-names",
                said.class_names and _checked(parse_names, said.class_names, "--class-names"),
            ),
        }
        stored |= {field: value for field, (_, value) in given.items() if value}
        if (said.latent, said.patch, said.vae_stride) != (None, None, None):
            usual = family.spec.latent if family.latent_of is None else None
            stored["latent"] = _told_latent(shapes, said, stored.get("latent") or usual, traces)
        elif "latent" not in stored and family.latent_of is not None:
            stored["latent"] = family.latent_of(shapes, traces)
        strange = next((option for f, (option, value) in given.items() if value and f not in family.spec.stored), None)
        if strange is not None:
            raise GtRError(f"{family.name} models have nothing that {strange} sets: leave it out")
    return infer_spec(shapes, stored, heads=said.heads)


def _checked(parse: Callable, value: Any, option: str) -> Any:
    try:
        return parse(value)
    except (TypeError, ValueError) as error:
        raise GtRError(f"{option}: {error}") from error


def _told_latent(shapes: Shapes, said: Told, stored: LatentSpec | None, traces: Traces) -> LatentSpec:
    """The latent whose patches make the head's tokens; patch and stride may lie among the training's arguments."""
    latent = None if stored is None or stored.assumed else stored
    if said.latent is not None:
        try:
            latent = latent_named(said.latent)
        except ValueError as error:
            names = ", ".join(NAMED)
            raise GtRError(f"--latent '{said.latent}': expected {names}, SCALE or SCALE,SHIFT") from error
    if latent is None:
        raise GtRError(
            "--patch and --vae-stride say that the latents are not KL-16's: say what they are with --latent normalised "
            "(a VAE converted with --stats), or --latent SCALE or SCALE,SHIFT"
        )
    known = traces.arguments
    patch = known.get("patch_size", latent.patch) if said.patch is None else said.patch
    stride = known.get("vae_stride", latent.stride) if said.vae_stride is None else said.vae_stride
    for option, value in (("--patch", patch), ("--vae-stride", stride)):
        _checked(lambda given: parse_count(given, LARGEST_PATCH), value, option)
    values = shape_of(shapes, "diffloss.net.input_proj.weight", 2)[1]
    if values % patch**2:
        raise GtRError(
            f"tokens have {values} values, which patches of {patch} x {patch} do not divide: correct --patch"
        )
    changed = replace(latent, patch=patch, stride=stride, channels=values // patch**2)
    fixed = said.latent in ("kl-16", "detok")
    if fixed and changed != latent:
        raise GtRError(
            f"--latent {said.latent}: such tokens have {latent.channels} values, one latent cell of {latent.stride} "
            f"pixels; these have {values}, {patch} x {patch} cells of {stride} pixels: correct --latent"
        )
    return replace(changed, rgb=latent.rgb if changed.channels == latent.channels else None)


def vae_metadata(spec: AutoencoderSpec) -> dict[str, str]:
    """Metadata of a VAE's or tokenizer's file: what shapes do not give."""
    return {"format": "pt", SPEC_KEY: json.dumps({name: getattr(spec, name) for name in spec.stored})}


def read_vae_spec(
    shapes: Shapes, metadata: Mapping[str, str] | None = None, heads: int | None = None
) -> AutoencoderSpec:
    """The spec of a VAE's or tokenizer's state dict: inferred from shapes, completed by its metadata and by attention
    ``heads``. Raises GtRError."""
    family = recognise_autoencoder(shapes)
    if family is None:
        other = recognise(shapes)
        found = describe_names(shapes) if other is None else f"a {other.name} model"
        raise GtRError(
            f"not a KL VAE in LDM layout nor an l-DeTok tokenizer: found {found}; choose the model's VAE file"
        )
    parsers = _PARSERS | {"groups": parse_count, "normalised": _flag}
    stored = _stored(metadata, parsers | ({"heads": _pair} if "heads" in family.spec.stored else {}))
    surplus = set(stored) - set(family.spec.stored)
    if surplus:
        raise GtRError(
            f"metadata '{SPEC_KEY}' does not fit a VAE of the kind {family.spec.family} (it has "
            f"{', '.join(sorted(surplus))}): {REMEDY}"
        )
    if heads is not None and "heads" in family.spec.stored:
        stored["heads"] = (heads, heads)
    return family.infer(shapes, **stored)


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
        kind=fields.get("kind", KL),
        assumed=parse_name(fields.get("assumed", ""), LONGEST_REMARK),
    )
    if latent.kind not in KINDS:
        raise ValueError(f"latents of an unknown kind, {latent.kind!r}")
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


def parse_name(value, longest: int = 100) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > longest:
        raise ValueError("a name is not one printable line")
    return value


def parse_names(values: Iterable) -> tuple[str, ...]:
    return tuple(map(parse_name, values))


def _pair(value) -> tuple[int, int]:
    first, second = value
    return parse_count(first), parse_count(second)


def _flag(value) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


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
