"""Specs: frozen descriptions of a model, inferred from the names and shapes of its state dict.

What members of a family differ in is data here, never a branch in the model's code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .errors import GtRError

Shapes = Mapping[str, tuple[int, ...]]

# Head counts leave no trace in tensor shapes; these widths are the published MAR-B, MAR-L and MAR-H.
HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16}
VARIANTS = {(768, 12, 12, 6, 1024): "mar-b", (1024, 16, 16, 8, 1280): "mar-l", (1280, 20, 20, 12, 1536): "mar-h"}


@dataclass(frozen=True)
class DiffusionSpec:
    """The base noise process of a diffusion head.

    ``beta_cap`` limits the betas of the cosine schedule (0.999 is MAR's); ``max_timestep`` clips the respaced
    timesteps (None = no clip), see :class:`gtr_core.diffusion.Chain`.
    """

    base_steps: int = 1000
    beta_cap: float = 0.999
    max_timestep: int | None = None


@dataclass(frozen=True)
class HeadSpec:
    """The per-token diffusion head: an adaLN MLP of ``depth`` residual blocks of ``width`` units."""

    channels: int
    condition_dim: int
    width: int
    depth: int
    frequency_dim: int = 256


@dataclass(frozen=True)
class LatentSpec:
    """How tokens relate to the VAE's latent: ``token = (latent - shift) * scale``, ``patch`` x ``patch`` cells each.

    ``stride`` is pixels per latent cell. ``rgb`` holds, if known, one (r, g, b) row per channel and a last row of
    biases: a linear map from the scaled latent to colours in [-1, 1], good enough for a preview.
    """

    channels: int = 16
    stride: int = 16
    patch: int = 1
    scale: float = 0.2325
    shift: float = 0.0
    rgb: tuple[tuple[float, float, float], ...] | None = None

    @property
    def token_dim(self) -> int:
        return self.channels * self.patch**2


@dataclass(frozen=True)
class MARSpec:
    """A class-conditional masked autoregressive model (spec of the published sizes: ``mar_spec('mar-b')``)."""

    name: str
    grid: tuple[int, int]
    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    classes: int
    buffer: int
    head: HeadSpec
    latent: LatentSpec = LatentSpec()
    diffusion: DiffusionSpec = DiffusionSpec()
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    class_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        pixels = self.latent.stride * self.latent.patch
        return self.grid[0] * pixels, self.grid[1] * pixels


@dataclass(frozen=True)
class VAESpec:
    """An LDM-layout KL autoencoder; ``*_attention`` are the levels with attention after each block."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    latent_channels: int
    embed_channels: int
    encoder_attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    image_channels: int = 3
    groups: int = 32
    norm_eps: float = 1e-6

    @property
    def stride(self) -> int:
        """Pixels per latent cell along one axis."""
        return 2 ** (len(self.multipliers) - 1)


KL16 = VAESpec(channels=128, multipliers=(1, 1, 2, 2, 4), blocks=2, latent_channels=16, embed_channels=16,
               encoder_attention=(4,))


def mar_spec(name: str) -> MARSpec:
    """The spec of a published size: ``mar-b``, ``mar-l`` or ``mar-h`` (256 px, 16 x 16 tokens, 1000 classes)."""
    for (dim, encoder, decoder, depth, width), known in VARIANTS.items():
        if known == name:
            head = HeadSpec(channels=16, condition_dim=dim, width=width, depth=depth)
            return MARSpec(name=name, grid=(16, 16), dim=dim, heads=HEADS_BY_WIDTH[dim], encoder_depth=encoder,
                           decoder_depth=decoder, classes=1000, buffer=64, head=head)
    raise GtRError(f"unknown model size '{name}': expected one of {', '.join(sorted(VARIANTS.values()))}")


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """Number of numbered children below ``prefix`` (highest index + 1)."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    found = [int(match.group(1)) for match in map(pattern.match, shapes) if match]
    return max(found, default=-1) + 1


def shape_of(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """The shape of tensor ``name``, checked for its rank.

    Raises GtRError when the tensor is missing or has another rank.
    """
    if name not in shapes:
        raise GtRError(f"tensor '{name}' is missing: the file is incomplete or of another architecture")
    shape = tuple(shapes[name])
    if len(shape) != rank or 0 in shape:
        raise GtRError(f"tensor '{name}' has shape {shape}, expected {rank} dimensions of at least 1")
    return shape


def is_mar(shapes: Shapes) -> bool:
    """Whether the names belong to a MAR state dict."""
    return "class_emb.weight" in shapes and "diffloss.net.input_proj.weight" in shapes


def is_vae(shapes: Shapes) -> bool:
    """Whether the names belong to an LDM-layout VAE."""
    return "decoder.conv_in.weight" in shapes and "post_quant_conv.weight" in shapes


def infer_mar_spec(shapes: Shapes, *, heads: int | None = None, **overrides) -> MARSpec:
    """Read a :class:`MARSpec` off tensor names and shapes (spec section 1.1).

    ``heads`` must be given for widths other than 768, 1024 and 1280. ``overrides`` replace inferred fields.
    Raises GtRError naming the tensor that does not fit.
    """
    if not is_mar(shapes):
        raise GtRError(f"not a MAR checkpoint: expected tensors such as 'class_emb.weight' and "
                       f"'diffloss.net.input_proj.weight', found {describe_names(shapes)}; choose a MAR file")
    classes, dim = shape_of(shapes, "class_emb.weight", 2)
    tokens = shape_of(shapes, "diffusion_pos_embed_learned", 3)[1]
    buffer = shape_of(shapes, "encoder_pos_embed_learned", 3)[1] - tokens
    token_dim = shape_of(shapes, "z_proj.weight", 2)[1]
    width = shape_of(shapes, "diffloss.net.input_proj.weight", 2)[0]
    depth = count_blocks(shapes, "diffloss.net.res_blocks")
    side = math.isqrt(tokens)
    if buffer < 1:
        raise GtRError(f"the encoder's position table leaves {buffer} buffer tokens for {tokens} tokens: "
                       "expected at least 1; the file is not a MAR checkpoint")
    if "grid" not in overrides and side * side != tokens:
        raise GtRError(f"{tokens} tokens are not a square grid: store 'gtr.grid' in the file's metadata")
    heads = heads or HEADS_BY_WIDTH.get(dim)
    if not heads:
        raise GtRError(f"the number of attention heads cannot be read off a width of {dim} (known: "
                       f"{', '.join(map(str, HEADS_BY_WIDTH))}): convert the file with --heads N")
    if dim % heads:
        raise GtRError(f"{heads} attention heads do not divide the width {dim}: correct 'gtr.heads'")
    encoder, decoder = count_blocks(shapes, "encoder_blocks"), count_blocks(shapes, "decoder_blocks")
    latent = overrides.pop("latent", LatentSpec(channels=token_dim))
    if latent.token_dim != token_dim:
        raise GtRError(f"tokens have {token_dim} values, but {latent.channels} latent channels with patch "
                       f"{latent.patch} make {latent.token_dim}: correct the file's metadata")
    spec = MARSpec(name=VARIANTS.get((dim, encoder, decoder, depth, width), f"mar-{dim}x{encoder}+{decoder}"),
                   grid=(side, side), dim=dim, heads=heads, encoder_depth=encoder, decoder_depth=decoder,
                   classes=classes, buffer=buffer, latent=latent,
                   head=HeadSpec(channels=token_dim, condition_dim=dim, width=width, depth=depth))
    spec = replace(spec, **overrides)
    if spec.tokens != tokens:
        raise GtRError(f"a grid of {spec.grid[0]} x {spec.grid[1]} needs {spec.tokens} positions, found {tokens}: "
                       "correct 'gtr.grid' in the file's metadata")
    return spec


def infer_vae_spec(shapes: Shapes) -> VAESpec:
    """Read a :class:`VAESpec` off tensor names and shapes (spec section 2.1). Raises GtRError."""
    if not is_vae(shapes):
        raise GtRError(f"not a KL VAE in LDM layout: expected tensors such as 'decoder.conv_in.weight' and "
                       f"'post_quant_conv.weight', found {describe_names(shapes)}; choose a kl16 file")
    channels, image_channels = shape_of(shapes, "encoder.conv_in.weight", 4)[:2]
    levels, blocks = count_blocks(shapes, "encoder.down"), count_blocks(shapes, "encoder.down.0.block")
    widths = [shape_of(shapes, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    if not levels or any(width % channels for width in widths) or channels % VAESpec.groups:
        raise GtRError(f"VAE level widths {widths} with base {channels} do not fit: expected multiples of the base, "
                       f"and the base a multiple of {VAESpec.groups} (group norm)")
    attention = {part: tuple(level for level in range(levels) if count_blocks(shapes, f"{part}.{level}.attn"))
                 for part in ("encoder.down", "decoder.up")}
    embed, latent = shape_of(shapes, "post_quant_conv.weight", 4)[1::-1]
    return VAESpec(channels=channels, multipliers=tuple(width // channels for width in widths), blocks=blocks,
                   latent_channels=latent, embed_channels=embed, image_channels=image_channels,
                   encoder_attention=attention["encoder.down"], decoder_attention=attention["decoder.up"])


def describe_names(shapes: Shapes, limit: int = 3) -> str:
    """A short description of a state dict for error messages."""
    names = list(shapes)
    head = ", ".join(f"'{name}'" for name in names[:limit])
    return f"{len(names)} tensors ({head}{', ...' if len(names) > limit else ''})" if names else "no tensors"
