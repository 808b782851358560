"""Pickles as data: an interpreter that builds plain values and stand-ins, and never imports or calls anything.

Everything in a pickle that is not a number, a text, a container or a tensor of torch.save becomes an :class:`Opaque`,
which is a name and what was stored with it. What a pickle may take is bounded before it grows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .stored import Storage, StoredView

LONGEST_PICKLE = 64 << 20  # bytes
MOST_STEPS, MOST_REMEMBERED = 4_000_000, 500_000
STOP = ord(".")
LONGEST_TEXT = 4096  # bytes of a text that is kept; longer ones are stand-ins
LONGEST_NAME = 256  # bytes of the name of a module or class
LONGEST_NUMBER = 16  # bytes

# Called while a file is opened, these run code, change files or reach the network: no checkpoint needs them.
EXECUTING = frozenset(
    "_posixsubprocess asyncio bdb cffi code codeop commands cProfile ctypes distutils ftplib http imp importlib "
    "marshal nt os pdb pip pkgutil popen2 posix profile pty pydoc runpy setuptools shutil smtplib socket socketserver "
    "ssl subprocess sys tempfile timeit trace urllib venv webbrowser xmlrpc zipimport".split()
)
EXECUTING_BUILTINS = frozenset("__import__ apply breakpoint compile eval exec execfile file input open".split())
BUILTINS = ("builtins", "__builtin__")


class Refused(ValueError):
    """The pickle is not what torch.save writes; the message completes 'FILE ... and was not executed'."""


class Name:
    """A module's name in a pickle, which is not imported."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def executes(self) -> bool:
        """Whether calling it does more than to make a value."""
        if self.module in BUILTINS:
            return self.name.partition(".")[0] in EXECUTING_BUILTINS
        return self.module.partition(".")[0] in EXECUTING or self.module.startswith(("torch.hub", "torch.utils.cpp_"))


class Opaque:
    """An object that was not made: what it is, and what was stored with it (``values`` given to its class, ``entries``
    under texts, ``state``), to be looked through for tensors."""

    __slots__ = ("kind", "values", "entries", "state")

    def __init__(self, kind: str, values: Sequence = ()) -> None:
        self.kind = kind
        self.values = values
        self.entries: dict[str, Any] = {}
        self.state: Any = None

    def __str__(self) -> str:
        return self.kind


