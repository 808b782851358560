"""Files of torch.save, read without torch.load: every form that torch writes, and nothing that reads in two ways."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints.archives import read_pickled
from gtr_pack.gtr_core.checkpoints.checkpoint import read_checkpoint
from gtr_pack.gtr_core.errors import GtRError
from gtr_tests.hostile_pickles import MACHINE, MAGIC, VERSION, Forged, Stored, archive, dumps, legacy
from torch import Tensor, nn

BASE = torch.arange(60.0).reshape(3, 4, 5)
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
PLAIN = {
    "contiguous": BASE,
    "transposed": BASE.transpose(0, 2),
    "slice": BASE[1:, ::2, 3],
    "expanded": torch.arange(3.0)[:, None].expand(3, 4),
    "scalar": torch.tensor(5.0),
    "empty": torch.zeros(0, 3),
    "parameter": nn.Parameter(torch.randn(3)),
    "offset": torch.arange(10, dtype=torch.int16)[3:],
    **{dtype: torch.arange(6).to(getattr(torch, dtype)) for dtype in DTYPES},
    **{dtype: torch.zeros(4).to(getattr(torch, dtype)) for dtype in ("float8_e4m3fn", "float8_e5m2")},
}


def saved(content: object, path: Path, **settings) -> Path:
    torch.save(content, path, **settings)
    return path


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_tensor_comes_back(protocol, old, tmp_path):
    path = saved(PLAIN, tmp_path / "x.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    content = read_pickled(path)
    assert set(content) == set(PLAIN)
    for name, t in PLAIN.items():
        found = content[name].load()
        assert found.dtype == t.dtype and found.shape == t.shape and content[name].shape == tuple(t.shape)
        assert torch.equal(found.float(), t.detach().float())


def test_a_loaded_tensor_can_be_changed_and_its_file_stays(tmp_path):
    path = saved({"a": torch.zeros(1000)}, tmp_path / "x.pth")
    before = path.read_bytes()
    read_pickled(path)["a"].load().add_(1)
    assert path.read_bytes() == before and not read_pickled(path)["a"].load().any()


def test_tensors_that_share_a_storage_share_it(tmp_path):
    content = read_pickled(saved({"a": BASE, "b": BASE[1], "c": {"d": BASE}}, tmp_path / "x.pth"))
    assert content["a"].storage is content["b"].storage and content["a"].place == content["c"]["d"].place
    assert torch.equal(content["b"].load(), BASE[1])


def test_a_legacy_file_that_is_not_aligned_is_read(tmp_path):
    content = {"a": torch.arange(5, dtype=torch.uint8), "b": torch.arange(7.0), "c": torch.arange(3.0).double()}
    found = read_pickled(saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=False))
    assert all(torch.equal(found[name].load(), t) for name, t in content.items())


@pytest.mark.slow
def test_a_file_of_more_entries_than_the_old_directory_counts(tmp_path):
    """70,000 storages: the directory's own end record is of the larger kind."""
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", dumps({"a": Forged((4,), (1,))}))
        file.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
        for index in range(70_000):
            file.writestr(f"archive/data/{index + 1}", b"")
    assert read_pickled(path)["a"].load().tolist() == [1, 2, 3, 4]


def test_an_archive_may_have_any_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("gewichte-é中/data.pkl", dumps({"a": Forged((4,), (1,))}))
        file.writestr("gewichte-é中/data/0", bytes(16))
    assert read_pickled(tmp_path / "x.pth")["a"].load().tolist() == [0.0] * 4


# What an archive may not be. Each maker gets a good one's bytes.

GOOD = archive(dumps({"a": Forged((4,), (1,))}))


def rewritten(change: Callable[[dict[str, bytes]], None], **settings) -> bytes:
    """The good archive with other entries."""
    with zipfile.ZipFile(io.BytesIO(GOOD)) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    change(entries)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **settings) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return stream.getvalue()


def renamed(old: str, new: str) -> bytes:
    return rewritten(lambda entries: entries.update({new: entries.pop(old)}))


def with_twin() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate name"):
        stream = io.BytesIO(GOOD)
        with zipfile.ZipFile(stream, "a") as file:
            file.writestr("archive/data.pkl", dumps({}))
        return stream.getvalue()


