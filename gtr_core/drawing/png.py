"""Writing 8-bit RGB pictures as PNG with the standard library (the core has no picture library)."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np

from ..errors import GtRError
from ..files import replace_file


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 -> the bytes of a PNG file."""
    height, width, channels = image.shape
    if image.dtype != np.uint8 or channels != 3:
        raise GtRError(f"a picture of {image.shape} {image.dtype}: expected (height, width, 3) uint8")
    rows = np.zeros((height, 1 + width * 3), np.uint8)
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8. Raises GtRError when that fails."""
    data = encode_png(image)
    replace_file(path, lambda beside: beside.write_bytes(data))


def _chunk(part: tuple[bytes, bytes]) -> bytes:
    kind, data = part
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
