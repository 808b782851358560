"""What a file is, told by its first bytes: suffixes lie, and downloads bring other things than weights."""

from __future__ import annotations

import os
import re
import stat
import struct
from enum import Enum
from pathlib import Path

from ..errors import GtRError

HEAD = 1024  # bytes that are looked at
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")


class Format(Enum):
    """What can be read."""

    SAFETENSORS = "safetensors"
    PICKLED = "torch.save"
    INDEX = "index of a sharded file"


UNPACK = "unpack it first"
MODEL = "choose the model's .safetensors or .pth file"
# (place, first bytes, what it is, what to do)
FOREIGN = (
    (0, b"GGUF", "a GGUF file (quantised weights of llama.cpp)", MODEL),
    (0, b"GGML", "a GGML file (quantised weights of llama.cpp)", MODEL),
    (0, b"\x1f\x8b", "compressed with gzip", UNPACK),
    (0, b"BZh", "compressed with bzip2", UNPACK),
    (0, b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"\x93NUMPY", "an array of numpy", MODEL),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (weights of Keras)", MODEL),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image", MODEL),
    (0, b"\xff\xd8\xff", "a JPEG image", MODEL),
    (0, b"%PDF", "a PDF document", MODEL),
    (0, b"PAR1", "a Parquet table", MODEL),
    (0, b"\x00\x05\x16\x07", "what macOS keeps beside a copied file, not the file", "choose the file without '._'"),
    (0, b"PK\x05\x06", "an empty zip archive", "download it again"),
    (0, b"PK\x07\x08", "one part of a split zip archive", "join its parts and unpack them"),
)
LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/\S+\s+(?:.*\s)*?oid sha256:[0-9a-f]+\s+size (\d+)")
PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")


def format_of(path: Path) -> Format:
    """The format of a file. Raises GtRError, in one line that says what it is instead and what to do."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise GtRError(f"{path} is a folder: give the file in it{_candidates(path)}")
        if not stat.S_ISREG(status.st_mode):
            raise GtRError(f"{path} is not a file but a device or a pipe: choose a model's file")
        with open(path, "rb") as file:
            start = file.read(HEAD)
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise GtRError(
                f"{path} is a link to {os.readlink(path)}, where there is no file: download or link it again"
            ) from error
        raise GtRError(f"no file at {path}: check the name, or put the model there") from error
    except PermissionError as error:
        raise GtRError(
            f"{path} may not be read by this user (permission denied): change its permissions, or copy it"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GtRError(f"no file at {path} ({reason}): check the name and the disk") from error
    return _recognise(path, start, status.st_size)


def _recognise(path: Path, start: bytes, size: int) -> Format:
    name = path.name
    if not start:
        raise GtRError(f"{name} is empty: it is damaged or truncated; download it again")
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if start[8:9] == b"{" and 2 <= length <= size - 8:
        return Format.SAFETENSORS
    if start[:4] == b"PK\x03\x04" or (start[0] == 0x80 and start[1:2] <= b"\x10"):
        return Format.PICKLED
    pointer = LFS.match(start)
    if pointer:
        raise GtRError(
            f"{name} is a Git LFS pointer, which stands for a file of {int(pointer[1])} bytes: fetch the content with "
            "'git lfs pull' in its folder, or download the file itself"
        )
    for place, signature, what, remedy in FOREIGN:
        if start.startswith(signature, place):
            raise GtRError(f"{name} is {what}: {remedy}")
    if not any(start) and size > 8:
        raise GtRError(f"{name} begins with zeros: its download has not finished; wait for it, or download it again")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.lower().startswith(PAGE):
        raise GtRError(
            f"{name} is a saved web page, not the file behind it: open its page, log in where that is asked for, and "
            "use the link that downloads the file"
        )
    if text[:1] == b"{" and _is_text(text):
        if b'"weight_map"' in start or name.endswith(".index.json"):
            return Format.INDEX
        raise GtRError(f"{name} is a JSON text{_quoted(text)}, not weights: {MODEL}")
    if path.suffix.lower() in SAFETENSORS_SUFFIXES and not _is_text(text):
        return Format.SAFETENSORS  # whose reader says what is wrong with it
    if _is_text(text):
        raise GtRError(f"{name} is a text{_quoted(text)}, not weights: download it again, and read what the site says")
    raise GtRError(
        f"{name} is neither a safetensors file nor one of torch.save, and was not executed: it is damaged or "
        f"truncated, or of another program; {MODEL}"
    )


def _is_text(start: bytes) -> bool:
    """Whether bytes are printable: a multi-byte character may be cut at their end."""
    try:
        text = start.decode("utf-8") if len(start) < HEAD - 16 else start[:-4].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return False
    return len(text) > 8 and all(character.isprintable() or character in "\t\r\n" for character in text)


def _quoted(text: bytes) -> str:
    """Its first words, for a message."""
    words = text[:60].decode("utf-8", "ignore").split()
    return f" ('{' '.join(words)} ...')" if words else ""


def _candidates(folder: Path) -> str:
    """Model files in a folder, for a message."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith((".safetensors", ".pth", ".pt", ".ckpt")))
    except OSError:
        return ""
    return f", such as {', '.join(names[:3])}" if names else ""
