"""A custom node pack for tests: a T5 with the host's tokenizer and classes, but a few hundred times smaller.

A real flan-t5-xxl has 11 billion parameters, and the stock CLIPLoader knows no other size.
"""

import comfy.sd
import comfy.text_encoders.lt
import comfy.text_encoders.sd3_clip
import torch

CONFIG = {
    "d_ff": 32,
    "d_kv": 16,
    "d_model": 64,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "dense_act_fn": "gelu_pytorch_tanh",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 2,
    "num_heads": 4,
    "num_layers": 2,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}


def build(masked: bool = True) -> comfy.sd.CLIP:
    """The text encoder of CLIPLoader type ltxv (or, unmasked, of type sd3), with random weights."""

    class Target:
        params: dict = {}
        clip = (
            comfy.text_encoders.lt.ltxv_te()
            if masked
            else comfy.text_encoders.sd3_clip.sd3_clip(clip_l=False, clip_g=False, t5=True, t5_attention_mask=False)
        )
        tokenizer = comfy.text_encoders.lt.LTXVT5Tokenizer

    clip = comfy.sd.CLIP(Target, parameters=1, model_options={"t5xxl_model_config": CONFIG}, disable_dynamic=True)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in clip.cond_stage_model.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draw * 0.1 + (parameter.ndim == 1))
    return clip


class TinyT5:
    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"masked": ("BOOLEAN", {"default": True})}}

    def load(self, masked=True):
        return (build(masked),)


NODE_CLASS_MAPPINGS = {"GtRTest_TinyT5": TinyT5}