class Skipped:
    """A value that no tensor hides in: a set, bytes, a long text, a huge number."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __str__(self) -> str:
        return self.kind


TEXT, BYTES, NUMBER, SET = map(Skipped, ("long text", "byte string", "huge number", "set"))


class TypedStorage:
    """A storage as a pickle refers to it; its dtype is None where tensors bring their own."""

    __slots__ = ("storage", "dtype")

    def __init__(self, storage: Storage, dtype: torch.dtype | None) -> None:
        self.storage, self.dtype = storage, dtype


STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# Tensors of these dtypes name them beside an untyped storage.
DTYPES = (
    "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu uint16 uint32 uint64 float32 float16 "
    "bfloat16 float64 int64 int32 int16 int8 uint8 bool complex64 complex128"
).split()


def interpret(
    data,
    start: int,
    end: int,
    storages: dict[str, Storage],
    *,
    calls: Mapping[tuple[str, str], Callable[..., Any]] | None = None,
    longest_bytes: int = 0,
) -> tuple[Any, int]:
    """The value of the pickle in ``data[start:end]``, and where it ends; its storages are added to ``storages``.

    ``data`` is bytes or a mapped file. ``calls`` are functions of ours that stand for names of modules; byte strings
    of up to ``longest_bytes`` are kept. Raises Refused, or ValueError, IndexError or struct.error for a broken pickle.
    """
    reader = _Interpreter(data, start, min(end, start + LONGEST_PICKLE), storages)
    reader.calls, reader.longest_bytes = calls or {}, longest_bytes
    return reader.run(), reader.position


class _Interpreter:
    def __init__(self, data, start: int, end: int, storages: dict[str, Storage]) -> None:
        self.data, self.position, self.end = data, start, end
        self.storages = storages
        self.calls: Mapping[tuple[str, str], Callable[..., Any]] = {}
        self.longest_bytes = 0
        self.steps = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        data = self.data
        if self.byte() != 0x80:
            raise Refused("is a pickle of protocol 0 or 1, expected 2 to 5,")
        protocol = self.byte()
        if not 2 <= protocol <= 5:
            raise Refused(f"is a pickle of protocol {protocol}, expected 2 to 5,")
        while True:
            if self.position >= self.end:
                raise ValueError("a pickle without an end")
            code = data[self.position]
            self.position += 1
            if code == STOP:
                if self.marks:
                    raise ValueError("a pickle that ends inside a list")
                return self.pop(1)[0]
            handler = HANDLERS.get(code)
            if handler is None:
                raise Refused(f"holds a pickle with the opcode {bytes([code])!r}, which torch.save never writes,")
            self.spend(1)
            handler(self)

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise Refused(f"holds a pickle of more than {MOST_STEPS} steps")

    # Reading

    def take(self, count: int) -> bytes:
        self.position += count
        if self.position > self.end:
            raise ValueError("a pickle that ends too early")
        return bytes(self.data[self.position - count : self.position])

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > self.end:
            raise ValueError("a pickle that ends too early")

    def text(self, count: int) -> Any:
        if count > LONGEST_TEXT:
            self.skip(count)
            return TEXT
        try:
            return self.take(count).decode("utf-8")
        except UnicodeDecodeError:
            return TEXT

    def line(self) -> str:
        found = self.data.find(b"\n", self.position, min(self.end, self.position + LONGEST_NAME + 1))
        if found < 0:
            raise ValueError("a name without an end")
        name = self.take(found - self.position).decode("utf-8")
        self.position += 1
        return name

    # The stack

    def pop(self, count: int) -> list:
        """The last values, of those above the last mark."""
        at = len(self.stack) - count
        if at < (self.marks[-1] if self.marks else 0):
            raise IndexError("a pickle that takes more than there is")
        found = self.stack[at:]
        del self.stack[at:]
        return found

    def pop_mark(self) -> list:
        at = self.marks.pop()
        found = self.stack[at:]
        del self.stack[at:]
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise IndexError("a pickle that takes more than there is")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        if len(self.memo) >= MOST_REMEMBERED:
            raise Refused(f"holds a pickle that refers to more than {MOST_REMEMBERED} objects")
        self.memo[index] = self.top()

    # Containers

    def append(self, values: list) -> None:
        """To a list; what another container would take is left out."""
        target = self.top()
        if isinstance(target, list):
            target.extend(values)

    def set_items(self, pairs: list) -> None:
        """Entries under texts only, so that no hash is the file's choice."""
        target = self.top()
        entries = target.entries if isinstance(target, Opaque) else target
        if isinstance(entries, dict):
            entries.update(_texts(pairs))

    def build(self) -> None:
        """State for the object below it: kept for stand-ins, of no use to a container."""
        (state,) = self.pop(1)
        target = self.top()
        if isinstance(target, Opaque):
            target.state = state[0] if isinstance(state, tuple) and len(state) == 2 else state

    # Objects

    def global_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > LONGEST_NAME:
            raise ValueError("a class whose name is not a short text")
        self.push(Name(module, name))

    def call(self) -> None:
        """Tensors and dictionaries are made here, anything else is a stand-in."""
        function, values = self.pop(2)
        self.push(self.made(function, values))

    def call_with_names(self) -> None:
        function, values, _ = self.pop(3)
        self.push(self.made(function, values))

    def made(self, function: Any, values: Any) -> Any:
        """What a call stands for: a tensor, a dictionary or an Opaque. Raises Refused for what would run code."""
        if not isinstance(values, tuple):
            raise ValueError("a call without its arguments")
        if not isinstance(function, Name):
            return Opaque("call of what a call made", values)
        if function.executes:
            raise Refused(f"asks to run {function}")
        key = function.module, function.name
        if key in DICTIONARIES:
            return self.dictionary(*values[:1])
        if key in self.calls:
            return self.calls[key](*values[:MOST_ARGUMENTS])
        if key in MAKERS:
            return MAKERS[key](*values[:MOST_ARGUMENTS])
        if function.name == "_reconstructor" and values and isinstance(values[0], Name):
            return Opaque(str(values[0]), values)
        return Opaque(str(function), values)

    def dictionary(self, pairs: Any = ()) -> dict:
        """A mapping's class, called with nothing, with another mapping or with pairs: a copy, which costs time."""
        if isinstance(pairs, dict):
            self.spend(len(pairs))
            return dict(pairs)
        if not isinstance(pairs, (list, tuple)):
            return {}
        self.spend(len(pairs))
        pairs = [pair for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]
        return {key: value for key, value in pairs if isinstance(key, str)}

    def persistent(self) -> None:
        """A storage as torch.save refers to it."""
        (described,) = self.pop(1)
        if not isinstance(described, tuple) or len(described) not in (5, 6) or described[0] != "storage":
            self.push(Opaque("torch.nn.Module"))
            return
        _, kind, key, _, count, *view = described
        if not isinstance(kind, Name) or not isinstance(key, str) or type(count) is not int or any(view):
            raise ValueError("a storage without its kind, key or size")
        untyped = (kind.module, kind.name) == ("torch.storage", "UntypedStorage")
        dtype = None if untyped else STORAGES.get(kind.name) if kind.module == "torch" else None
        if dtype is None and not untyped:
            self.push(Opaque(str(kind)))
            return
        nbytes = count * (1 if dtype is None else dtype.itemsize)
        storage = self.storages.setdefault(key, Storage(key, count, nbytes))
        if storage.nbytes != nbytes or nbytes < 0:
            raise ValueError(f"a storage '{key[:50]}' of two sizes, or of less than nothing")
        self.push(TypedStorage(storage, dtype))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_) -> Any:
    if isinstance(storage, Opaque):
        return storage
    if not isinstance(storage, TypedStorage) or storage.dtype is None:
        raise ValueError("a tensor without a storage")
    return _view(storage, storage.dtype, offset, size, stride)


