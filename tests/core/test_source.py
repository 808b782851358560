"""What the core may import, and what the pack's code may not do."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted((ROOT / "gtr_core").rglob("*.py"))
PACK = [ROOT / "__init__.py", *CORE, *sorted((ROOT / "nodes").rglob("*.py"))]
# What the user named, what every ComfyUI brings anyway, and Python's own.
ALLOWED = (
    {"torch", "numpy", "safetensors", "einops"} | {"PIL", "scipy", "psutil", "tqdm"} | set(sys.stdlib_module_names)
)
NETWORK = {"socket", "http", "urllib", "ssl", "ftplib", "asyncio", "requests", "aiohttp", "subprocess"}
# Triton comes with torch for CUDA; its compiler's failures are named by the exceptions of subprocess.
KERNELS = {"triton_kernels": {"triton", "subprocess"}}
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "server"}


def absolute_imports(path: Path) -> set[str]:
    """Top-level names of absolute imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_knows_no_host(path):
    assert absolute_imports(path) <= ALLOWED | KERNELS.get(path.stem, set())


@pytest.mark.parametrize("path", PACK, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_pack_imports_itself_relatively(path):
    assert absolute_imports(path) <= (ALLOWED | HOST) - NETWORK | KERNELS.get(path.stem, set())


@pytest.mark.parametrize("path", PACK, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_prints_in_the_library_and_no_bare_except(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}
            assert node.func.id != "print" or path.parent.name == "cli"


def test_the_root_imports_nothing_at_module_level():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
