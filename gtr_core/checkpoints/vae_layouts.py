"""VAE files in other layouts than LDM's: diffusers' names, and what training leaves beside the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# What the training of a VAE leaves beside it: losses, a discriminator, counters.
BESIDE = (
    *("loss.", "losses.", "discriminator.", "disc.", "perceptual", "lpips.", "logvar", "global_step", "model_ema."),
    *("foundation_model.", "linear_proj."),  # VA-VAE aligns its latents with a vision model
)
# diffusers' names of a block, part by part; {up} counts from the other end.
BLOCKS = (
    (re.compile(r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\."), "encoder.down.{0}.block.{1}."),
    (re.compile(r"^encoder\.down_blocks\.(\d+)\.attentions\.(\d+)\."), "encoder.down.{0}.attn.{1}."),
    (re.compile(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\."), "encoder.down.{0}.downsample."),
    (re.compile(r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\."), "decoder.up.{up}.block.{1}."),
    (re.compile(r"^decoder\.up_blocks\.(\d+)\.attentions\.(\d+)\."), "decoder.up.{up}.attn.{1}."),
    (re.compile(r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\."), "decoder.up.{up}.upsample."),
    (re.compile(r"^(encoder|decoder)\.mid_block\.resnets\.0\."), "{0}.mid.block_1."),
    (re.compile(r"^(encoder|decoder)\.mid_block\.resnets\.1\."), "{0}.mid.block_2."),
    (re.compile(r"^(encoder|decoder)\.mid_block\.attentions\.0\."), "{0}.mid.attn_1."),
    (re.compile(r"^(encoder|decoder)\.conv_norm_out\."), "{0}.norm_out."),
)
IN_RESNET = {"conv_shortcut": "nin_shortcut"}
# Today's names of attention layers and those of diffusers before 0.16.
IN_ATTENTION = {
    "group_norm": "norm",
    **dict.fromkeys(("to_q", "query"), "q"),
    **dict.fromkeys(("to_k", "key"), "k"),
    **dict.fromkeys(("to_v", "value"), "v"),
    **dict.fromkeys(("to_out.0", "proj_attn"), "proj_out"),
}
ATTENTION = re.compile(r"\.(attn\.\d+|attn_1)\.")
UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d{1,3})\.")


def to_ldm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors under LDM's names, without what training leaves beside them; attention's linear layers are
    1 x 1 convolutions."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(BESIDE)}
    levels = 1 + max((int(match[1]) for match in map(UP_BLOCK.match, kept) if match), default=-1)
    return dict(_renamed(name, tensor, levels) for name, tensor in kept.items())


def _renamed(name: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    rest = name
    for pattern, form in BLOCKS if levels else ():
        match = pattern.match(name)
        if match:
            up = levels - 1 - int(match[1]) if "{up}" in form else 0
            start = form.format(*match.groups(), up=up)
            rest = name[match.end() :]
            layer, _, kind = rest.rpartition(".")
            layer = (IN_ATTENTION if "attn" in start else IN_RESNET).get(layer, layer)
            name = f"{start}{layer}.{kind}" if layer else start + kind
            break
    if ATTENTION.search(name) and tensor.dim() == 2:
        tensor = tensor[:, :, None, None]
    return name, tensor
