"""What a file is, is told by its bytes: one line says what was recognised and what to do."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints.checkpoint import read_checkpoint
from gtr_pack.gtr_core.demo import DEMO_MAR
from safetensors.torch import save, save_file

ROOT = Path(__file__).resolve().parents[3]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"7e" * 32 + b"\nsize 1663614946\n"
SUFFIXES = (".safetensors", ".pth", ".ckpt", ".bin", "")


def packed(write) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pth"))
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("model/weights.safetensors", bytes(100))
    return stream.getvalue()


# Bytes of a file, and what its line says, whatever it is called.
FOREIGN = {
    "Git LFS pointer": (POINTER, "Git LFS pointer, .* 1663614946 bytes: .*git lfs pull"),
    "pointer of Windows": (POINTER.replace(b"\n", b"\r\n"), "Git LFS pointer"),
    "pointer with an extension": (
        POINTER.replace(b"oid", b"ext-0-x sha256:" + b"7e" * 32 + b"\noid"),
        "Git LFS pointer, .* 1663614946 bytes",
    ),
    "web page": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a saved web page"),
    "web page with a mark": (b"\xef\xbb\xbf  <html lang='en'>", "a saved web page"),
    "error of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "a saved web page"),
    "error of a hub": (b'{"error":"Repository not found"}', "JSON text .*Repository not found"),
    "words of a site": (b"Access to model X is restricted. You must be authenticated.", "a text .*restricted"),
    "entry not found": (b"Entry not found", "a text \\('Entry not found"),
    "configuration": (json.dumps({"_class_name": "AutoencoderKL"}).encode(), "JSON text"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(200), "a GGUF file"),
    "gzip": (gzip.compress(bytes(100)), "compressed with gzip: unpack it first"),
    "tar": (tar(), "a tar archive: unpack it first"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive: unpack"),
    "zip of other files": (zipped(), "a zip archive of other files"),
    "empty zip": (packed(lambda stream: zipfile.ZipFile(stream, "w").close()), "an empty zip archive"),
    "numpy": (packed(lambda stream: np.save(stream, np.zeros(3))), "an array of numpy"),
    "npz": (packed(lambda stream: np.savez(stream, mu=np.zeros(3))), "a zip archive of other files"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
    "macOS": (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(4000), "what macOS keeps beside a copied file"),
    "download not finished": (bytes(5000), "begins with zeros: its download has not finished"),
    "nothing": (b"", "is empty"),
    "plain pickle": (b"\x80\x04}\x94.", "a plain pickle, not a file of torch.save"),
    "older pickle": (b"\x80\x02}q\x00.", "a plain pickle"),
    "other bytes": (b"\x07\x13\x99" * 200, "neither a safetensors file nor|damaged or truncated"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_model_is_called_by_its_name(case, suffix, refusal, tmp_path):
    data, words = FOREIGN[case]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    said = refusal(path)
    assert re.search(words, said) and said.startswith(path.name), said
    assert "damaged" not in said or case in ("nothing", "other bytes")


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".pt", ".sft", ".SAFETENSORS", ""])
def test_a_safetensors_file_is_read_under_any_name(suffix, weights, tmp_path):
    save_file(weights, tmp_path / f"x{suffix}")
    assert set(read_checkpoint(tmp_path / f"x{suffix}").tensors) == set(weights)


@pytest.mark.parametrize("suffix", [".safetensors", ".sft", ".bin", ""])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_torch_save_is_read_under_any_name(legacy, suffix, weights, tmp_path):
    path = tmp_path / f"x{suffix}"
    torch.save({"model": weights}, path, _use_new_zipfile_serialization=not legacy)
    assert set(read_checkpoint(path).tensors) == set(weights)


@pytest.mark.parametrize("length", [0x0480, 0x0280, 0x4B50])
def test_a_header_whose_length_looks_like_another_format(length, weights, tmp_path):
    """0x80 and a protocol begin a pickle, 'PK' a zip archive: the brace behind eight bytes decides."""
    few = {name: weights[name] for name in ("class_emb.weight", "diffloss.net.input_proj.weight")}
    data = save(few)
    used = struct.unpack("<Q", data[:8])[0]
    (tmp_path / "x.bin").write_bytes(
        struct.pack("<Q", length) + data[8 : 8 + used] + b" " * (length - used) + data[8 + used :]
    )
    assert set(read_checkpoint(tmp_path / "x.bin").tensors) == set(few)


def test_places_without_a_file_are_named(refusal, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.safetensors").touch()
    assert re.search(r"is a folder: give the file in it, such as a\.safetensors", refusal(tmp_path / "folder"))
    assert "no file at" in refusal(tmp_path / "none.pth")
    assert "no file at" in refusal(tmp_path / ("x" * 400))
    assert "no file at" in refusal(tmp_path / "a\0b")
    if os.name != "nt":
        (tmp_path / "link.pth").symlink_to("gone.pth")
        assert re.search("is a link to gone.pth, where there is no file", refusal(tmp_path / "link.pth"))
        os.mkfifo(tmp_path / "pipe")
        assert "not a file but a device or a pipe" in refusal(tmp_path / "pipe")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="permissions are another thing here")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_permission_is_called_so(suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    shutil.copy(DEMO_MAR, path)
    path.chmod(0)
    command = [sys.executable, "-m", "gtr_core", "info", str(path)]
    if os.getuid() == 0:
        if not shutil.which("capsh"):
            pytest.skip("root may read everything, and there is no capsh to give that up")
        script = 'cd "$0" && exec "$@"'
        drop = "--drop=cap_dac_override,cap_dac_read_search"
        command = ["capsh", drop, "--", "-c", script, str(ROOT), *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "permission denied" in done.stderr and "damaged" not in done.stderr
