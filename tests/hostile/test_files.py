"""Hostile model files, made by code: nothing is executed, each ends in one clear line, soon and in little memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.mar import infer_mar_spec
from gtr_tests.hostile_pickles import CONTAINERS, Call, Forged, archive, dumps, executing, exhausting
from gtr_tests.hostile_tensors import hostile, pack, sparse_terabyte
from gtr_tests.judge import Judge, Verdict
from safetensors.torch import load_file, save, save_file

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
MEMORY = 400 << 20


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {name: t.float() for name, t in load_file(ROOT / "tests" / "golden" / "mar_tiny_fp16.safetensors").items()}


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    made = Judge(ROOT, ROOT / "gtr_core" / "demo" / "demo_mar.safetensors")
    yield made
    made.close()


def trouble(verdict: Verdict) -> str:
    """What is wrong with how a bad file ended; nothing when all is well."""
    if verdict.kind != "refused":
        return f"{verdict.kind}: {verdict.text}"
    if not verdict.text.isprintable() or len(verdict.text) > 1100 or ": " not in verdict.text:
        return f"not one clear line: {verdict.text!r}"
    if verdict.grown > MEMORY:
        return f"took {verdict.grown >> 20} MiB: {verdict.text}"
    return "".join(f"touched {what}" for what in verdict.touched)


def refuse_all(judge: Judge, cases: Iterator[tuple[str, bytes]], path: Path) -> dict[str, str]:
    """What went wrong, by case."""
    found = {}
    for name, data in cases:
        path.write_bytes(data)
        found[name] = trouble(judge.verdict(path, SECONDS))
    return {name: what for name, what in found.items() if what}


def test_good_files_are_read(judge: Judge, weights: dict, tmp_path: Path) -> None:
    """The judge is not one who says no to everything."""
    torch.save({"model": weights, "model_ema": weights}, tmp_path / "a.pth")
    torch.save(weights, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "c.safetensors")
    for name in ("a.pth", "b.pth", "c.safetensors"):
        assert judge.verdict(tmp_path / name, SECONDS) == Verdict("read", "", pytest.approx(0, abs=MEMORY), [])


def test_a_judge_sees_what_is_executed(tmp_path: Path) -> None:
    """The canary sings where a payload does run: in the plain unpickler."""
    import pickle

    target = tmp_path / "executed"
    pickle.loads(dumps(Call(os.mkdir, str(target))))
    assert target.exists()


def test_nothing_is_executed(judge: Judge, tmp_path: Path, tally) -> None:
    target = tmp_path / "executed"
    cases = list(executing(target))
    assert refuse_all(judge, iter(cases), tmp_path / "x.pth") == {}
    assert not target.exists() and sorted(os.listdir(tmp_path)) == ["x.pth"]
    tally("executing checkpoints", len(cases))


def test_statistics_are_executed_no_more_than_models(judge: Judge, tmp_path: Path, tally) -> None:
    """Their reader keeps bytes and makes tensors of them, which that of models does not."""
    (tmp_path / "x.pkl").write_bytes((ROOT / "tests/golden/detok_fixtures/stats_torch_cuda.pkl").read_bytes())
    assert judge.verdict(tmp_path / "x.pkl", SECONDS).kind == "read"
    target = tmp_path / "executed"
    cases = [*executing(target), *exhausting()]
    assert refuse_all(judge, iter(cases), tmp_path / "x.pkl") == {}
    assert not target.exists() and sorted(os.listdir(tmp_path)) == ["x.pkl"]
    tally("executing statistics", len(cases))


def test_nothing_is_exhausted(judge: Judge, tmp_path: Path, tally) -> None:
    cases = 0
    for suffix in (".pth", ".ckpt"):
        found = list(exhausting()) if suffix == ".pth" else list(exhausting())[:4]
        assert refuse_all(judge, iter(found), tmp_path / f"x{suffix}") == {}
        cases += len(found)
    tally("exhausting checkpoints", cases)


def test_safetensors_that_lie(judge: Judge, weights: dict, tmp_path: Path, tally) -> None:
    spec = infer_mar_spec({name: tuple(t.shape) for name, t in weights.items()}, heads=4)
    cases = list(hostile(save(weights, metadata=spec_metadata(spec, "ema"))))
    assert refuse_all(judge, iter(cases), tmp_path / "x.safetensors") == {}
    tally("safetensors", len(cases))


@pytest.mark.skipif(os.name == "nt", reason="files have no holes here unless asked for")
def test_a_right_header_over_a_terabyte(judge: Judge, tmp_path: Path) -> None:
    """What a file needs is compared with the memory there is before any of it is asked for."""
    path = tmp_path / "x.safetensors"
    try:
        sparse_terabyte(path)
    except OSError as error:
        pytest.skip(f"no file of 1 TiB here: {error}")
    verdict = judge.verdict(path, SECONDS)
    assert trouble(verdict) == "" and "x.safetensors needs 1.02e+03 GiB" in verdict.text


def test_wrong_names_do_not_help(judge: Judge, tmp_path: Path) -> None:
    """A pickle called .safetensors, a safetensors file called .pth."""
    cases = [(".safetensors", make(dumps(Call(os.mkdir, str(tmp_path / "executed"))))) for make in CONTAINERS.values()]
    cases += [
        (suffix, pack({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}))
        for suffix in (".pth", ".ckpt", ".bin", "")
    ]
    for suffix, data in cases:
        path = tmp_path / f"x{suffix}"
        path.write_bytes(data)
        assert trouble(judge.verdict(path, SECONDS)) == ""
    assert not (tmp_path / "executed").exists()


def test_a_recompressed_checkpoint_is_refused_not_misread(weights: dict, tmp_path: Path) -> None:
    """torch maps such a file as if its entries were plain, and takes the packed bytes for weights."""
    import zipfile

    data = archive(dumps({"a": Forged((4,), (1,))}), compression=zipfile.ZIP_DEFLATED)
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(GtRError, match="compressed or overlapping"):
        convert(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert os.listdir(tmp_path) == ["x.pth"]
