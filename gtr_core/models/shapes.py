"""Inference of specs from the names and shapes of a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..diffusion.head import HeadSpec
from ..errors import GtRError
from .latents import LatentSpec

# Head counts leave no trace in tensor shapes; these widths are the published MAR-B, MAR-L and MAR-H.
HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16}
# Names and shapes of a state dict.
Shapes = Mapping[str, tuple[int, ...]]

# Far above every published model, far below what could not be built.
MOST_BLOCKS, LARGEST_SIDE = 1024, 2**24


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """Number of numbered children below ``prefix``. Raises GtRError unless they are 0, 1, ..., n - 1, n <= 1024."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,9})\.")
    found = {int(match.group(1)) for match in map(pattern.match, shapes) if match}
    if found and max(found) + 1 != len(found):
        raise GtRError(
            f"'{prefix}' has {len(found)} blocks, but one is number {max(found)}: blocks are missing; "
            "the file is incomplete"
        )
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


def infer_head_spec(shapes: Shapes, dim: int) -> HeadSpec:
    """The diffusion head below ``diffloss.net``."""
    width, channels = shape_of(shapes, "diffloss.net.input_proj.weight", 2)
    return HeadSpec(
        channels=channels, condition_dim=dim, width=width, depth=count_blocks(shapes, "diffloss.net.res_blocks")
    )


def head_count(dim: int, heads: int | None) -> int:
    """The given number of attention heads, or the one known for the width. Raises GtRError."""
    if heads is None:
        heads = HEADS_BY_WIDTH.get(dim)
    if heads is None:
        raise GtRError(
            f"the number of attention heads cannot be read off a width of {dim} (known: "
            f"{', '.join(map(str, HEADS_BY_WIDTH))}): convert the file with --heads N"
        )
    if heads < 1 or dim % heads:
        raise GtRError(
            f"{heads} attention heads do not divide the width {dim}: convert the file with the right --heads N"
        )
    return heads


def check_latent(latent: LatentSpec, head: HeadSpec) -> None:
    """Raises GtRError when the latent's channels do not make the head's tokens."""
    if latent.token_dim != head.channels:
        raise GtRError(
            f"tokens have {head.channels} values, but {latent.channels} latent channels with patch "
            f"{latent.patch} make {latent.token_dim}: convert the file with the right --patch N"
        )


def describe_names(shapes: Shapes, limit: int = 3) -> str:
    """A short description of a state dict for error messages."""
    names = list(shapes)
    head = ", ".join(f"'{name}'" for name in names[:limit])
    return f"{len(names)} tensors ({head}{', ...' if len(names) > limit else ''})" if names else "no tensors"
