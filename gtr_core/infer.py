"""Inference of specs from the names and shapes of a state dict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from .errors import GtRError
from .spec import HEADS_BY_WIDTH, VARIANTS, HeadSpec, LatentSpec, LightGenSpec, MARSpec, ModelSpec, VAESpec

Shapes = Mapping[str, tuple[int, ...]]
# Far above every published model, far below what could not be built.
MOST_BLOCKS, LARGEST_SIDE = 1024, 2**24


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """Number of numbered children below ``prefix``. Raises GtRError unless they are 0, 1, ..., n - 1, n <= 1024."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
    found = {int(match.group(1)) for match in map(pattern.match, shapes) if match}
    if found and max(found) + 1 != len(found):
        raise GtRError(f"'{prefix}' has {len(found)} blocks, but one is number {max(found)}: blocks are missing; "
                       "the file is incomplete")
    if len(found) > MOST_BLOCKS:
        raise GtRError(f"'{prefix}' has {len(found)} blocks, expected at most {MOST_BLOCKS}: the file is not a model")
    return len(found)


def shape_of(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """The shape of tensor ``name``, checked for its rank.

    Raises GtRError when the tensor is missing or has another rank.
    """
    if name not in shapes:
        raise GtRError(f"tensor '{name}' is missing: the file is incomplete or of another architecture")
    shape = tuple(shapes[name])
    if len(shape) != rank or not all(1 <= side <= LARGEST_SIDE for side in shape):
        raise GtRError(f"tensor '{name}' has shape {shape}, expected {rank} dimensions from 1 to {LARGEST_SIDE}")
    return shape


def is_mar(shapes: Shapes) -> bool:
    """Whether the names belong to a MAR state dict."""
    return "class_emb.weight" in shapes and "diffloss.net.input_proj.weight" in shapes


def is_lightgen(shapes: Shapes) -> bool:
    """Whether the names belong to a LightGen state dict."""
    return "last_embed.weight" in shapes and "text_emb.text_proj.linear_1.weight" in shapes


def is_vae(shapes: Shapes) -> bool:
    """Whether the names belong to an LDM-layout VAE."""
    return "decoder.conv_in.weight" in shapes and "encoder.conv_in.weight" in shapes


def infer_mar_spec(shapes: Shapes, *, heads: int | None = None, **overrides) -> MARSpec:
    """Read a :class:`MARSpec` off tensor names and shapes (docs/upstream.md 1.1).

    ``heads`` must be given for widths other than 768, 1024 and 1280. ``overrides`` replace inferred fields.
    Raises GtRError naming the tensor that does not fit.
    """
    if not is_mar(shapes):
        raise GtRError(f"not a MAR checkpoint: expected tensors such as 'class_emb.weight' and "
                       f"'diffloss.net.input_proj.weight', found {describe_names(shapes)}; choose a MAR file")
    classes, dim = shape_of(shapes, "class_emb.weight", 2)
    heads = head_count(dim, heads)
    tokens = shape_of(shapes, "diffusion_pos_embed_learned", 3)[1]
    buffer = shape_of(shapes, "encoder_pos_embed_learned", 3)[1] - tokens
    head = infer_head_spec(shapes, dim)
    side = math.isqrt(tokens)
    if buffer < 1:
        raise GtRError(f"the encoder's position table leaves {buffer} buffer tokens for {tokens} tokens: "
                       "expected at least 1; the file is not a MAR checkpoint")
    if "grid" not in overrides and side * side != tokens:
        raise GtRError(f"{tokens} tokens are not a square grid: store 'gtr.grid' in the file's metadata")
    encoder, decoder = count_blocks(shapes, "encoder_blocks"), count_blocks(shapes, "decoder_blocks")
    latent = overrides.pop("latent", LatentSpec(channels=head.channels))
    check_latent(latent, head)
    spec = MARSpec(name=VARIANTS.get((dim, encoder, decoder, head.depth, head.width), f"mar-{dim}x{encoder}+{decoder}"),
                   grid=(side, side), dim=dim, heads=heads, encoder_depth=encoder, decoder_depth=decoder,
                   classes=classes, buffer=buffer, latent=latent, head=head)
    check_depths(spec, stated=overrides.pop("depths", None))
    spec = replace(spec, **overrides)
    if len(spec.class_names) not in (0, classes):
        raise GtRError(f"{len(spec.class_names)} class names for {classes} classes: correct the file's metadata")
    if spec.tokens != tokens:
        raise GtRError(f"a grid of {spec.grid[0]} x {spec.grid[1]} needs {spec.tokens} positions, found {tokens}: "
                       "correct 'gtr.grid' in the file's metadata")
    return spec


def infer_lightgen_spec(shapes: Shapes, *, heads: int | None = None, **overrides) -> LightGenSpec:
    """Read a :class:`LightGenSpec` off tensor names and shapes (docs/upstream.md 3.1). Raises GtRError."""
    if not is_lightgen(shapes):
        raise GtRError(f"not a LightGen checkpoint: expected tensors such as 'last_embed.weight' and "
                       f"'text_emb.text_proj.linear_1.weight', found {describe_names(shapes)}; choose a LightGen file")
    dim, caption_dim = shape_of(shapes, "text_emb.text_proj.linear_1.weight", 2)
    head = infer_head_spec(shapes, dim)
    table = math.isqrt(shape_of(shapes, "encoder_pos_embed_learned", 3)[1])
    latent = overrides.pop(
        "latent", replace(LightGenSpec.latent, channels=head.channels // LightGenSpec.latent.patch**2)
    )
    check_latent(latent, head)
    depths = {f"{part}_depth": count_blocks(shapes, prefix) for part, prefix in (
        ("encoder", "encoder_blocks"), ("decoder", "decoder_blocks"), ("cross", "cross_attn_blocks"),
        ("aligner", "text_emb.text_aligner"))}
    spec = LightGenSpec(name="lightgen", dim=dim, heads=head_count(dim, heads), caption_dim=caption_dim, head=head,
                        latent=latent, table=table, **depths)
    check_depths(spec, stated=overrides.pop("depths", None))
    return replace(spec, **overrides)


def infer_head_spec(shapes: Shapes, dim: int) -> HeadSpec:
    """The diffusion head below ``diffloss.net``."""
    width, channels = shape_of(shapes, "diffloss.net.input_proj.weight", 2)
    return HeadSpec(channels=channels, condition_dim=dim, width=width,
                    depth=count_blocks(shapes, "diffloss.net.res_blocks"))


def check_depths(spec: ModelSpec, stated: tuple[int, ...] | None) -> None:
    """A file that lost its last blocks still looks like a model, of fewer blocks. Raises GtRError.

    Compares with the depths stored in the metadata; without them encoder and decoder must be equally deep, as in
    all published models.
    """
    found = block_depths(spec)
    if min(found) < 1 or (stated is not None and found != tuple(stated)):
        raise GtRError(f"{found} blocks (encoder, decoder, head, ...), expected "
                       f"{tuple(stated) if stated else 'at least 1 each'}: blocks are missing; the file is incomplete")
    if stated is None and spec.encoder_depth != spec.decoder_depth:
        raise GtRError(
            f"{spec.encoder_depth} encoder and {spec.decoder_depth} decoder blocks, expected as many of both: "
            "blocks are missing; the file is incomplete"
        )


def block_depths(spec: ModelSpec) -> tuple[int, ...]:
    """Numbers of blocks: encoder, decoder, head, and LightGen's cross-attention and aligner."""
    shared = (spec.encoder_depth, spec.decoder_depth, spec.head.depth)
    return (*shared, spec.cross_depth, spec.aligner_depth) if isinstance(spec, LightGenSpec) else shared


def head_count(dim: int, heads: int | None) -> int:
    """The given number of attention heads, or the one known for the width. Raises GtRError."""
    if heads is None:
        heads = HEADS_BY_WIDTH.get(dim)
    if heads is None:
        raise GtRError(f"the number of attention heads cannot be read off a width of {dim} (known: "
                       f"{', '.join(map(str, HEADS_BY_WIDTH))}): convert the file with --heads N")
    if heads < 1 or dim % heads:
        raise GtRError(
            f"{heads} attention heads do not divide the width {dim}: convert the file with the right --heads N"
        )
    return heads


def check_latent(latent: LatentSpec, head: HeadSpec) -> None:
    """Raises GtRError when the latent's channels do not make the head's tokens."""
    if latent.token_dim != head.channels:
        raise GtRError(f"tokens have {head.channels} values, but {latent.channels} latent channels with patch "
                       f"{latent.patch} make {latent.token_dim}: correct the file's metadata")


def infer_vae_spec(shapes: Shapes, *, groups: int = VAESpec.groups) -> VAESpec:
    """Read a :class:`VAESpec` off tensor names and shapes (docs/upstream.md 2.1). Raises GtRError.

    Shapes do not show the number of norm ``groups``: LDM's is 32, other files carry theirs in the metadata.
    """
    if not is_vae(shapes):
        raise GtRError(f"not a KL VAE in LDM layout: expected tensors such as 'decoder.conv_in.weight' and "
                       f"'encoder.conv_in.weight', found {describe_names(shapes)}; choose the model's VAE file")
    channels, image_channels = shape_of(shapes, "encoder.conv_in.weight", 4)[:2]
    levels, blocks = count_blocks(shapes, "encoder.down"), count_blocks(shapes, "encoder.down.0.block")
    widths = [shape_of(shapes, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    if not levels or any(width % channels for width in widths) or channels % groups:
        raise GtRError(f"VAE level widths {widths} with base {channels} do not fit: expected multiples of the base, "
                       f"and the base a multiple of {groups} (group norm)")
    attention = {part: tuple(level for level in range(levels) if count_blocks(shapes, f"{part}.{level}.attn"))
                 for part in ("encoder.down", "decoder.up")}
    latent = shape_of(shapes, "decoder.conv_in.weight", 4)[1]
    quant = "post_quant_conv.weight" in shapes
    embed = shape_of(shapes, "post_quant_conv.weight", 4)[1] if quant else latent
    return VAESpec(channels=channels, multipliers=tuple(width // channels for width in widths), blocks=blocks,
                   latent_channels=latent, embed_channels=embed, image_channels=image_channels, quant=quant,
                   groups=groups, encoder_attention=attention["encoder.down"],
                   decoder_attention=attention["decoder.up"])


def describe_names(shapes: Shapes, limit: int = 3) -> str:
    """A short description of a state dict for error messages."""
    names = list(shapes)
    head = ", ".join(f"'{name}'" for name in names[:limit])
    return f"{len(names)} tensors ({head}{', ...' if len(names) > limit else ''})" if names else "no tensors"
