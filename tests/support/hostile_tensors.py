"""Makers of hostile safetensors files: headers that lie, and headers that are too much."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPEC = "gtr.spec"


def entry(dtype: str = "F32", shape: Any = (1,), start: Any = 0, end: Any = 4) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def pack(header: dict | bytes, data: bytes = bytes(4), length: int | None = None) -> bytes:
    """A file of this header, whose stated length may be another."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def hostile(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Files made of nothing, and of a good model file ``good`` with one thing changed."""
    length = struct.unpack("<Q", good[:8])[0]
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    one = json.dumps(entry()).encode()
    yield "nothing", b""
    yield "length only", bytes(8)
    yield "header of 8 EiB", pack({}, length=2**63)
    yield "header of 17 MiB", pack(b"{}" + b" " * (17 << 20))
    yield "not JSON", pack(b"\x80\x02}.")
    yield "list", pack(b"[]")
    yield "no tensors", pack({})
    yield "deep JSON", pack(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    yield "long number", pack(b'{"a":' + b"9" * 100_000 + b"}")
    yield "UTF-16", pack(json.dumps({"a": entry()}).encode("utf-16"))
    yield "invalid UTF-8", pack(b'{"\xff":' + one + b"}")
    yield "duplicate name", pack(b'{"a":' + one + b',"a":' + one + b"}")
    yield "duplicate key in an entry", pack(b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}')
    yield "100,000 tensors", pack({f"encoder_blocks.{k}.x": entry(shape=(0,), end=0) for k in range(100_000)})
    for name, found in {
        "overlap": {"a": entry(), "b": entry()},
        "gap": {"a": entry(), "b": entry(start=8, end=12)},
        "out of range": {"a": entry(start=2**40, end=2**40 + 4)},
        "backwards": {"a": entry(start=4, end=0)},
        "negative offset": {"a": entry(start=-4, end=0)},
        "fractions": {"a": entry(start=0.5, end=4.5)},
        "text": {"a": entry(start="0", end="4")},
        "negative shape": {"a": entry(shape=(-1,))},
        "overflowing shape": {"a": entry(shape=(2**62, 4))},
        "overflow to the right size": {"a": entry(shape=(2**63, 2))},
        "overflowing side beside 0": {"a": entry(shape=(2**63, 0), end=0)},
        "beyond 64 bits": {"a": entry(shape=(2**64,))},
        "fraction of a side": {"a": entry(shape=(1.5,))},
        "shape too large for its bytes": {"a": entry(shape=(1000,))},
        "terabytes": {"a": entry(shape=(10**6, 10**6), end=4 * 10**12)},
        "unknown dtype": {"a": entry("F31")},
        "no dtype": {"a": {"shape": [1], "data_offsets": [0, 4]}},
        "surplus field": {"a": entry() | {"x": 1}},
        "numbers as metadata": {"__metadata__": {SPEC: 5}, "a": entry()},
        "name that breaks lines": {"a\nb\x1b[31m\u2028" + "\ud800": entry()},
        "long name": {"x" * 100_000: entry()},
    }.items():
        yield name, pack(found)
    yield "a prefix without end", pack({"module." * 150_000 + "class_emb.weight": entry()})
    ends, nothing = ("class_emb.weight", "diffloss.net.input_proj.weight"), entry(shape=(0,), end=0)
    long = {"module." * 150_000 + name: nothing for name in ends}
    yield "a model behind a prefix without end", pack(long, b"")
    yield "models without end", pack({f"m{k}.{name}": nothing for k in range(8000) for name in ends}, b"")
    far = {f"m{k}." + "module." * 15_000 + name: nothing for k in range(60) for name in ends}
    yield "models behind long prefixes", pack(far, b"")
    counters = {f"{k}.n_averaged": nothing for k in range(16_000)}
    yield "counters without end", pack({f"m{k}.{name}": nothing for k in range(60) for name in ends} | counters, b"")
    yield "dots without end", pack({"." * 200_000 + name: nothing for name in ends}, b"")
    yield "endless rank", pack({"class_emb.weight": entry(shape=(1,) * 100_000)})
    for dtype in ("BOOL", "U8", "I64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64"):
        yield f"weights of {dtype}", _changed(header, data, dtype=dtype)
    for name, text in {
        "terabytes of text": '{"heads": 4, "text_length": 1099511627776}',
        "grid of 2**40 tokens": '{"heads": 4, "grid": [1048576, 1048576]}',
        "grid of text": '{"heads": 4, "grid": "16"}',
        "no heads": '{"heads": 0}',
        "heads of 2**70": '{"heads": %d}' % 2**70,
        "patch of a million": '{"heads": 4, "latent": {"channels": 16, "stride": 1, "patch": 1000000, "scale": 1, '
        '"shift": 0}}',
        "infinite scale": '{"heads": 4, "latent": {"channels": 16, "stride": 1, "patch": 1, "scale": Infinity, '
        '"shift": 0}}',
        "too many class names": json.dumps({"heads": 4, "class_names": ["x"] * 100_000}),
        "class name that breaks lines": '{"heads": 4, "class_names": ["a\\nb"]}',
        "unknown field that breaks lines": '{"a\\nb": 1}',
        "twice": '{"heads": 4, "heads": [4]}',
    }.items():
        yield f"metadata: {name}", pack(header | {"__metadata__": {SPEC: text}}, data)


def _changed(header: dict, data: bytes, dtype: str) -> bytes:
    """The model with one tensor of another dtype, in front of the others."""
    sizes = {"I64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6}
    name = "z_proj.bias"
    (count,) = header[name]["shape"]
    added = count * sizes.get(dtype, 8) // 8
    others = {key: value for key, value in header.items() if key not in (name, "__metadata__")}
    others = {
        key: entry(value["dtype"], value["shape"], *(offset + added for offset in value["data_offsets"]))
        for key, value in others.items()
    }
    # The old bytes of the tensor stay as those of one that does not belong.
    old = {"surplus": entry("F32", header[name]["shape"], *(o + added for o in header[name]["data_offsets"]))}
    return pack({name: entry(dtype, (count,), 0, added)} | others | old, bytes(added) + data)


def sparse_terabyte(path: Path) -> None:
    """A file whose header is right: a table of classes of 1 TiB, all of it a hole."""
    rows = 2**40 // (768 * 4)
    header = {"class_emb.weight": entry(shape=(rows, 768), end=rows * 768 * 4)}
    with open(path, "wb") as file:
        start = pack(header, b"")
        file.write(start)
        file.truncate(len(start) + rows * 768 * 4)
