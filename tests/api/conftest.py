"""The batch client as a module, and as a program against a stand-in server."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "workflows" / "api" / "run_csv.py"


@pytest.fixture(scope="session")
def run_csv() -> ModuleType:
    """workflows/api/run_csv.py."""
    pytest.importorskip("aiohttp", reason="aiohttp comes with ComfyUI: run python3 dev.py test")
    spec = importlib.util.spec_from_file_location("run_csv", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["run_csv"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the client on a table (text or bytes) and a workflow; `finish` waits for it."""

    def start(url: str, table: str | bytes, workflow: Any, *options: str) -> subprocess.Popen[str]:
        file, graph = tmp_path / "rows.csv", tmp_path / "graph.json"
        file.write_bytes(table.encode() if isinstance(table, str) else table)
        graph.write_text(workflow if isinstance(workflow, str) else json.dumps(workflow), encoding="utf-8")
        words = [sys.executable, str(SCRIPT), str(file), "--workflow", str(graph), "--url", url]
        words += ["--out", str(tmp_path / "out"), *options]
        return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, encoding="utf-8")

    return start
