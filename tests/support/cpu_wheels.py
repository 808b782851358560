"""A program for the environment's Python: make torchvision and torchaudio importable beside a torch without CUDA.

Their Linux wheels link CUDA's libraries, which a CPU build of torch lacks, and ComfyUI imports both at start-up, though
only their Python parts. torchvision then misses the schemas of two operators: they are declared, without kernels.
torchaudio is documented to work without its compiled parts: they are removed. Where the wheels import, nothing is done.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

SCHEMAS = """

# Added by cpu_wheels.py: schemas of the two operators that the package registers fake kernels for.
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    for _schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        _schemas.define(_schema)
"""


def runs(code: str) -> bool:
    """True if the code runs without an error in a fresh process."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def folder(package: str) -> Path:
    """Where the package is installed; found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package} should be installed here by now, but it is not: run this again.")
    return Path(spec.origin).parent


def declare_schemas() -> None:
    """Append the schemas to torchvision's own loader of operators."""
    loader = folder("torchvision") / "extension.py"
    text = loader.read_text(encoding="utf-8")
    if SCHEMAS not in text:
        loader.write_text(text + SCHEMAS, encoding="utf-8")


def drop_compiled_audio() -> None:
    """Remove torchaudio's shared objects."""
    for library in (folder("torchaudio") / "lib").glob("*.so"):
        library.unlink()


def main() -> None:
    """Apply what is needed and check the result."""
    if runs("import torch, sys; sys.exit(torch.version.cuda is None and torch.version.hip is None)"):
        return
    for package, repair in (("torchvision", declare_schemas), ("torchaudio", drop_compiled_audio)):
        if runs(f"import {package}"):
            continue
        repair()
        if not runs(f"import {package}"):
            sys.exit(f"{package} does not import with this torch: set COMFYUI_PATH to a working ComfyUI instead.")


if __name__ == "__main__":
    main()