LAYOUTS = {
    "two in one": (GOOD + GOOD, "an archive within another file"),
    "bytes before it": (b"PK\x03\x04" + bytes(60) + GOOD, "an archive within another file"),
    "bytes behind it": (GOOD + b"x", "no directory at its end|damaged"),
    "a comment": (GOOD[:-2] + struct.pack("<H", 3) + b"abc", "no directory at its end|damaged"),
    "compressed": (rewritten(lambda _: None, compression=zipfile.ZIP_DEFLATED), "compressed or overlapping"),
    "one name in capitals": (renamed("archive/data.pkl", "archive/DATA.PKL"), "'archive/DATA.PKL', where"),
    "a second name in capitals": (
        rewritten(lambda entries: entries.update({"archive/Data.pkl": b"x"})),
        "where torch.save writes one data.pkl",
    ),
    "a name twice in other letters": (
        rewritten(lambda entries: entries.update({"archive/data/X": b"", "archive/data/x": b""})),
        "holds a name twice",
    ),
    "two pickles": (rewritten(lambda entries: entries.update({"other/data.pkl": b"x"})), "writes one data.pkl"),
    "no folder": (renamed("archive/data.pkl", "data.pkl"), "writes one data.pkl"),
    "a folder too deep": (renamed("archive/data.pkl", "a/archive/data.pkl"), "writes one data.pkl"),
    "entries beside": (rewritten(lambda entries: entries.update({"__MACOSX/x": b""})), "entries beside those of"),
    "TorchScript": (rewritten(lambda entries: entries.update({"archive/constants.pkl": b""})), "a TorchScript program"),
    "TorchScript's code": (
        rewritten(lambda entries: entries.update({"archive/code/a.py": b""})),
        "a TorchScript program",
    ),
    "TorchScript in capitals": (
        rewritten(lambda entries: entries.update({"archive/CONSTANTS.PKL": b""})),
        "a TorchScript program",
    ),
    "big-endian": (rewritten(lambda entries: entries.update({"archive/byteorder": b"big"})), "big-endian"),
    "another name inside": (GOOD.replace(b"archive/data.pkl", b"archive/else.pkl", 1), "reads in two ways"),
    "a storage that is too short": (
        rewritten(lambda entries: entries.update({"archive/data/0": bytes(12)})),
        "no storage '0' of 16 bytes",
    ),
    "a storage that is too long": (
        rewritten(lambda entries: entries.update({"archive/data/0": bytes(20)})),
        "no storage '0' of 16 bytes",
    ),
    "a storage elsewhere": (archive(dumps({"a": Forged((4,), (1,), Stored(4, "../0"))})), "no storage '../0'"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_an_archive_that_torch_does_not_write_is_refused(case, refusal, tmp_path):
    data, words = LAYOUTS[case]
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(GtRError, match=words) as caught:
        read_pickled(tmp_path / "x.pth")
    assert "not executed" in str(caught.value) or "damaged or truncated" in str(caught.value)


def test_a_name_twice_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(with_twin())
    with pytest.raises(GtRError, match="one data.pkl"):
        read_pickled(tmp_path / "x.pth")


def test_a_program_of_torchscript_is_called_so(tmp_path):
    class Tiny(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.save(torch.jit.script(Tiny()), tmp_path / "x.pt")
    with pytest.raises(GtRError, match="a TorchScript program .torch.jit.save., not a checkpoint"):
        read_checkpoint(tmp_path / "x.pt")


LEGACY = {
    "another version": (legacy(dumps({})).replace(dumps(1001), dumps(1002)), "unknown version"),
    "storages without keys": (legacy(dumps({"a": Forged((4,), (1,))}), keys=()), "list of storages"),
    "keys without storages": (legacy(dumps({}), keys=("0",)), "list of storages"),
    "a key twice": (legacy(dumps({"a": Forged((4,), (1,))}), keys=("0", "0")), "damaged"),
    "a storage of another size": (legacy(dumps({"a": Forged((4,), (1,), Stored(5))}), storage=bytes(16)), "not whole"),
    "cut off": (legacy(dumps({"a": Forged((4,), (1,))}))[:-1], "not whole"),
    "big-endian": (legacy(dumps({})).replace(b"little_endian", b"little_Endian"), "big-endian"),
}


@pytest.mark.parametrize("case", LEGACY)
def test_a_legacy_file_that_is_not_whole_is_refused(case, tmp_path):
    data, words = LEGACY[case]
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(GtRError, match=words):
        read_pickled(tmp_path / "x.pth")


@pytest.mark.parametrize("keep", [5, 30, 64, 100, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_cut_files_end_in_one_line(old, keep, tmp_path):
    path = saved({"a": torch.randn(100)}, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(GtRError, match="damaged or truncated"):
        read_pickled(path)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_only_the_tensors_that_are_loaded_take_memory(old, tmp_path):
    """64 MiB of an optimizer stay in the file, as do the other parts of a storage that many tensors share."""
    shared = torch.arange(4 << 20, dtype=torch.float32)
    content = {"a": shared[: 1 << 16], "b": shared[1 << 16 : 1 << 17], "opt": [torch.zeros(8 << 20) for _ in range(2)]}
    path = saved(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    found = read_pickled(path)
    a, b = found["a"].load(), found["b"].load()
    assert torch.equal(a, content["a"]) and torch.equal(b, content["b"])
    assert a.untyped_storage().nbytes() == b.untyped_storage().nbytes() == 1 << 18


@pytest.mark.skipif(os.name == "nt", reason="files have no holes here unless asked for")
def test_a_checkpoint_larger_than_the_memory_is_read(tmp_path):
    """A storage of 1 TiB of an optimizer, all of it a hole, beside a small one."""
    path, count = tmp_path / "x.pth", 2**38
    pickled = dumps({"a": Forged((4,), (1,)), "opt": Forged((count,), (1,), Stored(count, "1"))})
    start = b"".join((dumps(MAGIC), dumps(VERSION), dumps(MACHINE), pickled, dumps(["0", "1"])))
    with open(path, "wb") as file:
        file.write(start + struct.pack("<q4fq", 4, 1, 2, 3, 4, count))
        try:
            file.truncate(file.tell() + count * 4)
        except OSError as error:
            pytest.skip(f"no file of 1 TiB here: {error}")
    assert read_pickled(path)["a"].load().tolist() == [1, 2, 3, 4]
