"""Files of torch.save: the zip archive and the format before torch 1.6, read by one reader and mapped in place.

The archive must be laid out exactly as torch writes it, so that no other reader of the same file can see another one
in it: what is checked is what is loaded.
"""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from ..errors import GtRError, first_line
from .pickles import LONGEST_PICKLE, Refused, TypedStorage, interpret
from .stored import FileInMemory, MappedFile, Storage

LONGEST_DIRECTORY = 32 << 20  # bytes; a file of 100,000 tensors has less than 10 MiB
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
END, END_64, LOCATOR = "<4s4H2LH", "<4sQ2H2L4Q", "<4sLQL"
LOCAL = "<4s5H3L2H"
ENCRYPTED = 0x1


def read_pickled(path: Path) -> Any:
    """What a file of torch.save holds, with a StoredView for every tensor; nothing in it is executed.

    Raises GtRError.
    """
    try:
        file = MappedFile(path)
        return _archive(file) if file.data[:2] == b"PK" else _legacy(file)
    except Refused as error:
        raise GtRError(
            f"{path.name} {error} and was not executed: use a file of plain weights from a source that you trust"
        ) from error
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        OverflowError,
        NotImplementedError,
        EOFError,
        MemoryError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise GtRError(
            f"{path.name} is not a readable checkpoint ({first_line(error)}): it is damaged or truncated; "
            "download it again"
        ) from error


# The zip archive


def _archive(file: MappedFile) -> Any:
    data = file.data
    entries = _entries(data, _directory(data))
    (name,) = (name for name in entries if name.endswith("/data.pkl"))
    folder = name.removesuffix("data.pkl")
    order = entries.get(f"{folder}byteorder")
    if order is not None and data[slice(*order)].strip() != b"little":
        raise Refused("was written on a big-endian machine, which is not supported,")
    start, end = entries[name]
    if end - start > LONGEST_PICKLE:
        raise Refused(f"holds a pickle of {end - start} bytes, expected at most {LONGEST_PICKLE},")
    storages: dict[str, Storage] = {}
    content, _ = interpret(data, start, end, storages)
    for storage in storages.values():
        start, end = entries.get(f"{folder}data/{storage.key}", (0, -1))
        if end - start != storage.nbytes:
            raise ValueError(f"no storage '{storage.key[:50]}' of {storage.nbytes} bytes")
        storage.file, storage.start = file, start
    return content


def _directory(data: mmap.mmap) -> tuple[int, int]:
    """Where the directory begins and ends; it must end where its end record, the file's last 22 bytes, begins."""
    size, short = len(data), struct.calcsize(END)
    if size < short:
        raise ValueError("no room for a directory")
    signature, disk, first, here, count, length, start, comment = struct.unpack_from(END, data, size - short)
    if signature != b"PK\x05\x06" or disk or first or comment or here != count:
        raise ValueError("no directory at its end")
    end = size - short
    long, locator = struct.calcsize(END_64), struct.calcsize(LOCATOR)
    if end >= locator + long and data[end - locator : end - locator + 4] == b"PK\x06\x07":
        end -= locator
        _, disk, start_64, disks = struct.unpack_from(LOCATOR, data, end)
        end -= long
        signature, rest, _, _, first, second, here, count, length, start = struct.unpack_from(END_64, data, end)
        wrong = signature != b"PK\x06\x06" or rest != long - 12 or start_64 != end
        if wrong or disk or first or second or disks != 1 or here != count:
            raise ValueError("two directories")
    if start + length != end:
        raise Refused("is an archive within another file, or two archives in one,")
    if length > LONGEST_DIRECTORY:
        raise Refused(f"is an archive with a directory of {length} bytes, expected at most {LONGEST_DIRECTORY},")
    return start, end


