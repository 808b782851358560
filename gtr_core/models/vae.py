"""The KL autoencoder in LDM layout (kl16 and its smaller relatives; docs/upstream.md 2.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import GtRError
from .autoencoder import Autoencoder, AutoencoderFamily, AutoencoderSpec
from .latents import KL, KL_NORMALISED
from .shapes import Shapes, count_blocks, describe_names, shape_of

# Names of a VAE's state dict, in LDM's layout and in diffusers'.
ANCHORS = ("encoder.conv_in.weight", "decoder.conv_in.weight")


@dataclass(frozen=True)
class VAESpec(AutoencoderSpec):
    """An LDM-layout KL autoencoder; ``*_attention`` are the levels with attention after each block;
    ``quant`` says whether there are 1 x 1 convolutions around the latent (SD3 has none)."""

    family: ClassVar[str] = "KL VAE"
    stored: ClassVar[tuple[str, ...]] = ("groups", "normalised")

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    latent_channels: int
    embed_channels: int
    encoder_attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    image_channels: int = 3
    quant: bool = True
    groups: int = 32
    normalised: bool = False
    norm_eps: float = 1e-6

    @property
    def variant(self) -> str:
        return f"f{self.stride}"

    @property
    def stride(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @property
    def latents(self) -> str:
        return KL_NORMALISED if self.normalised else KL


KL16 = VAESpec(
    channels=128, multipliers=(1, 1, 2, 2, 4), blocks=2, latent_channels=16, embed_channels=16, encoder_attention=(4,)
)


class ResnetBlock(nn.Module):
    def __init__(self, spec: VAESpec, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(spec.groups, inputs, eps=spec.norm_eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(spec.groups, outputs, eps=spec.norm_eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class SpatialAttention(nn.Module):
    """Single-head attention over all pixels of a feature map."""

    def __init__(self, spec: VAESpec, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(spec.groups, channels, eps=spec.norm_eps)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, attention after each where asked for, then a resampling layer or none."""

    def __init__(self, spec: VAESpec, inputs: int, outputs: int, blocks: int, attention: bool):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(spec, inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(SpatialAttention(spec, outputs) for _ in range(blocks if attention else 0))

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if self.attn:
                h = self.attn[i](h)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                h = getattr(self, name)(h)
        return h


class Middle(nn.Module):
    def __init__(self, spec: VAESpec, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(spec, channels, channels)
        self.attn_1 = SpatialAttention(spec, channels)
        self.block_2 = ResnetBlock(spec, channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> (B, 2 z, H / stride, W / stride)."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        widths = [spec.channels * m for m in spec.multipliers]
        self.conv_in = nn.Conv2d(spec.image_channels, spec.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([spec.channels, *widths], widths)):
            level = Level(spec, inputs, outputs, spec.blocks, i in spec.encoder_attention)
            if i < len(widths) - 1:
                level.downsample = Downsample(outputs)
            self.down.append(level)
        self.mid = Middle(spec, widths[-1])
        self.norm_out = nn.GroupNorm(spec.groups, widths[-1], eps=spec.norm_eps)
        self.conv_out = nn.Conv2d(widths[-1], 2 * spec.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents (B, z, h, w) -> images (B, 3, h * stride, w * stride), about [-1, 1]."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        widths = [spec.channels * m for m in spec.multipliers]
        self.conv_in = nn.Conv2d(spec.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(spec, widths[-1])
        self.up = nn.ModuleList()
        for i, (outputs, inputs) in enumerate(zip(widths, [*widths[1:], widths[-1]])):
            level = Level(spec, inputs, outputs, spec.blocks + 1, i in spec.decoder_attention)
            if i > 0:
                level.upsample = Upsample(outputs)
            self.up.append(level)
        self.norm_out = nn.GroupNorm(spec.groups, widths[0], eps=spec.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], spec.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class KLVAE(Autoencoder):
    """KL autoencoder."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        self.spec = spec
        self.encoder, self.decoder = Encoder(spec), Decoder(spec)
        if spec.quant:
            self.quant_conv = nn.Conv2d(2 * spec.latent_channels, 2 * spec.embed_channels, 1)
            self.post_quant_conv = nn.Conv2d(spec.embed_channels, spec.latent_channels, 1)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's; the log-variance is clamped to [-30, 20]."""
        h = self.encoder(images)
        mean, logvar = (self.quant_conv(h) if self.spec.quant else h).chunk(2, dim=1)
        return mean, torch.clamp(logvar, -30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents) if self.spec.quant else latents)


def regroup(spec: VAESpec, tensors: Mapping[str, Tensor], groups: int = 32) -> tuple[VAESpec, dict[str, Tensor]]:
    """The same function with ``groups`` norm groups, a multiple of the spec's: the new channels are all zero.

    A host that knows 32 groups only can then run a VAE of fewer. Groups keep their number of channels, so the old ones
    see what they saw before and the new ones see zeros; attention divides by the root of the width, and the query
    makes up for it. Raises GtRError when the spec's groups do not divide ``groups``.
    """
    if groups % spec.groups:
        raise GtRError(f"a VAE with {spec.groups} norm groups cannot become one with {groups}: expected a divisor")
    factor = groups // spec.groups
    if factor == 1:
        return spec, dict(tensors)
    wide = replace(spec, channels=spec.channels * factor, groups=groups)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in KLVAE(wide).state_dict().items()}
    weights = {}
    for name, shape in shapes.items():
        source = tensors[name]
        fill = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        weights[name] = source.new_full(shape, fill)
        weights[name][tuple(slice(size) for size in source.shape)] = (
            source * math.sqrt(factor) if ".q." in name else source
        )
    return wide, weights


def infer_vae_spec(shapes: Shapes, *, groups: int = VAESpec.groups, normalised: bool = False) -> VAESpec:
    """Read a :class:`VAESpec` off tensor names and shapes (docs/upstream.md 2.1). Raises GtRError.

    Shapes do not show the number of norm ``groups``: LDM's is 32, other files carry theirs in the metadata.
    """
    if not all(anchor in shapes for anchor in ANCHORS):
        raise GtRError(
            f"not a KL VAE in LDM layout: expected tensors such as 'decoder.conv_in.weight' and "
            f"'encoder.conv_in.weight', found {describe_names(shapes)}; choose the model's VAE file"
        )
    channels, image_channels = shape_of(shapes, "encoder.conv_in.weight", 4)[:2]
    levels, blocks = count_blocks(shapes, "encoder.down"), count_blocks(shapes, "encoder.down.0.block")
    widths = [shape_of(shapes, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    if not levels or any(width % channels for width in widths) or channels % groups:
        raise GtRError(
            f"VAE level widths {widths} with base {channels} do not fit: expected multiples of the base, "
            f"and the base a multiple of {groups} (group norm)"
        )
    attention = {
        part: tuple(level for level in range(levels) if count_blocks(shapes, f"{part}.{level}.attn"))
        for part in ("encoder.down", "decoder.up")
    }
    latent = shape_of(shapes, "decoder.conv_in.weight", 4)[1]
    quant = "post_quant_conv.weight" in shapes
    embed = shape_of(shapes, "post_quant_conv.weight", 4)[1] if quant else latent
    return VAESpec(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=blocks,
        latent_channels=latent,
        embed_channels=embed,
        image_channels=image_channels,
        quant=quant,
        groups=groups,
        normalised=normalised,
        encoder_attention=attention["encoder.down"],
        decoder_attention=attention["decoder.up"],
    )


VAE_FAMILY = AutoencoderFamily(
    spec=VAESpec, model=KLVAE, anchors=ANCHORS, infer=infer_vae_spec, layers=("quant_conv", "post_quant_conv")
)