def _tensor_with_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, *_
) -> Any:
    if not isinstance(storage, TypedStorage) or not isinstance(dtype, Name):
        raise ValueError("a tensor without a storage")
    known = getattr(torch, dtype.name, None) if dtype.module == "torch" and dtype.name in DTYPES else None
    return Opaque(f"tensor of {dtype}") if known is None else _view(storage, known, offset, size, stride)


def _view(storage: TypedStorage, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> StoredView:
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without a shape")
    return StoredView(storage.storage, dtype, offset, size, stride)


def _parameter(data: Any, *_) -> Any:
    return data


def _typed(function: Any, kind: Any, values: Any, *_) -> Any:
    """A tensor with attributes of its own, which are left out."""
    plain = isinstance(kind, Name) and kind.name in ("Tensor", "Parameter", "Buffer")
    if plain and isinstance(function, Name) and isinstance(values, tuple):
        maker = TENSORS.get((function.module, function.name))
        if maker is not None:
            return maker(*values[:MOST_ARGUMENTS])
    return Opaque(str(kind) if isinstance(kind, Name) else "a tensor's class")


MOST_ARGUMENTS = 16
TENSORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_with_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
}
MAKERS = {**TENSORS, ("torch._tensor", "_rebuild_from_type_v2"): _typed}
DICTIONARIES = {("collections", "OrderedDict"), ("collections", "Counter"), *((module, "dict") for module in BUILTINS)}


def _integer(reader: _Interpreter, count: int) -> Any:
    if count < 0:
        raise ValueError("a number of less than no bytes")
    if count > LONGEST_NUMBER:
        reader.skip(count)
        return NUMBER
    return int.from_bytes(reader.take(count), "little", signed=True)