def _entries(data: mmap.mmap, directory: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Name -> where its bytes begin and end. Raises unless the entries follow each other, stored as they are."""
    with zipfile.ZipFile(_Seekable(data)) as archive:
        listed = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    _check_names([entry.orig_filename for entry in listed])
    found: dict[str, tuple[int, int]] = {}
    position = 0
    for entry in listed:
        name = entry.orig_filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ENCRYPTED:
            raise Refused(
                f"holds compressed or overlapping entries ({name[:50]}), which torch.save never writes (save it "
                "again with torch.save),"
            )
        start, length = entry.header_offset, struct.calcsize(LOCAL)
        local = struct.unpack_from(LOCAL, data, start)
        signature, names, extra = local[0], local[-2], local[-1]
        begin = start + length + names + extra
        end = begin + entry.file_size
        if entry.compress_size != entry.file_size or start < position or end > directory[0]:
            raise Refused("holds compressed or overlapping entries, which torch.save never writes,")
        if (
            signature != b"PK\x03\x04"
            or (not found and start)
            or data[start + length : begin - extra] != name.encode(_encoding(entry))
        ):
            raise Refused("is an archive that reads in two ways,")
        position = end
        found[name] = begin, end
    return found


def _encoding(entry: zipfile.ZipInfo) -> str:
    return "utf-8" if entry.flag_bits & 0x800 else "cp437"


def _check_names(names: list[str]) -> None:
    """Raises unless these are the entries of one torch.save, each of them once."""
    pickles = [name for name in names if name.lower().rpartition("/")[2] == "data.pkl"]
    folder = pickles[0].rpartition("/")[0] if pickles else ""
    parts = {name.removeprefix(f"{folder}/").partition("/")[0].lower() for name in names}
    if parts & {"constants.pkl", "code"}:
        raise Refused("is a TorchScript program (torch.jit.save), not a checkpoint,")
    if not pickles:
        kind = "a zip archive of other files" if names else "an empty archive"
        raise Refused(f"is {kind} (no data.pkl of torch.save in it); if it holds a model, unpack it; it was not opened")
    if len(pickles) > 1 or not folder or "/" in folder or not pickles[0].endswith("/data.pkl"):
        raise Refused(f"holds {pickles[0][:50]!r}, where torch.save writes one data.pkl,")
    if not all(name.startswith(f"{folder}/") for name in names):
        raise Refused("is an archive with entries beside those of torch.save,")
    if len({name.lower() for name in names}) < len(names):
        raise Refused("is an archive that holds a name twice,")


class _Seekable:
    """What zipfile needs of a file, on a mapped one."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: len(self.data)}[whence]
        if base + offset < 0:
            raise OSError("a place before the file")
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, count: int = -1) -> bytes:
        end = len(self.data) if count < 0 else min(len(self.data), self.position + count)
        found = self.data[self.position : end]
        self.position = max(self.position, end)
        return found

    def close(self) -> None:
        """The mapped file is its reader's."""


# Before torch 1.6


def legacy_storage(data: Any) -> TypedStorage:
    """The storage that is alone in bytes of this format, as plain pickles hold the numbers of a tensor.

    Raises ValueError, or what a broken pickle raises."""
    content = _legacy(FileInMemory(data)) if isinstance(data, bytes) else None
    if not isinstance(content, TypedStorage):
        raise ValueError("bytes that are not a tensor's")
    return content


def _legacy(file: MappedFile | FileInMemory) -> Any:
    """Four pickles (magic number, version, machine, content), the keys of the storages, and their bytes."""
    data = file.data
    storages: dict[str, Storage] = {}
    magic, position = interpret(data, 0, len(data), {})
    if isinstance(magic, dict) and any(isinstance(entry, dict) and "channel" in entry for entry in magic.values()):
        raise Refused("holds latent statistics, not weights (give it to convert with --stats),")
    if type(magic) is not int or magic != MAGIC:
        raise Refused("is a plain pickle, not a file of torch.save (save it again with torch.save),")
    version, position = interpret(data, position, len(data), {})
    machine, position = interpret(data, position, len(data), {})
    if type(version) is not int or version != VERSION or not isinstance(machine, dict):
        raise Refused("is of an unknown version of torch")
    if machine.get("little_endian") is not True:
        raise Refused("was written on a big-endian machine, which is not supported,")
    content, position = interpret(data, position, len(data), storages)
    keys, position = interpret(data, position, len(data), {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise ValueError("its list of storages is another than its tensors need")
    for key in keys:
        storage = storages.pop(key)
        (count,) = struct.unpack_from("<q", data, position)
        start = position + 8
        position = start + storage.nbytes
        if position > len(data) or count != storage.count:
            raise ValueError(f"storage '{key[:50]}' is not whole")
        storage.file, storage.start = file, start
    return content
