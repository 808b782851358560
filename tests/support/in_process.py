"""ComfyUI imported into the test's own process, and the pack loaded by ComfyUI's own loader."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .server import PACK, make_base


@dataclass(frozen=True)
class HostPack:
    """The pack as ComfyUI loaded it. Its modules are other objects than those below gtr_pack."""

    host: ModuleType
    """ComfyUI's own module `nodes`."""
    name: str
    """The name, a path, under which ComfyUI put the pack into sys.modules."""
    base: Path

    def module(self, path: str) -> ModuleType:
        """A module of the pack by its dotted path: module("gtr_core.plans.plan")."""
        return importlib.import_module(f"{self.name}.{path}")

    @property
    def classes(self) -> dict[str, type]:
        """The pack's node classes by node id."""
        return {
            node: found
            for node, found in self.host.NODE_CLASS_MAPPINGS.items()
            if getattr(found, "RELATIVE_PYTHON_MODULE", "") == f"custom_nodes.{PACK}"
        }


def load_in_process(comfy: Path, base: Path, *flags: str) -> HostPack:
    """Import ComfyUI for the CPU with `base` as its base folder and load the pack; once per process."""
    host = _import_host(comfy, make_base(base), flags)
    link = str(base / "custom_nodes" / PACK)
    log = _Collected()
    logging.getLogger().addHandler(log)
    try:
        _apart(host.init_public_apis())
        loaded = _apart(host.load_custom_node(link, set(host.NODE_CLASS_MAPPINGS)))
    finally:
        logging.getLogger().removeHandler(log)
    if not loaded:
        raise RuntimeError("ComfyUI did not load the pack; it says:\n" + "\n".join(log.lines))
    return HostPack(host, link.replace(".", "_x_"), base)


def _import_host(comfy: Path, base: Path, flags: tuple[str, ...]) -> ModuleType:
    """Import ComfyUI's `nodes`. Its options are read from sys.argv by the first import, and by that one only."""
    if "comfy.cli_args" in sys.modules:
        raise RuntimeError("ComfyUI is imported already, its options can no longer be set: use the fixture host_pack.")
    sys.path.insert(0, str(comfy))
    before, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(base), *flags]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = before
    importlib.import_module("utils")  # as its main program does: `nodes` puts a folder with another `utils` on the path
    host = importlib.import_module("nodes")
    if Path(host.__file__ or "").resolve().parent != comfy.resolve():
        raise RuntimeError(f"`nodes` should be ComfyUI's, but is {host.__file__}: the repository is on sys.path.")
    return host


def _apart(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a thread of its own: the browser tests may keep an event loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class _Collected(logging.Handler):
    """Keeps what is logged at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))
