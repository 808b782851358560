"""FID's files: statistics of real images, and weights that are not executed (the numbers: tests/core/cli)."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation import fid


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
    pytest.importorskip("torch_fidelity", reason="torch-fidelity: extra 'eval'")
    torch.save({"a": time.perf_counter}, tmp_path / "evil.pth")
    with pytest.raises(GtRError, match="was not executed"):
        fid.inception_features(tmp_path / "evil.pth")
