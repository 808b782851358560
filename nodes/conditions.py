"""What the sampler reads from a CONDITIONING wire, and which edits of stock nodes it understands.

A label's tensor holds label + 1, a prompt's its ids + 1 and a text's its states, so a zeroed one is recognised in all.
Whatever else a node changed is refused: an image that ignores an edit looks as if the edit had no effect.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..gtr_core.errors import GtRError
from ..gtr_core.models import ModelSpec
from ..gtr_core.models.prompts import Condition, EditCondition, pad_prompts
from ._api import io

logger = logging.getLogger("gtr_mar")

LABELS, PROMPTS, IDS, PICTURES = "gtr_labels", "gtr_prompts", "gtr_ids", "gtr_pictures"
# The node that makes a condition, by what a model is conditioned on.
ENCODERS = {"label": "Class Label", "text": "LightGen Text Encode", "prompt": "Harmon Text Encode"}
TEXT_ENCODER = "load flan-t5-xxl with CLIPLoader, type 'ltxv'"
# What our nodes and plain text encoders put beside the tensor.
OWN = {
    "label": {LABELS, "pooled_output"},
    "text": {PROMPTS, "pooled_output", "attention_mask"},
    "prompt": {IDS, PICTURES, "pooled_output"},
}
# What other nodes put there: what it asks for, and how to get something like it.
UNMASKED = "to change a part of an image, give the latent a mask (Set Latent Noise Mask)"
UNSCALED = "set cfg in the sampler instead"
EFFECTS = {
    "area": ("an area of the image (Conditioning Set Area)", UNMASKED),
    "mask": ("a mask (Conditioning Set Mask)", UNMASKED),
    "mask_strength": ("a mask (Conditioning Set Mask)", UNMASKED),
    "set_area_to_bounds": ("an area of the image", UNMASKED),
    "strength": ("a strength (Conditioning Set Area Strength)", UNSCALED),
    "start_percent": ("a range of steps (Conditioning Set Timestep Range)", "remove that node"),
    "end_percent": ("a range of steps (Conditioning Set Timestep Range)", "remove that node"),
    "guidance": ("a guidance (Flux Guidance)", UNSCALED),
    "control": ("a ControlNet", "remove it, there is none for these models"),
    "hooks": ("hooks", "remove them, there are none for these models"),
    "gligen": ("GLIGEN boxes", "remove them"),
    "concat_latent_image": ("an image to inpaint (Inpaint Model Conditioning)", "connect the latent of that node too"),
    "concat_mask": ("an image to inpaint (Inpaint Model Conditioning)", "connect the latent of that node too"),
    "reference_latents": ("a reference image (Reference Latent)", "remove that node"),
}
# What the mask of the latent says as well.
MASKED = {"concat_latent_image", "concat_mask"}
# Settings that change nothing, as nodes write them with their defaults.
NEUTRAL = {"strength": 1.0, "mask_strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "set_area_to_bounds": False}


@dataclass(frozen=True)
class BatchImages:
    """The images that conditions are for: their ``indices`` in the original batch, of which they are the ``whole`` or
    what was picked from it, and whether the latent is ``masked``."""

    indices: Sequence[int]
    whole: bool = True
    masked: bool = False


def labels_for_batch(conditioning: io.Conditioning.Type, batch: BatchImages, spec: ModelSpec, what: str) -> Tensor:
    """Labels (B,) int64: image k of the original batch gets the k-th class, in turn when there are fewer. A zeroed
    conditioning is the null condition, label -1. Raises GtRError.
    """
    values, extra = only_entry(conditioning, what)
    labels = extra.get(LABELS)
    if labels is None:
        raise GtRError(
            f"{what} is not a class label: expected the output of 'Class Label'; a MAR model is "
            "class-conditional and cannot use a text prompt"
        )
    if not all(0 <= label < spec.classes for label in labels):
        raise GtRError(
            f"{what} has the classes {list(labels)}, {spec.name} has 0 to {spec.classes - 1}: connect the same "
            "model to Class Label and to the sampler"
        )
    check_extras(extra, spec, what, batch.masked)
    given = label_tensor(labels)
    if values.ndim != 3 or values.shape[1:] != given.shape[1:]:
        raise GtRError(f"{what} joins class labels (Conditioning Concat), which a label cannot do: {one_label(what)}")
    if values.shape != given.shape or not ((values == given) | (values == 0)).all():
        raise GtRError(
            f"{what} blends or scales class labels (Conditioning Average, Multiply), which a label cannot do: "
            f"{one_label(what)}"
        )
    check_count("classes", len(labels), batch)
    known = torch.where(values.flatten() == 0, -1, torch.tensor(labels)).tolist()
    return torch.tensor([known[k % len(known)] for k in batch.indices])


def one_encoder(spec: ModelSpec) -> str:
    """The node that makes conditions for a model, for messages."""
    return f"'{ENCODERS[spec.condition]}'"


def label_tensor(labels: Sequence[int]) -> Tensor:
    """What travels on the wire for class labels, (n, 1, 1): label + 1, so that only a zeroed one is zero."""
    return torch.tensor(labels, dtype=torch.float32)[:, None, None] + 1


def one_label(what: str) -> str:
    return f"connect one Class Label to {what}; its class_list gives every image of a batch a class of its own"


def texts_for_batch(
    conditioning: io.Conditioning.Type, batch: BatchImages, spec: ModelSpec, what: str
) -> Tensor | None:
    """Text states (B, text_length, caption_dim): image k of the original batch gets the k-th prompt, in turn. A zeroed
    negative is None, the null condition.

    Output of stock text encoders is cut or padded with a warning. Raises GtRError.
    """
    states, extra = only_entry(conditioning, what)
    if LABELS in extra or IDS in extra or not isinstance(states, Tensor) or states.ndim != 3:
        raise GtRError(
            f"{what} is not a text: expected the output of 'LightGen Text Encode'; {spec.name} cannot use class labels"
        )
    if states.shape[2] != spec.caption_dim:
        raise GtRError(
            f"{what} has text states of {states.shape[2]} values, {spec.name} needs {spec.caption_dim}: {TEXT_ENCODER}"
        )
    check_extras(extra, spec, what, batch.masked)
    zeroed = (states == 0).flatten(1).all(1)
    if what == "negative" and zeroed.all():
        return None
    if zeroed.any():
        raise GtRError(
            f"{what} is zeroed (Conditioning Zero Out), and {spec.name} draws nothing without a text: remove that "
            "node, or encode an empty text"
        )
    check_count("prompts", len(states), batch)
    mask = extra.get("attention_mask")
    joined = isinstance(mask, Tensor) and mask.shape[-1] < states.shape[1]
    if joined or (PROMPTS in extra and states.shape[1] != spec.text_length):
        raise GtRError(
            f"{what} has {states.shape[1]} text positions, {spec.name} needs {spec.text_length}: it joins texts "
            "(Conditioning Concat); write them as one prompt instead"
        )
    if PROMPTS not in extra:
        logger.warning(
            "%s comes from another text encode node: LightGen was trained on %d unweighted positions with "
            "the mask on; use 'LightGen Text Encode'",
            what,
            spec.text_length,
        )
        states = states[:, : spec.text_length]
        states = torch.nn.functional.pad(states, (0, 0, 0, spec.text_length - states.shape[1]))
    return states[[k % len(states) for k in batch.indices]]


def prompts_for_batch(conditioning: io.Conditioning.Type, batch: BatchImages, spec: ModelSpec, what: str) -> Condition:
    """Ids of prompts (B, n) int64, with pictures where those are to be changed: image k of the original batch gets the
    k-th, in turn. A zeroed conditioning is the unconditional prompt. Raises GtRError."""
    values, extra = only_entry(conditioning, what)
    ids = extra.get(IDS)
    if ids is None:
        raise GtRError(
            f"{what} is not a prompt for {spec.name}: expected the output of {one_encoder(spec)}; {spec.name} reads "
            "prompts itself, and uses neither class labels nor another text encoder"
        )
    check_extras(extra, spec, what, batch.masked)
    given = prompt_tensor(ids)
    if values.shape != given.shape or not ((values == given) | (values == 0)).all():
        raise GtRError(
            f"{what} joins, blends or scales prompts (Conditioning Concat, Average, Multiply), which {spec.name} "
            "cannot read: write them as one prompt instead"
        )
    check_count("prompts", len(ids), batch)
    zeroed = (values == 0).flatten(1).all(1).tolist()
    pictures = extra.get(PICTURES)
    unconditional = spec.empty_prompt if pictures is None else spec.empty_edit
    prompts = [unconditional if nothing else row for row, nothing in zip(ids, zeroed)]
    rows = [k % len(prompts) for k in batch.indices]
    condition = pad_prompts([prompts[row] for row in rows])
    return condition if pictures is None else EditCondition(condition, pictures[rows])


def prompt_tensor(ids: Sequence[Sequence[int]]) -> Tensor:
    """What travels on the wire for prompts, (n, ids, 1): id + 1, and 0 where a prompt has ended."""
    return (pad_prompts(ids) + 1).float()[..., None]


# What reads a CONDITIONING, by what a model is conditioned on.
READERS = {"label": labels_for_batch, "text": texts_for_batch, "prompt": prompts_for_batch}


def read_condition(
    conditioning: io.Conditioning.Type, batch: BatchImages, spec: ModelSpec, what: str
) -> Condition | None:
    """The condition of every image of a batch for a model; None is the null condition. Raises GtRError, which names the
    sampler's input ``what``."""
    return READERS[spec.condition](conditioning, batch, spec, what)


