"""Text conditioning for LightGen (docs/upstream.md 3.5): flan-t5-xxl states at exactly 128 positions."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..gtr_core.errors import GtRError
from ..gtr_core.models.lightgen import LightGenSpec
from ._api import io
from .conditioning import LABELS, check_count, only_entry

logger = logging.getLogger("gtr_mar")

LENGTH, END, PAD = 128, 1, 0
PROMPTS = "gtr_prompts"
WAY_OUT = "load flan-t5-xxl with CLIPLoader, type 'ltxv'"


class EncodeText(io.ComfyNode):
    """CLIP and text -> CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_EncodeText",
            display_name="LightGen Text Encode",
            category="GtR/conditioning",
            description="Encodes a prompt as LightGen was trained: T5 with its mask, exactly 128 positions, no prompt "
            "weights.",
            search_aliases=["lightgen prompt", "t5", "gtr"],
            inputs=[
                io.Clip.Input("clip", tooltip="flan-t5-xxl from CLIPLoader, type ltxv."),
                io.String.Input("text", multiline=True, dynamic_prompts=True),
                io.Boolean.Input(
                    "one_per_line",
                    default=False,
                    optional=True,
                    tooltip="Every line is a prompt of its own, one per image of the batch.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(cls, clip: io.Clip.Type, text: str, one_per_line: bool = False) -> io.NodeOutput:
        prompts = [line for line in text.splitlines() if line.strip()] if one_per_line else [text]
        check_encoder(clip)
        encoded = [encode(clip, prompt) for prompt in prompts or [""]]
        states, masks = (torch.cat(parts) for parts in zip(*encoded))
        return io.NodeOutput([[states, {"pooled_output": None, "attention_mask": masks, PROMPTS: len(states)}]])


def check_encoder(clip: io.Clip.Type) -> None:
    """Raises GtRError unless ``clip`` is a T5-XXL whose attention is masked."""
    encoder = getattr(getattr(clip, "cond_stage_model", None), "t5xxl", None)
    if encoder is None:
        raise GtRError(f"the text encoder is not a T5-XXL, which LightGen needs: {WAY_OUT}")
    if not encoder.enable_attention_masks:
        raise GtRError(f"this T5 was loaded for a model that does not mask padding, LightGen needs the mask: {WAY_OUT}")


def encode(clip: io.Clip.Type, prompt: str) -> tuple[Tensor, Tensor]:
    """States (1, 128, D) and mask (1, 128) of one prompt."""
    tokens = {"t5xxl": [[(token, 1.0) for token in fit(clip, prompt)]]}
    result = clip.encode_from_tokens(tokens, return_dict=True)
    return result["cond"], result["attention_mask"]


def fit(clip: io.Clip.Type, prompt: str) -> list[int]:
    """Exactly 128 token ids: padded, or cut so that the end token stays."""
    chunks = clip.tokenize(prompt, disable_weights=True)["t5xxl"]
    ids = [entry[0] for chunk in chunks for entry in chunk]
    if not all(isinstance(token, int) for token in ids):
        raise GtRError("the prompt holds an embedding, which LightGen cannot use: remove 'embedding:...' from it")
    ids = [token for token in ids if token != PAD]
    if len(ids) > LENGTH:
        logger.warning("the prompt has %d tokens, LightGen reads %d: the rest is cut off", len(ids), LENGTH)
        ids = [*ids[: LENGTH - 1], END]
    return ids + [PAD] * (LENGTH - len(ids))


def texts_for_batch(conditioning: io.Conditioning.Type, images: Sequence[int], spec: LightGenSpec, what: str) -> Tensor:
    """Text states (B, text_length, caption_dim): image k of the original batch gets the k-th prompt, in turn.

    Output of stock text encoders is cut or padded with a warning. Raises GtRError.
    """
    states, extra = only_entry(conditioning, what)
    if LABELS in extra or not isinstance(states, Tensor) or states.ndim != 3:
        raise GtRError(
            f"{what} is not a text: expected the output of 'LightGen Text Encode'; {spec.name} cannot use class labels"
        )
    if states.shape[2] != spec.caption_dim:
        raise GtRError(
            f"{what} has text states of {states.shape[2]} values, {spec.name} needs {spec.caption_dim}: {WAY_OUT}"
        )
    check_count("prompts", len(states), images)
    if PROMPTS not in extra:
        logger.warning(
            "%s comes from another text encode node: LightGen was trained on %d unweighted positions with "
            "the mask on; use 'LightGen Text Encode'",
            what,
            spec.text_length,
        )
        states = states[:, : spec.text_length]
        states = torch.nn.functional.pad(states, (0, 0, 0, spec.text_length - states.shape[1]))
    if states.shape[1] != spec.text_length:
        raise GtRError(f"{what} has {states.shape[1]} text positions, {spec.name} needs {spec.text_length}")
    return states[[k % len(states) for k in images]]
