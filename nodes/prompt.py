"""The conditioning node of models that read prompts themselves: Harmon and UniPic (docs/upstream.md 9.3)."""

from __future__ import annotations

import logging

from ..gtr_core.errors import GtRError
from ..gtr_core.models.prompts import ids_of
from ._api import MarModel, io
from ._models import ModelHandle
from ._tokenizer import qwen_tokenizer
from .conditions import IDS, PICTURES, one_encoder, prompt_tensor
from .latent import LatentBatch
from .text import lines_of, whole_characters

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
        note = spec.length_note(condition)
        if note:
            logger.warning("%s", note)
        ids = tuple(ids_of(condition))
        return io.NodeOutput([[prompt_tensor(ids), {"pooled_output": None, IDS: ids}]])


class EncodeEdit(io.ComfyNode):
    """Picture and instruction -> CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_EncodeEdit",
            display_name="UniPic Edit Encode (Harmon)",
            category="GtR/conditioning",
            description="An instruction to change a picture, for UniPic: the model reads the picture and the "
            "instruction and draws a new one. UniPic's authors call this exploratory.",
            search_aliases=["unipic edit", "image edit", "instruction", "img2img", "gtr"],
            inputs=[
                MarModel.Input("model", tooltip="A UniPic model, from Load Harmon / UniPic Model."),
                io.Latent.Input(
                    "picture",
                    tooltip="What is to be changed, from VAE Encode with the model's VAE. It was trained for 1024 x "
                    "1024 pixels; the sampler's latent_image must have the same size.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What to do, such as 'Replace the stars with the candle.'.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For positive of GtR Sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelHandle, picture: io.Latent.Type, text: str) -> io.NodeOutput:
        spec = model.spec
        if spec.condition != "prompt" or not spec.edits:
            raise GtRError(f"{spec.name} was not trained to change pictures: load UniPic for that")
        batch = LatentBatch.read_image(picture, model)
        tokens = batch.tokens().unflatten(1, batch.canvas.grid)
        (ids,) = ids_of(spec.encode_edits([whole_characters(text)], qwen_tokenizer()))
        prompts = (ids,) * len(tokens)
        return io.NodeOutput([[prompt_tensor(prompts), {"pooled_output": None, IDS: prompts, PICTURES: tokens}]])
