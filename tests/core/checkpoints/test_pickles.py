"""Pickles are data: what is not a tensor stands in for itself, and nothing in them is executed (tests/hostile has many
more of those that would)."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import functools
import os
import pathlib
import pickle
import types
import uuid

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints.checkpoint import read_checkpoint
from gtr_pack.gtr_core.checkpoints.pickles import MOST_STEPS, Opaque, Refused, Skipped, interpret
from gtr_pack.gtr_core.checkpoints.stored import Storage, StoredView
from torch import nn


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Colour(enum.Enum):
    RED = 1


class Table(dict):
    """A dictionary of the trainer's own, as many configuration libraries have."""


Point = collections.namedtuple("Point", "x y")


def read(content: object, protocol: int = 2) -> object:
    data = pickle.dumps(content, protocol)
    value, end = interpret(data, 0, len(data), {})
    assert end == len(data)
    return value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        255,
        70_000,
        -5,
        2**40,
        -(2**100),
        1.5,
        "text",
        "é中",
        "",
        [],
        [1, [2]],
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        {},
        {"a": {"b": [1, 2]}, "c": ()},
        [1] * 3000,
        {str(k): k for k in range(3000)},
    ],
)
def test_plain_values_come_back(value, protocol):
    assert read(value, protocol) == value
    data = pickle.dumps(value, protocol)
    assert interpret(b"xx" + data + b"yy", 2, len(data) + 2, {}) == (value, len(data) + 2)


def test_other_mappings_are_dictionaries():
    pairs = {"a": 1, "b": 2}
    assert read(collections.OrderedDict(pairs)) == read(collections.Counter(pairs)) == pairs
    assert read(Table(pairs)).entries == read(collections.defaultdict(list, pairs)).entries == pairs


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(a=1),
        np.float64(2.5),
        np.zeros(3),
        np.random.get_state(),
        pathlib.PurePosixPath("/etc/passwd"),
        datetime.datetime(2026, 1, 1),
        decimal.Decimal("1.5"),
        uuid.UUID(int=5),
        Colour.RED,
        Point(1, 2),
        {1, 2},
        frozenset("ab"),
        b"bytes",
        bytearray(b"bytes"),
        range(5),
        slice(1, 2),
        complex(1, 2),
        "x" * 10_000,
        10**100,
        functools.partial(print),
        types.SimpleNamespace(a=1),
        torch.device("cpu"),
        torch.float32,
        torch.Size([1, 2]),
        torch.optim.lr_scheduler.LambdaLR,
        nn.Linear(2, 2),
        torch.Generator,
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_are_read_beside_anything(value, protocol, weights, tmp_path):
    """Epochs and scores of numpy, arguments, paths, random states: skipped, not imported, not called."""
    content = {"before": value, "model": weights, "after": {"deep": [value, {"x": value}]}}
    torch.save(content, tmp_path / "x.pth", pickle_protocol=protocol)
    found = read_checkpoint(tmp_path / "x.pth").tensors
    assert all(torch.equal(found[name], t) for name, t in weights.items()) and len(found) == len(weights)


def test_what_is_skipped_says_what_it_is():
    assert str(read(argparse.Namespace(a=1))) == "argparse.Namespace"
    assert read(argparse.Namespace(a=1)).state == {"a": 1}
    assert isinstance(read(np.float64(1)), Opaque) and "numpy" in str(read(np.float64(1)))
    assert isinstance(read(b"x", 4), Skipped) and str(read("x" * 5000)) == "long text"


def test_entries_under_other_keys_are_left_out():
    assert read({1: "a", (2, 3): "b", None: "c", "d": "e"}) == {"d": "e"}


def test_tuples_that_hold_themselves_are_read():
    inner: list = []
    inner.append((inner, 1))
    found = read((inner, 2))
    assert found[0][0][0] is found[0]


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pt", ".bin", ".safetensors"])
def test_foreign_objects_are_never_executed(suffix, weights, refusal, tmp_path):
    target = tmp_path / "executed"
    for name, save in (("zip", torch.save), ("raw", lambda obj, path: path.write_bytes(pickle.dumps(obj)))):
        path = tmp_path / f"{name}{suffix}"
        save({"model": weights, "args": Payload(target)} if name == "zip" else {"args": Payload(target)}, path)
        assert "was not executed" in refusal(path)
    assert not target.exists()


