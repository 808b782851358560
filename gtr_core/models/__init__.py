"""The model families. A family is one file here and one entry in FAMILIES; nothing else asks which one a model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import GtRError
from .autoencoder import Autoencoder, AutoencoderFamily, AutoencoderSpec
from .detok import DETOK_FAMILY
from .harmon import HARMON_FAMILY
from .layers import Uninitialised, empty_parameter
from .lightgen import LIGHTGEN_FAMILY
from .mar import MAR_FAMILY
from .model import Model
from .shapes import Shapes, describe_names
from .spec import Family, ModelSpec
from .vae import VAE_FAMILY

FAMILIES: dict[str, Family] = {family.name: family for family in (MAR_FAMILY, LIGHTGEN_FAMILY, HARMON_FAMILY)}


# What is taken for a model of a family: a name in its files, and what it is.
NEIGHBOURS = {
    "model.layers.0.self_attn.q_proj.weight": "a language model alone: Harmon's own file holds it already",
    "transformer_blocks.0.attn.to_q.weight": "a diffusion transformer, such as UniPic 2 and 3, which is no masked "
    "autoregressive model: ComfyUI's own loaders are for those",
}

AUTOENCODERS: dict[str, AutoencoderFamily] = {family.spec.family: family for family in (VAE_FAMILY, DETOK_FAMILY)}


def build(spec: ModelSpec, *, operations=Uninitialised, **factory) -> Model:
    """The model of a spec, whose weights are still to be loaded: nothing is initialised. ``operations`` and
    ``factory`` are what the constructor takes, an attention, a device and a dtype."""
    return FAMILIES[spec.family].model(spec, operations=operations, **factory)


def recognise(shapes: Shapes) -> Family | None:
    """The family of a state dict; None for what is not a model."""
    return next((family for family in FAMILIES.values() if family.matches(shapes)), None)


def infer_spec(shapes: Shapes, stored: Mapping[str, Any], *, heads: int | None = None) -> ModelSpec:
    """The spec of a state dict, read off names and shapes and completed by fields ``stored`` in the file.

    Raises GtRError naming what does not fit.
    """
    family = recognise(shapes)
    neighbour = next((what for name, what in NEIGHBOURS.items() if name in shapes), None)
    if family is None and neighbour is not None:
        raise GtRError(f"not a model of {_families()} but {neighbour}; choose another file")
    if family is None:
        other = recognise_autoencoder(shapes)
        found = describe_names(shapes) if other is None else f"{other.spec.family}, which goes where a VAE does"
        raise GtRError(f"not a model: expected a checkpoint of {_families()}, found {found}; choose another file")
    surplus = set(stored) - {*family.spec.stored, "depths"}
    if surplus:
        raise GtRError(
            f"the metadata has {', '.join(sorted(surplus))}, which {family.name} has not: convert the "
            "original file again"
        )
    return family.infer(shapes, **{**stored, "heads": stored.get("heads") if heads is None else heads})


def build_autoencoder(spec: AutoencoderSpec, device: torch.device | str = "cpu") -> Autoencoder:
    """The VAE or tokenizer of a spec, whose weights are still to be loaded: nothing is initialised."""
    with torch.device("meta"):
        autoencoder = AUTOENCODERS[spec.family].model(spec)
    if device == "meta":
        return autoencoder
    # As Module.to_empty does, which makes torch import a computer algebra system.
    for module in autoencoder.modules():
        for name, waiting in module.named_parameters(recurse=False):
            setattr(module, name, empty_parameter(*waiting.shape, device=device, dtype=waiting.dtype))
    return autoencoder


def recognise_autoencoder(shapes: Shapes) -> AutoencoderFamily | None:
    """The family of a VAE's or tokenizer's state dict; None for what is neither."""
    return next((family for family in AUTOENCODERS.values() if family.matches(shapes)), None)


def _families() -> str:
    """Their names, for messages."""
    *names, last = FAMILIES
    return f"{', '.join(names)} or {last}"


def published_specs() -> Mapping[str, ModelSpec]:
    """Specs that can be asked for by name: of every family the published models."""
    return {name: spec for family in FAMILIES.values() for name, spec in family.published.items()}
