"""The folders of the core are its architecture: who may import whom, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "gtr_core"
# From the ground up: a folder imports only what stands above it in this list. models and plans are neighbours that
# do not know each other.
LAYERS = (
    {"errors"},
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
