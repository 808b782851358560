"""Nodes that were renamed or removed after a release, and what the host is to use instead of them."""

from __future__ import annotations

from collections.abc import Iterable

from ._api import ComfyAPI, io

# One io.NodeReplace per old id, kept for ever: workflows with the old node then open and run with the new one.
REPLACED: tuple[io.NodeReplace, ...] = ()


async def register(replaced: Iterable[io.NodeReplace]) -> None:
    """Tell the host about each of them."""
    for entry in replaced:
        await ComfyAPI().node_replacement.register(entry)
