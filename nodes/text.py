"""Text conditioning for LightGen (docs/upstream.md 3.5): flan-t5-xxl states at exactly 128 positions."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..gtr_core.errors import GtRError
from ._api import io
from .conditions import PROMPTS, TEXT_ENCODER

logger = logging.getLogger("gtr_mar")

LENGTH, END, PAD = 128, 1, 0


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
            search_aliases=["lightgen prompt", "clip text encode", "text to image", "t2i", "t5", "gtr"],
            inputs=[
                io.Clip.Input("clip", tooltip="flan-t5-xxl from CLIPLoader, type ltxv."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw. Read up to 128 tokens; (word:1.2) is plain text, not a weight.",
                ),
                io.Boolean.Input(
                    "one_per_line",
                    default=False,
                    optional=True,
                    tooltip="Every line is a prompt of its own, one per image of the batch.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="For positive or negative of GtR Sampler.")
            ],
        )

    @classmethod
    def execute(cls, clip: io.Clip.Type, text: str, one_per_line: bool = False) -> io.NodeOutput:
        check_encoder(clip)
        encoded = [encode(clip, prompt) for prompt in lines_of(text, one_per_line)]
        states, masks = (torch.cat(parts) for parts in zip(*encoded))
        return io.NodeOutput([[states, {"pooled_output": None, "attention_mask": masks, PROMPTS: len(states)}]])


def lines_of(text: str, one_per_line: bool) -> list[str]:
    """The prompts of a text field: its lines with something in them, or all of it; at least one."""
    text = whole_characters(text)
    return ([line for line in text.splitlines() if line.strip()] if one_per_line else [text]) or [""]


def whole_characters(text: str) -> str:
    """A text without halves of surrogate pairs, which a program that cuts a text inside an emoji leaves behind."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


def check_encoder(clip: io.Clip.Type) -> None:
    """Raises GtRError unless ``clip`` is a T5-XXL whose attention is masked."""
    encoder = getattr(getattr(clip, "cond_stage_model", None), "t5xxl", None)
    if encoder is None:
        raise GtRError(f"the text encoder is not a T5-XXL, which LightGen needs: {TEXT_ENCODER}")
    if not encoder.enable_attention_masks:
        raise GtRError(
            f"this T5 was loaded for a model that does not mask padding, LightGen needs the mask: {TEXT_ENCODER}"
        )


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
