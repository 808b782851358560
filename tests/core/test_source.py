"""What the core may import, and what the pack's code may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted((ROOT / "gtr_core").rglob("*.py"))
PACK = [ROOT / "__init__.py", *CORE, *sorted((ROOT / "nodes").rglob("*.py"))]
# What torch's users have, and what every ComfyUI brings.
ALLOWED = {"torch", "numpy", "safetensors", "einops", "PIL", "scipy", "psutil", "tqdm", "filelock"} | set(
    sys.stdlib_module_names
)
# Of the package's extras: imported by the function that needs it, which says so where it is missing.
OPTIONAL = {"matplotlib"}
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


def imports_outside_functions(tree: ast.AST) -> set[str]:
    """Top-level names of absolute imports that run when a module is imported."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            names |= imports_outside_functions(ast.Module(node.orelse, []))
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            names |= imports_outside_functions(node)
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_knows_no_host(path):
    assert absolute_imports(path) <= ALLOWED | OPTIONAL | KERNELS.get(path.stem, set())


@pytest.mark.parametrize("path", PACK, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_optional_is_imported_inside_functions_only(path):
    assert not imports_outside_functions(ast.parse(path.read_text(encoding="utf-8"))) & OPTIONAL


def test_an_import_outside_functions_is_found():
    source = """
import matplotlib.figure
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:
    import one
class C:
    try:
        from two import thing
    except ImportError:
        pass
    def f(self):
        import three
"""
    assert imports_outside_functions(ast.parse(source)) == {"matplotlib", "typing", "one", "two"}


@pytest.mark.slow
def test_every_module_of_the_core_can_be_imported_without_what_is_optional():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in CORE]
    names = [name for name in names if name.rpartition(".")[2] not in {*KERNELS, "__main__"}]
    code = (
        f"import importlib, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"sys.modules.update(dict.fromkeys({sorted(OPTIONAL)!r}))\n"
        f"for name in {names!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_models_are_loaded_without_torchs_algebra():
    """Torch imports sympy, a second's work, for values and memory of tensors on ``meta``: models need neither."""
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom gtr_core import load_model, load_vae\n"
        "from gtr_core.demo import DEMO_MAR, DEMO_VAE\nload_model(DEMO_MAR), load_vae(DEMO_VAE)\n"
        "sys.exit('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("path", PACK, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_pack_imports_itself_relatively(path):
    assert absolute_imports(path) <= (ALLOWED | OPTIONAL | HOST) - NETWORK | KERNELS.get(path.stem, set())


@pytest.mark.parametrize("path", PACK, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_prints_in_the_library_and_no_bare_except(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}
            assert node.func.id != "print" or path.parent.name == "cli" or path.name == "__main__.py"


def test_the_root_imports_nothing_at_module_level():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]


# Functions that execute what is in a file, by the end of their dotted names.
UNPICKLING = ("torch.load", "jit.load", "hub.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads")


def unpickled(tree: ast.AST) -> list[str]:
    """Calls that would execute what is in a file: numpy's too, unless it is told not to."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            plain = any(word.arg == "allow_pickle" and ast.unparse(word.value) == "False" for word in node.keywords)
            if name.endswith(UNPICKLING) or (name in ("np.load", "numpy.load") and not plain):
                found.append(name)
    return found


@pytest.mark.parametrize("path", PACK, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_file_is_unpickled(path):
    assert not unpickled(ast.parse(path.read_text(encoding="utf-8")))
    assert not absolute_imports(path) & {"pickle", "shelve", "marshal", "dill", "joblib"}


def test_a_call_that_unpickles_is_found():
    source = (
        "torch.load(f)\nx.pickle.loads(b)\nnp.load(f)\nnp.load(f, allow_pickle=True)\nnp.load(f, allow_pickle=False)"
    )
    assert unpickled(ast.parse(source)) == ["torch.load", "x.pickle.loads", "np.load", "np.load"]