@pytest.mark.parametrize("odd", [torch.zeros(64, device="meta"), torch.zeros(64).to_sparse()], ids=["meta", "sparse"])
def test_weights_that_are_not_plain_are_refused(odd, weights, refusal, tmp_path):
    torch.save({**weights, "z_proj.bias": odd}, tmp_path / "m.pth")
    said = refusal(tmp_path / "m.pth")
    assert "'z_proj.bias' is an object of torch._utils._rebuild_" in said and "was not executed" in said


def test_a_tensor_with_attributes_is_a_tensor(weights, tmp_path):
    parameter = nn.Parameter(weights["z_proj.bias"])
    parameter.decay = 0.5
    torch.save({"model": weights | {"z_proj.bias": parameter}}, tmp_path / "m.pth")
    assert torch.equal(read_checkpoint(tmp_path / "m.pth").tensors["z_proj.bias"], weights["z_proj.bias"])


@pytest.mark.parametrize(
    "data, words",
    [
        (b"(dp0\n.", "protocol 0 or 1"),
        (b"\x80\x01}.", "protocol 1"),
        (b"\x80\x06}.", "protocol 6"),
        (b"\x80\x02cos\nsystem\n)R.", "asks to run os.system"),
        (b"\x80\x02cposix\nsystem\n)R.", "asks to run posix.system"),
        (b"\x80\x04\x8c\x02nt\x8c\x06system\x93)R.", "asks to run nt.system"),
        (b"\x80\x02c__builtin__\neval\n)R.", "asks to run __builtin__.eval"),
        (b"\x80\x02csubprocess\nPopen\n)\x81.", "asks to run subprocess.Popen"),
        (b"\x80\x02ctorch.hub\nload\n)R.", "asks to run torch.hub.load"),
        (b"\x80\x02(S'x'\nios\nsystem\n.", "the opcode"),
        (b"\x80\x02\x82\x01.", "the opcode"),
        (b"\x80\x05\x97.", "the opcode"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused(data, words):
    with pytest.raises(Refused, match=words):
        interpret(data, 0, len(data), {})


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02N",
        b"\x80\x02(N.",
        b"\x80\x02(.",
        b"\x80\x02N\x86.",
        b"\x80\x02Nt.",
        b"\x80\x02Na.",
        b"\x80\x02}(Nu.",
        b"\x80\x02h\x05.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x02\x8b\xff\xff\xff\xff.",
        b"\x80\x02NNR.",
        b"\x80\x02cabc",
        b"\x80\x02c" + b"a" * 300 + b"\nb\n.",
        b"\x80\x04KK\x93.",
        b"\x80\x04N\x8c\x01a\x93.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
        b"\x80\x02(X\x07\0\0\0storageNNNNtQ.",
        b"\x80\x02N0.0.",
    ],
)
def test_a_broken_pickle_is_an_error_that_its_reader_knows(data):
    with pytest.raises((ValueError, IndexError, TypeError)):
        interpret(data, 0, len(data), {})


def test_what_a_pickle_may_take_is_bounded():
    for data in (b"\x80\x02(" + b"N" * (MOST_STEPS + 1) + b"l.", b"\x80\x04N" + b"\x94" * 600_000 + b"."):
        with pytest.raises(Refused, match="more than"):
            interpret(data, 0, len(data), {})


def test_a_view_lies_inside_its_storage():
    storage = Storage("0", 12, 48)
    StoredView(storage, torch.float32, 2, (2, 5), (5, 1))
    for offset, size, stride in (
        (3, (2, 5), (5, 1)),
        (0, (13,), (1,)),
        (12, (1,), (1,)),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
        (0, (2,), ()),
        (0, (1,) * 33, (1,) * 33),
        (0, (True,), (1,)),
        (0, (2.0,), (1,)),
        (2**62, (0,), (1,)),
    ):
        with pytest.raises(ValueError):
            StoredView(storage, torch.float32, offset, size, stride)
