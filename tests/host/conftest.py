"""Fixtures of the tests that need a real ComfyUI: `client` over HTTP and websocket, `comfy` in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gtr_tests.client import Client
    from gtr_tests.in_process import HostPack
    from gtr_tests.server import ComfyServer


@pytest.fixture
def client(comfy_server: ComfyServer) -> Iterator[Client]:
    """A connection of its own to the shared server."""
    pytest.importorskip("websocket", reason="websocket-client is not installed: run python3 dev.py test")
    from gtr_tests.client import Client

    with closing(Client(comfy_server.url)) as connected:
        yield connected


@pytest.fixture(scope="session")
def host_pack(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> HostPack:
    """ComfyUI in this process and the pack loaded by its loader: classes by node id, modules by path."""
    from gtr_tests.in_process import load_in_process

    return load_in_process(comfy_path, tmp_path_factory.mktemp("comfy-in-process"))


@pytest.fixture(scope="session")
def comfy(host_pack: HostPack) -> ModuleType:
    """The pack's package `nodes`, loaded by ComfyUI's own loader."""
    return host_pack.module("nodes")
