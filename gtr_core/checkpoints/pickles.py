"""Original checkpoints (.pth, .pt, .ckpt): scanned opcode by opcode, then read by torch's restricted unpickler.

The scan executes nothing. It lets pass what training code saves, and nothing else: tensors, plain containers and the
names below. It also refuses what the unpickler would read but no machine could hold or finish: compressed entries,
and tuples that hold each other until their hash takes for ever.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import GtRError, first_line

# The training code saves its arguments beside the weights.
ALLOWED_GLOBALS = [argparse.Namespace]
NAMES = {
    "collections OrderedDict",
    "argparse Namespace",
    "_codecs encode",
    "torch Size",
    "torch device",
    "torch.nn.parameter Parameter",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    *(
        f"torch {kind}Storage"
        for kind in (
            "Float",
            "Half",
            "BFloat16",
            "Double",
            "Long",
            "Int",
            "Short",
            "Char",
            "Byte",
            "Bool",
            "ComplexFloat",
            "ComplexDouble",
        )
    ),
    *(f"torch {dtype}" for dtype in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")),
}

# What torch.save writes: protocol 2.
OPCODES = frozenset(
    (
        "PROTO GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 "
        "NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT BININT BININT1 BININT2 BINFLOAT BINUNICODE "
        "SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1 STOP "
    ).split()
)
LONGEST_PICKLE = 16 << 20  # bytes; the largest training checkpoints have less than 1 MiB beside their tensors
LARGEST_TUPLE = 10_000  # objects in a tuple and in those inside it
LEGACY_PICKLES = 5  # magic number, version, machine, content, storage keys


def read_pickle(path: Path) -> Any:
    """What a checkpoint holds, on the CPU; nothing in it is executed. Raises GtRError."""
    try:
        archive = zipfile.is_zipfile(path)
        _scan_archive(path) if archive else _scan_legacy(path)
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive or None)
    except pickle.UnpicklingError as error:
        raise GtRError(
            f"{path.name} asks for objects other than tensors and was not executed ({first_line(error)}): "
            "use a .safetensors file from a source that you trust"
        ) from error
    except GtRError:
        raise
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        ArithmeticError,
        MemoryError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise GtRError(
            f"{path.name} is not a readable checkpoint ({first_line(error)}): it is damaged or truncated; "
            "download it again"
        ) from error


def scan(data: BinaryIO) -> None:
    """Read one pickle without executing it. Raises pickle.UnpicklingError, ValueError or IndexError.

    Every entry of the stack is the number of objects that it stands for.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name, before = opcode.name, opcode.stack_before
        if name not in OPCODES:
            raise pickle.UnpicklingError(f"opcode {name}")
        if name == "GLOBAL" and argument not in NAMES:
            raise pickle.UnpicklingError(f"it wants {argument.replace(' ', '.', 1)}")
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("BINPUT"):
            memo[argument] = stack[-1]
        elif name.endswith("BINGET"):
            stack.append(memo[argument])
        elif name != "PROTO":
            slices = pickletools.markobject in before
            taken = len(stack) - marks.pop() + before.index(pickletools.markobject) if slices else len(before)
            if taken > len(stack):
                raise ValueError(f"{name} takes more than there is")
            weight = 1 + sum(stack[len(stack) - taken :])
            if name.startswith("TUPLE") and weight > LARGEST_TUPLE:
                raise pickle.UnpicklingError(f"a tuple of more than {LARGEST_TUPLE} objects")
            del stack[len(stack) - taken :]
            stack.append(weight)


def _scan_archive(path: Path) -> None:
    """Raises unless all entries lie in the file as they are, and its pickles pass the scan."""
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None or sum(entry.file_size for entry in entries) > size:
            raise GtRError(
                f"{path.name} holds compressed or overlapping entries"
                f"{'' if packed is None else f' ({packed.filename})'}, which torch.save never writes: it "
                "was not opened; save it again with torch.save"
            )
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > LONGEST_PICKLE:
                    raise pickle.UnpicklingError(
                        f"{entry.filename} has {entry.file_size} bytes, expected at most {LONGEST_PICKLE}"
                    )
                scan(io.BytesIO(archive.read(entry)))


def _scan_legacy(path: Path) -> None:
    """Scan the pickles at the start of a file in torch's format before 1.6."""
    with open(path, "rb") as file:
        start = io.BytesIO(file.read(LONGEST_PICKLE))
    for _ in range(LEGACY_PICKLES):
        scan(start)
