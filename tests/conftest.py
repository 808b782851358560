"""Import names of the tests, and the one real ComfyUI server that host and browser tests share.

The repository root is never put on sys.path: its folder `nodes` would hide ComfyUI's module of that name. Instead
    gtr_pack    is the repository itself:  from gtr_pack.gtr_core import ...
    gtr_tests   is tests/support:          from gtr_tests.client import Client
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gtr_tests.server import ComfyServer

ROOT = Path(__file__).resolve().parents[1]
NO_COMFY = "ComfyUI is not set up here (COMFYUI_PATH is unset): run the tests with python3 dev.py test"
_server: ComfyServer | None = None


def _alias(name: str, folder: Path) -> None:
    """Make the package in this folder importable under another name."""
    file = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
_alias("gtr_pack", ROOT)
_alias("gtr_tests", ROOT / "tests" / "support")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update",
        action="store_true",
        help="write recorded files anew: schemas, names, thumbnails, images of the documentation",
    )
    parser.addoption(
        "--long",
        type=int,
        default=0,
        metavar="PROMPTS",
        help="length of the queue in tests/longrun, such as 1000; 0 is a short one",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need a server or a browser come first and the many short ones last: processes that share the tests end
    together."""
    core = ROOT / "tests" / "core"
    items.sort(key=lambda item: core in item.path.parents)


@pytest.fixture(scope="session")
def update(request: pytest.FixtureRequest) -> bool:
    """True if recorded files are to be written anew."""
    return request.config.getoption("update")


def pytest_configure() -> None:
    """Let a SIGTERM end the run with its fixtures' clean-up, so that no server is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("stopped by SIGTERM", 143))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the server's log to the report of a failed test."""
    report = yield
    if report.failed and _server is not None:
        report.sections.append(("ComfyUI server log", _server.tail(60)))
    return report


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """The ComfyUI folder; skips where there is none."""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        pytest.skip(NO_COMFY)
    return Path(given)


@pytest.fixture(scope="session")
def comfy_base(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base folder of the shared server, laid out, before the server starts."""
    base = _support("server").make_base(tmp_path_factory.mktemp("comfy"))
    _support("server").link_folder(ROOT / "tests" / "support" / "tiny_t5", base / "custom_nodes" / "gtr-test-t5")
    return base


@pytest.fixture(scope="session")
def model_files(comfy_base: Path) -> frozenset[str]:
    """Tiny stand-ins for the weights that the shipped workflows name; gives the names of the files written.

    They have the published files' form: a training checkpoint with raw and EMA weights, and a flat kl16 file.
    """
    return _support("stand_ins").write_all(comfy_base / "models")


@pytest.fixture(scope="session")
def comfy_server(comfy_path: Path, comfy_base: Path, model_files: frozenset[str]) -> Iterator[ComfyServer]:
    """One real ComfyUI server for the whole session, on the CPU, with previews on and this pack linked in."""
    global _server
    front_end = os.environ.get("GTR_FRONT_END")
    flags = ["--cpu", "--preview-method", "latent2rgb", *(["--front-end-root", front_end] if front_end else [])]
    _server = _support("server").ComfyServer(Path(sys.executable), comfy_path, comfy_base, *flags)
    try:
        _server.start()
        trouble = _server.import_trouble()
        if trouble:
            pytest.fail(f"ComfyUI could not import the pack; the end of its log:\n{trouble}", pytrace=False)
        yield _server
    finally:
        _server.stop()


@pytest.fixture(scope="session")
def pack_nodes(comfy_server: ComfyServer) -> dict[str, Any]:
    """This pack's part of GET /object_info."""
    info = _support("rest").get(f"{comfy_server.url}/object_info")
    module = f"custom_nodes.{_support('server').PACK}"
    return {name: node for name, node in info.items() if node["python_module"] == module}


def _support(name: str) -> Any:
    return importlib.import_module(f"gtr_tests.{name}")
