"""Original checkpoints: nothing in them is executed (tests/hostile has many more of them)."""

from __future__ import annotations

import os
import pickle

import pytest
import torch


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pt", ".bin"])
def test_foreign_objects_are_never_executed(suffix, weights, refusal, tmp_path):
    target = tmp_path / "executed"
    for name, save in (("zip", torch.save), ("raw", lambda obj, path: path.write_bytes(pickle.dumps(obj)))):
        path = tmp_path / f"{name}{suffix}"
        save({"model": weights, "args": Payload(target)} if name == "zip" else {"args": Payload(target)}, path)
        assert "not executed" in refusal(path) or "not a readable" in refusal(path)
    assert not target.exists()


def test_renaming_a_pickle_to_safetensors_does_not_help(refusal, tmp_path):
    path = tmp_path / "x.safetensors"
    torch.save({"args": Payload(tmp_path / "executed")}, path)
    assert "not a readable safetensors file" in refusal(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("odd", [torch.zeros(64, device="meta"), torch.zeros(64).to_sparse()], ids=["meta", "sparse"])
def test_weights_that_are_not_plain_are_refused(odd, weights, refusal, tmp_path):
    torch.save({**weights, "z_proj.bias": odd}, tmp_path / "m.pth")
    assert "was not executed (it wants torch._utils._rebuild_" in refusal(tmp_path / "m.pth")
