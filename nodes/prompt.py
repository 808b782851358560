"""The conditioning node of models that read prompts themselves: Harmon and UniPic (docs/upstream.md 9.3)."""

from __future__ import annotations

import logging

from ..gtr_core.errors import GtRError
from ..gtr_core.models.prompts import ids_of, length_note
from ._api import MarModel, io
from ._models import ModelHandle
from ._tokenizer import qwen_tokenizer
from .conditions import IDS, one_encoder, prompt_tensor
from .text import lines_of

logger = logging.getLogger("gtr_mar")


class EncodePrompt(io.ComfyNode):
    """Text -> CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_EncodePrompt",
            display_name="Harmon Text Encode",
            category="GtR/conditioning",
            description="Puts a prompt into the chat template of Harmon and UniPic. The model reads it itself: there "
            "is no text encoder to load, and the tokenizer comes with ComfyUI.",
            search_aliases=["harmon prompt", "unipic", "reca", "text to image", "t2i", "qwen", "gtr"],
            inputs=[
                MarModel.Input("model", tooltip="The model that will draw, from Load Harmon / UniPic Model."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to draw. (word:1.2) is plain text, not a weight; above 128 tokens the model was not "
                    "trained.",
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
    def execute(cls, model: ModelHandle, text: str, one_per_line: bool = False) -> io.NodeOutput:
        spec = model.spec
        if spec.condition != "prompt":
            raise GtRError(f"{spec.name} does not read prompts itself: use {one_encoder(spec)} for it")
        condition = spec.encode_prompts(lines_of(text, one_per_line), qwen_tokenizer())
        note = length_note(condition, spec)
        if note:
            logger.warning("%s", note)
        ids = tuple(ids_of(condition))
        return io.NodeOutput([[prompt_tensor(ids), {"pooled_output": None, IDS: ids}]])
