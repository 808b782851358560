"""FID's files: statistics of real images, and weights that are not executed (the numbers: tests/core/cli)."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation import fid
from gtr_tests.extras import why_missing
from safetensors.torch import save_file


def statistics_file(path: Path, **changes) -> Path:
    arrays = {"mu": np.zeros(fid.DIM), "sigma": np.eye(fid.DIM)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mu": None}, "no reference statistics"),
        ({"mu": np.zeros(3)}, "found shapes"),
        ({"mu": np.full(fid.DIM, np.nan)}, "finite mu"),
        ({"sigma": np.array([{}])}, "no reference statistics"),
    ],
)
def test_statistics_files_are_checked(changes, words, tmp_path):
    with pytest.raises(GtRError, match=words):
        fid.read_statistics(statistics_file(tmp_path / "s.npz", **changes))
    good = fid.read_statistics(statistics_file(tmp_path / "s.npz", mu=np.ones(fid.DIM, np.float32)))
    assert good["mu"].dtype == np.float64 and good["sigma"].shape == (fid.DIM, fid.DIM)


def test_inception_weights_are_not_executed(tmp_path):
    pytest.importorskip("torch_fidelity", reason=why_missing("torch_fidelity", "eval"))
    torch.save({"a": time.perf_counter}, tmp_path / "evil.pth")
    with pytest.raises(GtRError, match="was not executed"):
        fid.inception_features(tmp_path / "evil.pth")


@pytest.mark.parametrize("name", ["x.sft", "x.SAFETENSORS", "x.safetensors", "x.pth", "x"])
@pytest.mark.parametrize("pickled", [False, True])
def test_torch_fidelity_never_sees_the_users_file(pickled, name, tmp_path, monkeypatch):
    """It gets the checked tensors in a file of ours, which holds nothing else and is gone afterwards."""
    tensors = {"a": torch.randn(3, 2).t(), "b": torch.arange(5)}
    path, seen = tmp_path / name, {}
    torch.save({"state_dict": tensors}, path) if pickled else save_file(
        {n: t.contiguous() for n, t in tensors.items()}, path
    )

    def create(*_, feature_extractor_weights_path: str, **__) -> torch.nn.Module:
        seen["path"] = Path(feature_extractor_weights_path)
        seen["content"] = torch.load(seen["path"], weights_only=True)
        return torch.nn.Identity()

    monkeypatch.setattr(fid, "_part", lambda _: SimpleNamespace(create_feature_extractor=create))
    fid.inception_features(path)
    assert seen["path"] != path and seen["path"].parent != tmp_path and not seen["path"].exists()
    assert set(seen["content"]) == set(tensors)
    assert all(torch.equal(seen["content"][name], t) for name, t in tensors.items())


def test_without_a_file_torch_fidelity_fetches_its_own(monkeypatch):
    seen = {}
    fetch = SimpleNamespace(
        create_feature_extractor=lambda *_, **settings: seen.update(settings) or torch.nn.Identity()
    )
    monkeypatch.setattr(fid, "_part", lambda _: fetch)
    fid.inception_features()
    assert seen["feature_extractor_weights_path"] is None


def test_statistics_that_unpack_to_gigabytes_are_refused(tmp_path):
    """A header of 16 GiB over packed zeros: nothing is unpacked."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**31,)})
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("mu.npy", header.getvalue() + bytes(200 << 20))
        file.writestr("sigma.npy", b"")
    with pytest.raises(GtRError, match="'mu' has 209715328 bytes, expected at most"):
        fid.read_statistics(tmp_path / "s.npz")
