"""The folders of the core are its architecture: who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE, NODES = ROOT / "gtr_core", ROOT / "nodes"
# ComfyUI's own packages and modules.
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes", "server"}
# From the ground up: a folder imports only what stands above it in this list. models and plans are neighbours that
# do not know each other.
LAYERS = (
    {"errors", "openmp"},
    {"noise", "device", "files"},
    {"diffusion"},
    {"models", "plans"},
    {"sampling"},
    {"checkpoints"},
    {"drawing"},
    {"pipeline"},
    {"costs"},
    {"jobs"},
    {"evaluation"},
    {"demo"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in CORE.rglob("*.py") if "__pycache__" not in path.parts)


def dotted(path: Path) -> str:
    """The module of a file, as in 'plans.plan'; a package's ``__init__`` is the package."""
    parts = path.relative_to(CORE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {dotted(path) for path in MODULES}


def imported(path: Path) -> set[str]:
    """The core's modules that a file imports anywhere in it, inside functions and under TYPE_CHECKING too."""
    package = path.relative_to(CORE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            below = f"{origin}.{alias.name}".strip(".")
            found.add(below if below in NAMES else origin or "__init__")
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_folder_imports_only_what_stands_below_it(path: Path) -> None:
    own = top(dotted(path))
    for other in imported(path):
        assert top(other) == own or LEVEL[top(other)] < LEVEL[own], f"{dotted(path)} imports {other}"


def test_every_folder_has_its_level() -> None:
    assert {top(name) for name in NAMES} <= set(LEVEL)


def test_no_import_goes_round_in_a_circle() -> None:
    edges = {dotted(path): imported(path) - {dotted(path)} for path in MODULES}
    while edges:
        free = {name for name, others in edges.items() if not others & edges.keys()}
        assert free, f"a circle among {', '.join(sorted(edges))}"
        edges = {name: others for name, others in edges.items() if name not in free}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name == "models"], ids=dotted)
def test_models_and_plans_do_not_know_each_other(path: Path) -> None:
    assert not any(top(other) == "plans" for other in imported(path))


def test_an_import_under_type_checking_is_seen(tmp_path: Path) -> None:
    """The test itself reads what a circle would hide behind."""
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..sampling import sampler\n"
    tree = ast.parse(source)
    assert [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level] == ["sampling"]


PACK = [*MODULES, *sorted((ROOT / "nodes").glob("*.py"))]
packs = pytest.mark.parametrize("path", PACK, ids=lambda path: str(path.relative_to(ROOT)))


@packs
def test_no_function_takes_more_than_eight_parameters(path: Path) -> None:
    """But for the inputs of a node, which are its widgets, and Triton's kernels, which take addresses."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "execute":
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            assert count <= 8 or path.stem == "triton_kernels", f"{node.name} takes {count}: which noun is missing?"


@packs
def test_no_file_outside_the_families_asks_which_family_a_spec_is(path: Path) -> None:
    if path.parent.name == "models":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            assert "Spec" not in ast.unparse(node.args[1]), f"line {node.lineno}: let the spec answer"


def absolute_imports(source: str) -> set[str]:
    """Top-level names that a source imports absolutely anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(NODES.rglob("*.py")), ids=lambda path: path.stem)
def test_only_the_private_files_of_the_nodes_import_the_host(path: Path) -> None:
    private = path.stem.startswith("_") and path.stem != "__init__"
    assert private or not absolute_imports(path.read_text(encoding="utf-8")) & HOST


def test_an_import_of_the_host_inside_a_function_is_seen() -> None:
    assert absolute_imports("def f():\n    from comfy.sd import VAE\n    import server") == {"comfy", "server"}


@pytest.mark.parametrize("path", sorted(NODES.rglob("*.py")), ids=lambda path: path.stem)
def test_every_parameter_of_the_nodes_has_a_type(path: Path) -> None:
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            untyped = [a.arg for a in parameters(function) if a.annotation is None and a.arg not in ("self", "cls")]
            assert not untyped, f"{function.name}: {', '.join(untyped)}"


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    found = function.args
    extra = [argument for argument in (found.vararg, found.kwarg) if argument is not None]
    return [*found.posonlyargs, *found.args, *found.kwonlyargs, *extra]


def test_the_sampler_node_is_thin() -> None:
    """All of the work is the core's: the body of ``execute`` puts it together in at most 20 lines."""
    tree = ast.parse((NODES / "sampler.py").read_text(encoding="utf-8"))
    (execute,) = (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "execute")
    assert execute.body[-1].end_lineno - execute.body[0].lineno < 20
