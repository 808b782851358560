"""Writing 8-bit RGB images and figures as PNG."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import GtRError
from ..files import replace_file


def encode_png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """(H, W, 3) uint8 -> the bytes of a PNG file, with ``text`` as its metadata. Equal input gives equal bytes."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise GtRError(f"an image of {image.shape} {image.dtype}: expected (height, width, 3) uint8")
    metadata, data = PngInfo(), io.BytesIO()
    for key, value in (text or {}).items():
        metadata.add_text(key, value)
    Image.fromarray(np.ascontiguousarray(image)).save(data, "PNG", pnginfo=metadata)
    return data.getvalue()


def write_png(path: str | os.PathLike, image: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write (H, W, 3) uint8 so that no reader sees half a file. Raises GtRError when that fails."""
    data = encode_png(image, text)
    replace_file(path, lambda beside: beside.write_bytes(data))