def only_entry(conditioning: io.Conditioning.Type, what: str) -> tuple[Tensor, dict[str, Any]]:
    """The tensor and the extras of a CONDITIONING. Raises GtRError unless there is exactly one."""
    if not conditioning:
        raise GtRError(f"{what} is empty: connect a condition")
    if len(conditioning) > 1:
        raise GtRError(
            f"{what} combines {len(conditioning)} conditions (Conditioning Combine), the sampler uses one: connect one "
            "of them; a list of classes, or one prompt per line, gives every image of a batch its own"
        )
    return conditioning[0][0], conditioning[0][1]


def check_extras(extra: dict[str, Any], spec: ModelSpec, what: str, masked: bool) -> None:
    """Raises GtRError for a setting beside the tensor that the sampler does not follow."""
    others = extra.keys() - OWN[spec.condition] - (MASKED if masked else set())
    for key in [*(key for key in EFFECTS if key in others), *sorted(others - EFFECTS.keys())]:
        value = extra[key]
        if value is None or (key in NEUTRAL and value == NEUTRAL[key]):
            continue
        effect, way_out = EFFECTS.get(key, (f"the setting '{key}'", "remove the node that sets it"))
        raise GtRError(f"{what} asks for {effect}, which {spec.name} cannot follow: {way_out}")


def check_count(what: str, count: int, batch: BatchImages) -> None:
    """Raises GtRError when a whole batch has fewer images than there are conditions for it."""
    if batch.whole and count > len(batch.indices):
        raise GtRError(
            f"{count} {what} for a batch of {len(batch.indices)}: set batch_size to {count} in the empty latent, or "
            f"give fewer {what}"
        )
