"""Loader nodes."""

from . import host
from ._api import MarModel, io


class LoadMAR(io.ComfyNode):
    """MAR checkpoint -> MAR_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_LoadMAR", display_name="Load MAR Model", category="GtR/loaders",
            description="Loads a masked autoregressive model (MAR-B, L, H or another size). Files go to "
                        "models/diffusion_models; the demo model is part of the pack.",
            search_aliases=["mar", "masked autoregressive", "gtr"],
            inputs=[
                io.Combo.Input("model_name", options=host.model_names("diffusion_models"), default=host.DEMO,
                               tooltip="A .safetensors (or original .pth) file in models/diffusion_models."),
                io.Combo.Input("weight_dtype", options=["default", *host.DTYPES], default="default", advanced=True,
                               tooltip="Of the transformer. The diffusion head is always float32."),
            ],
            outputs=[MarModel.Output(display_name="model")],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name, **_) -> tuple[int, int]:
        return host.file_fingerprint("diffusion_models", model_name)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str = "default") -> io.NodeOutput:
        return io.NodeOutput(host.load_mar_handle(model_name, weight_dtype))


class LoadMARVAE(io.ComfyNode):
    """KL-16 file -> VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_LoadMARVAE", display_name="Load MAR VAE", category="GtR/loaders",
            description="Loads the KL-16 VAE of the MAR models, which the stock VAE loader does not recognise. Works "
                        "with VAE Decode, VAE Decode (Tiled) and VAE Encode. Files go to models/vae.",
            search_aliases=["kl16", "mar vae", "gtr"],
            inputs=[io.Combo.Input("vae_name", options=host.model_names("vae"), default=host.DEMO,
                                   tooltip="kl16.safetensors or kl16.ckpt in models/vae.")],
            outputs=[io.Vae.Output(display_name="VAE")],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name, **_) -> tuple[int, int]:
        return host.file_fingerprint("vae", vae_name)

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(host.load_mar_vae(vae_name))