def _bytes(reader: _Interpreter, count: int) -> Any:
    if count <= reader.longest_bytes:
        return reader.take(count)
    reader.skip(count)
    return BYTES


def _texts(pairs: list) -> dict[str, Any]:
    """Entries under texts of keys and values in turn."""
    if len(pairs) % 2:
        raise ValueError("a key without a value")
    return {key: value for key, value in zip(pairs[::2], pairs[1::2]) if isinstance(key, str)}


def _stack_global(reader: _Interpreter) -> None:
    module, name = reader.pop(2)
    reader.global_name(module, name)


def _recall(reader: _Interpreter, index: int) -> None:
    if index not in reader.memo:
        raise ValueError("a pickle that refers to what it does not hold")
    reader.push(reader.memo[index])


def _set_of(reader: _Interpreter) -> None:
    reader.pop_mark()
    reader.push(SET)


HANDLERS: dict[int, Callable[[_Interpreter], Any]] = {
    # Numbers, texts and bytes
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("J"): lambda r: r.push(r.number("<i")),
    ord("K"): lambda r: r.push(r.byte()),
    ord("M"): lambda r: r.push(r.number("<H")),
    0x8A: lambda r: r.push(_integer(r, r.byte())),
    0x8B: lambda r: r.push(_integer(r, r.number("<i"))),
    ord("G"): lambda r: r.push(r.number(">d")),
    ord("U"): lambda r: r.push(r.text(r.byte())),
    ord("T"): lambda r: r.push(r.text(r.number("<I"))),
    ord("X"): lambda r: r.push(r.text(r.number("<I"))),
    0x8C: lambda r: r.push(r.text(r.byte())),
    0x8D: lambda r: r.push(r.text(r.number("<Q"))),
    ord("B"): lambda r: r.push(_bytes(r, r.number("<I"))),
    ord("C"): lambda r: r.push(_bytes(r, r.byte())),
    0x8E: lambda r: r.push(_bytes(r, r.number("<Q"))),
    0x96: lambda r: r.push(_bytes(r, r.number("<Q"))),
    # Containers
    ord("("): lambda r: r.marks.append(len(r.stack)),
    ord("]"): lambda r: r.push([]),
    ord("l"): lambda r: r.push(r.pop_mark()),
    ord("a"): lambda r: r.append(r.pop(1)),
    ord("e"): lambda r: r.append(r.pop_mark()),
    ord(")"): lambda r: r.push(()),
    ord("t"): lambda r: r.push(tuple(r.pop_mark())),
    0x85: lambda r: r.push(tuple(r.pop(1))),
    0x86: lambda r: r.push(tuple(r.pop(2))),
    0x87: lambda r: r.push(tuple(r.pop(3))),
    ord("}"): lambda r: r.push({}),
    ord("d"): lambda r: r.push(_texts(r.pop_mark())),
    ord("s"): lambda r: r.set_items(r.pop(2)),
    ord("u"): lambda r: r.set_items(r.pop_mark()),
    0x8F: lambda r: r.push(SET),
    0x90: lambda r: r.pop_mark(),
    0x91: _set_of,
    # The stack and what is remembered
    ord("0"): lambda r: r.pop(1),
    ord("1"): lambda r: r.pop_mark(),
    ord("2"): lambda r: r.push(r.top()),
    ord("q"): lambda r: r.remember(r.byte()),
    ord("r"): lambda r: r.remember(r.number("<I")),
    0x94: lambda r: r.remember(len(r.memo)),
    ord("h"): lambda r: _recall(r, r.byte()),
    ord("j"): lambda r: _recall(r, r.number("<I")),
    # Names and objects
    ord("c"): lambda r: r.global_name(r.line(), r.line()),
    0x93: _stack_global,
    ord("R"): lambda r: r.call(),
    ord("b"): lambda r: r.build(),
    0x81: lambda r: r.call(),
    0x92: lambda r: r.call_with_names(),
    ord("Q"): lambda r: r.persistent(),
    # The frames of protocol 4 are for readers of streams.
    0x95: lambda r: r.skip(8),
}
