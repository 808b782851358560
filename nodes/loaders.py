"""Loader nodes."""

from __future__ import annotations

from typing import Any

from . import _models as files
from ._api import MarModel, io

MODEL_OUTPUT = "The model, for every node of this pack with an input 'model'. It is not a MODEL for KSampler."


def weight_dtype_input() -> io.Combo.Input:
    """The input of every loader of a model."""
    return io.Combo.Input(
        "weight_dtype",
        options=["default", *files.DTYPES],
        default="default",
        optional=True,
        advanced=True,
        tooltip="Precision of the transformer: 16 bit is smaller and, on most graphics cards, faster. The "
        "diffusion head stays in float32.",
    )


class LoadMAR(io.ComfyNode):
    """MAR checkpoint -> MAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_LoadMAR",
            display_name="Load MAR Model",
            category="GtR/loaders",
            description="Loads a masked autoregressive model (MAR-B, L, H or another size). Files go to "
            "models/diffusion_models; the demo model is part of the pack.",
            search_aliases=[
                "mar",
                "masked autoregressive",
                "checkpoint",
                "imagenet",
                "demo",
                "demo model",
                "gtr",
                "gtr-mar",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files.model_names("diffusion_models"),
                    default=files.DEMO,
                    tooltip="A .safetensors (or original .pth) file in models/diffusion_models.",
                ),
                weight_dtype_input(),
            ],
            outputs=[MarModel.Output(display_name="model", tooltip=MODEL_OUTPUT)],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> tuple[int, ...]:
        return files.file_fingerprint("diffusion_models", model_name)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str = "default") -> io.NodeOutput:
        return io.NodeOutput(files.load_handle("MAR", model_name, weight_dtype))


class LoadLightGen(io.ComfyNode):
    """LightGen checkpoint -> MAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_LoadLightGen",
            display_name="Load LightGen Model",
            category="GtR/loaders",
            description="Loads a LightGen model (text to image, 512 px and other sizes). Files go to "
            "models/diffusion_models. Use it with the SD3 VAE and a flan-t5-xxl text encoder.",
            search_aliases=["lightgen", "fluid", "text to image", "t2i", "checkpoint", "gtr"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files.file_names("diffusion_models"),
                    tooltip="A .safetensors (or original .pth) file in models/diffusion_models.",
                ),
                weight_dtype_input(),
                io.Combo.Input(
                    "weights",
                    options=["model", "ema"],
                    default="model",
                    optional=True,
                    advanced=True,
                    tooltip="Which weights of an original checkpoint to load; the original scripts use 'model'. Files "
                    "with one set of weights have no choice.",
                ),
                io.Boolean.Input(
                    "corrected_positions",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="For images that are not square. Off: as the original code, which swaps the axes of its "
                    "position tables. On: not swapped.",
                ),
            ],
            outputs=[MarModel.Output(display_name="model", tooltip=MODEL_OUTPUT)],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> tuple[int, ...]:
        return files.file_fingerprint("diffusion_models", model_name)

    @classmethod
    def execute(
        cls, model_name: str, weight_dtype: str = "default", weights: str = "model", corrected_positions: bool = False
    ) -> io.NodeOutput:
        return io.NodeOutput(
            files.load_handle(
                "LightGen",
                model_name,
                weight_dtype,
                # The model's own weights are the family's usual ones: a file with one set of weights has no choice.
                weights=None if weights == "model" else weights,
                corrected_positions=corrected_positions,
            )
        )


class LoadHarmon(io.ComfyNode):
    """Harmon or UniPic checkpoint -> MAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_LoadHarmon",
            display_name="Load Harmon / UniPic Model",
            category="GtR/loaders",
            description="Loads a Harmon, RecA or UniPic model (text to image, 512 or 1024 px); its language model is "
            "in the same file. Files go to models/diffusion_models. Use it with the KL-16 VAE. The published weights "
            "are for non-commercial use.",
            search_aliases=["harmon", "reca", "unipic", "skywork", "text to image", "t2i", "checkpoint", "gtr"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files.file_names("diffusion_models"),
                    tooltip="A .safetensors, .pth or .bin file in models/diffusion_models, or any part of a file in "
                    "parts.",
                ),
                weight_dtype_input(),
            ],
            outputs=[MarModel.Output(display_name="model", tooltip=MODEL_OUTPUT)],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, **_: Any) -> tuple[int, ...]:
        return files.file_fingerprint("diffusion_models", model_name)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str = "default") -> io.NodeOutput:
        return io.NodeOutput(files.load_handle("Harmon", model_name, weight_dtype))


class LoadMARVAE(io.ComfyNode):
    """KL-16 file or l-DeTok tokenizer -> VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_LoadMARVAE",
            display_name="Load MAR VAE",
            category="GtR/loaders",
            description="Loads the VAE of the MAR models, KL-16 or the l-DeTok tokenizer, which the stock VAE loader "
            "does not recognise. Works with VAE Decode, VAE Decode (Tiled) and VAE Encode. Files go to models/vae.",
            search_aliases=["kl16", "kl-16", "mar vae", "autoencoder", "l-detok", "detok", "tokenizer", "gtr"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=files.model_names("vae"),
                    default=files.DEMO,
                    tooltip="In models/vae: kl16.safetensors, kl16.ckpt, or an l-DeTok tokenizer with its stats.pkl "
                    "beside it; or the demo model's. Use the VAE of the model that draws: another VAE with as many "
                    "channels decodes garbage without an error.",
                )
            ],
            outputs=[io.Vae.Output(display_name="VAE", tooltip="For VAE Decode and VAE Encode, also tiled.")],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str, **_: Any) -> tuple[int, ...]:
        return files.file_fingerprint("vae", vae_name)

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(files.load_mar_vae(vae_name))
