"""Tests that need an optional package: run where it is installed, else skipped with the reason why it is not."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest


def why_missing(package: str, extra: str = "") -> str:
    """Why a test tool, or a package of an extra, is not installed; empty if it is."""
    if importlib.util.find_spec(package) is not None:
        return ""
    return os.environ.get(f"GTR_NO_{extra.upper()}", f"{package} is not installed: python3 dev.py test installs it")


def needs(package: str, extra: str = "") -> pytest.MarkDecorator:
    """The mark of a test that cannot run without this package."""
    reason = why_missing(package, extra)
    return pytest.mark.skipif(bool(reason), reason=reason)


def child_environment(*folders: Path) -> dict[str, str]:
    """The environment of a Python that imports from these folders, and else what this process can import.

    Where the host is somebody's own ComfyUI, the test tools and extras lie beside it, on this process's path only.
    """
    paths = [*map(str, folders), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
