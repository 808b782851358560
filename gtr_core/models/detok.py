"""The l-DeTok tokenizer: two ViTs around a latent grid of one fixed size (docs/upstream.md 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import GtRError
from .autoencoder import Autoencoder, AutoencoderFamily, AutoencoderSpec
from .latents import DETOK
from .layers import SelfAttention, empty_parameter, sdpa
from .shapes import Shapes, count_blocks, describe_names, shape_of

ANCHORS = ("encoder.latent_head.weight", "decoder.decoder_embed.weight")
# Heads of the published widths, and what their sizes are called. Head counts leave no trace in tensor shapes.
HEADS_BY_WIDTH = {512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16}
LETTERS = {512: "S", 768: "B", 1024: "L", 1152: "XL", 1280: "H"}
FREQUENCIES, LARGEST_FREQUENCY = 10_000.0, 7.0
LOWEST_LOGVAR, HIGHEST_LOGVAR = -30.0, 20.0


@dataclass(frozen=True)
class ViTSpec:
    """One half: ``depth`` blocks of ``dim`` values, ``hidden`` in their SwiGLU."""

    dim: int
    depth: int
    heads: int
    hidden: int


@dataclass(frozen=True)
class DeTokSpec(AutoencoderSpec):
    """A tokenizer of ``side`` x ``side`` latent cells, each of ``patch`` x ``patch`` pixels."""

    family: ClassVar[str] = "l-DeTok tokenizer"
    stored: ClassVar[tuple[str, ...]] = ("heads", "normalised")

    encoder: ViTSpec
    decoder: ViTSpec
    embed_channels: int = 16
    patch: int = 16
    side: int = 16
    normalised: bool = False
    norm_eps: float = 1e-6

    @property
    def variant(self) -> str:
        return f"detok-{''.join(LETTERS.get(half.dim, str(half.dim)) for half in (self.encoder, self.decoder))}"

    @property
    def heads(self) -> tuple[int, int]:
        return self.encoder.heads, self.decoder.heads

    @property
    def stride(self) -> int:
        return self.patch

    @property
    def activation_values(self) -> int:
        """Numbers that encoding or decoding an image keeps at once, about."""
        return (
            max(
                self.side**2 * (12 * half.dim + 6 * half.hidden) + 2 * half.heads * self.side**4
                for half in (self.encoder, self.decoder)
            )
            + 12 * self.pixels**2
        )

    @property
    def pixels(self) -> int:
        """Side of an image."""
        return self.side * self.patch

    @property
    def latents(self) -> str:
        return DETOK

    def check_size(self, size: tuple[int, int]) -> None:
        """Positions are learned for one size."""
        if tuple(size) != (self.pixels, self.pixels):
            raise GtRError(
                f"the l-DeTok tokenizer knows images of {self.pixels} x {self.pixels} pixels only, found {size[1]} x "
                f"{size[0]}: scale or crop the image to that size"
            )

    @property
    def unusable(self) -> str | None:
        """Models were trained on its latents normalised by statistics that lie in another file."""
        if self.normalised:
            return None
        return (
            "an l-DeTok tokenizer without the statistics of its latents, which models need: put its stats.pkl beside "
            "it, or convert it with --stats stats.pkl"
        )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = empty_parameter(dim), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class SwiGLU(nn.Module):
    """The first half of ``w12`` is the gate."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def rotary_table(side: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (side * side, head_dim), float32, of raster positions.

    The first half of the channels belongs to rows, the second to columns. Within a half the frequencies stand one
    after the other, twice, while :func:`rotated` pairs neighbours: the two channels of a pair have different angles.
    """
    count = head_dim // 4
    exponents = torch.arange(count, device=device) / max(count - 1, 1)
    # In this order, and in float32: the angles reach 44, where a rounding of the frequency shows.
    frequencies = (FREQUENCIES**-exponents * LARGEST_FREQUENCY * (2 * math.pi)).repeat(2)
    places = torch.linspace(0, 1, side, device=device)
    angles = places[:, None] * frequencies
    grid = (angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1))
    table = torch.cat(grid, dim=-1).flatten(0, 1)
    return table.cos(), table.sin()


def rotated(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """x (..., L, head_dim) with cosines and sines (L, head_dim): x cos + (-x1, x0, -x3, x2, ...) sin."""
    cos, sin = table
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos.to(x) + swapped * sin.to(x)


class RotaryBlock(nn.Module):
    """Pre-norm block of attention with rotary positions and SwiGLU."""

    def __init__(self, spec: ViTSpec, eps: float):
        super().__init__()
        self.norm1 = RMSNorm(spec.dim, eps)
        self.norm2 = RMSNorm(spec.dim, eps)
        self.attn = SelfAttention(spec.dim, spec.heads, operations=nn, attention=sdpa)
        self.mlp = SwiGLU(spec.dim, spec.hidden)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.attn.project(self.norm1(x))
        x = x + self.attn.attend(rotated(q, table), rotated(k, table), v)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """What the two halves share: positions, norms and blocks."""

    def __init__(self, spec: DeTokSpec, half: ViTSpec):
        super().__init__()
        self.side, self.head_dim = spec.side, half.dim // half.heads
        self.positional_embedding = empty_parameter(1, spec.side**2, half.dim)
        self.ln_pre = RMSNorm(half.dim, spec.norm_eps)
        self.transformer = nn.ModuleList(RotaryBlock(half, spec.norm_eps) for _ in range(half.depth))
        self.ln_post = RMSNorm(half.dim, spec.norm_eps)

    def transform(self, x: Tensor) -> Tensor:
        """Embedded cells (B, L, D) -> (B, L, D)."""
        table = rotary_table(self.side, self.head_dim, x.device)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer:
            x = block(x, table)
        return self.ln_post(x)


class Encoder(ViT):
    """Images (B, 3, H, W) in [-1, 1] -> moments (B, L, 2 C), means first."""

    def __init__(self, spec: DeTokSpec):
        super().__init__(spec, spec.encoder)
        patches = nn.Conv2d(3, spec.encoder.dim, spec.patch, stride=spec.patch)
        self.patch_embed = nn.Sequential(patches)
        self.latent_head = nn.Linear(spec.encoder.dim, 2 * spec.embed_channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.latent_head(self.transform(self.patch_embed(images).flatten(2).transpose(1, 2)))


class Decoder(ViT):
    """Latents (B, L, C) -> images (B, 3, H, W), about [-1, 1]."""

    def __init__(self, spec: DeTokSpec):
        super().__init__(spec, spec.decoder)
        dim = spec.decoder.dim
        self.mask_token = empty_parameter(1, 1, dim)  # of the training alone
        self.decoder_embed = nn.Linear(spec.embed_channels, dim)
        self.ffn = nn.Sequential(nn.Identity(), nn.Conv2d(dim, 3 * spec.patch**2, 1))
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        self.patch = spec.patch

    def forward(self, latents: Tensor) -> Tensor:
        x = self.transform(self.decoder_embed(latents))
        x = self.ffn(rearrange(x, "b (h w) d -> b d h w", h=self.side))
        return self.conv_out(rearrange(x, "b (p q c) h w -> b c (h p) (w q)", p=self.patch, q=self.patch))


class DeTok(Autoencoder):
    """The tokenizer. Images and latents of another size than its own are refused with a GtRError."""

    def __init__(self, spec: DeTokSpec):
        super().__init__()
        self.spec = spec
        self.encoder, self.decoder = Encoder(spec), Decoder(spec)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.spec.check_size(images.shape[2:])
        moments = rearrange(self.encoder(images), "b (h w) c -> b c h w", h=self.spec.side)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(LOWEST_LOGVAR, HIGHEST_LOGVAR)

    def decode(self, latents: Tensor) -> Tensor:
        height, width = latents.shape[2:]
        self.spec.check_size((height * self.spec.patch, width * self.spec.patch))
        return self.decoder(latents.flatten(2).transpose(1, 2))


def infer_detok_spec(shapes: Shapes, *, heads: tuple[int, int] | None = None, normalised: bool = False) -> DeTokSpec:
    """Read a :class:`DeTokSpec` off tensor names and shapes. Raises GtRError.

    ``heads`` of encoder and decoder must be given for widths other than the published ones.
    """
    if not all(anchor in shapes for anchor in ANCHORS):
        raise GtRError(
            f"not an l-DeTok tokenizer: expected tensors such as '{ANCHORS[0]}', found {describe_names(shapes)}"
        )
    patch = shape_of(shapes, "encoder.patch_embed.0.weight", 4)[2]
    cells = shape_of(shapes, "encoder.positional_embedding", 3)[1]
    side = math.isqrt(cells)
    if side * side != cells:
        raise GtRError(f"an l-DeTok tokenizer of {cells} latent cells, expected a square grid: the file is damaged")
    widths = (shape_of(shapes, ANCHORS[0], 2)[1], shape_of(shapes, ANCHORS[1], 2)[0])
    halves = [
        _half(shapes, part, dim, None if heads is None else heads[index])
        for index, (part, dim) in enumerate(zip(("encoder", "decoder"), widths))
    ]
    channels = shape_of(shapes, ANCHORS[1], 2)[1]
    return DeTokSpec(*halves, embed_channels=channels, patch=patch, side=side, normalised=normalised)


def _half(shapes: Shapes, part: str, dim: int, heads: int | None) -> ViTSpec:
    heads = HEADS_BY_WIDTH.get(dim) if heads is None else heads
    if heads is None:
        raise GtRError(
            f"the number of attention heads cannot be read off a width of {dim} (known: "
            f"{', '.join(map(str, HEADS_BY_WIDTH))}): convert the file with --heads N"
        )
    if heads < 1 or dim % (4 * heads):
        raise GtRError(f"{heads} attention heads do not fit the width {dim}: convert the file with the right --heads N")
    depth = count_blocks(shapes, f"{part}.transformer")
    if not depth:
        raise GtRError(f"'{part}.transformer' has no blocks: the file is incomplete")
    return ViTSpec(dim, depth, heads, shape_of(shapes, f"{part}.transformer.0.mlp.w3.weight", 2)[1])


DETOK_FAMILY = AutoencoderFamily(
    spec=DeTokSpec,
    model=DeTok,
    anchors=ANCHORS,
    infer=infer_detok_spec,
    layers=("encoder.latent_head", "decoder.decoder_embed"),
)
