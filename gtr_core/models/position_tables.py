"""Position tables of a square image, resized to another grid.

Along each axis the resize is a matrix, so it needs no operation of the device that not all devices have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..device import upload


def resized_table(table: Tensor, axes: tuple[int, int], weights: Callable[[int, int], np.ndarray]) -> Tensor:
    """table (side * side, D) float32 -> (h * w, D) for the ``axes`` (h, w), by raster position.

    ``weights(side, length)`` are those of an axis: :func:`bicubic_weights` or :func:`bilinear_weights`.
    """
    side = round(len(table) ** 0.5)
    square = rearrange(table, "(p q) d -> p q d", p=side)
    rows, columns = (upload(torch.from_numpy(weights(side, length)), table.device) for length in axes)
    return rearrange(torch.einsum("hp, pqd, wq -> hwd", rows, square, columns), "h w d -> (h w) d")


@lru_cache(maxsize=64)
def bicubic_weights(side: int, length: int) -> np.ndarray:
    """What LightGen's resize of ``side`` values to ``length`` makes of each of them, (length, side) float32.

    By an explicit factor, not a size: it defines the sampling grid that the model was trained with.
    """
    return _weights(side, scale_factor=((length + 0.1) / side, 1.0), mode="bicubic")


@lru_cache(maxsize=64)
def bilinear_weights(side: int, length: int) -> np.ndarray:
    """What a bilinear resize of ``side`` values to ``length`` makes of each of them, (length, side) float32."""
    return _weights(side, size=(length, 1), mode="bilinear", align_corners=False)


def _weights(side: int, **how) -> np.ndarray:
    """Torch's own resize, of every value alone."""
    values = torch.eye(side, device="cpu").view(1, side, side, 1)
    return F.interpolate(values, **how)[0, :, :, 0].T.contiguous().numpy()
