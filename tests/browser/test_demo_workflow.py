"""The shipped workflows in ComfyUI's real front end: they load, are drawn whole, run, and match their API files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gtr_tests.frontend import FrontEnd

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SHIPPED = sorted(WORKFLOWS.glob("*.json"))
by_name = pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])


def read(path: Path) -> Any:
    assert path.is_file(), f"{path} should be part of the repository and does not exist"
    return json.loads(path.read_text(encoding="utf-8"))


def essence(graph: dict[str, Any]) -> dict[str, Any]:
    """An API graph without the titles and without the front end's control of the seed."""
    return {
        node: {
            "class_type": entry["class_type"],
            "inputs": {k: v for k, v in entry["inputs"].items() if k != "control_after_generate"},
        }
        for node, entry in graph.items()
    }


def test_a_missing_node_would_be_noticed(front: FrontEnd) -> None:
    front.open()
    front.load(
        {
            "version": 0.4,
            "last_node_id": 1,
            "last_link_id": 0,
            "links": [],
            "nodes": [
                {
                    "id": 1,
                    "type": "GtR_NoSuchNode",
                    "pos": [0, 0],
                    "size": [200, 100],
                    "flags": {},
                    "order": 0,
                    "mode": 0,
                    "properties": {},
                }
            ],
        }
    )
    assert [node.known for node in front.nodes()] == [False]
    assert any("GtR_NoSuchNode" in text for text in front.complaints())


def test_demo_is_shipped() -> None:
    read(WORKFLOWS / "demo.json")
    read(WORKFLOWS / "api" / "demo.json")


def test_dropping_the_image_brings_the_graph_back(front: FrontEnd, comfy_base: Path) -> None:
    workflow = read(WORKFLOWS / "demo.json")
    front.open()
    front.load(workflow)
    front.set_widgets({"batch_size": 1, "preset": "gtr-extreme"})
    front.click_run()
    saved = max((comfy_base / "output").rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    front.load({"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []})
    assert front.nodes() == []
    front.drop(saved)
    front.page.wait_for_function("() => window.app.graph._nodes.length > 0", timeout=20_000)
    front.assert_shows(workflow)


@by_name
def test_workflow_equals_its_api_file(opened: FrontEnd, path: Path) -> None:
    opened.load(read(path))
    assert [node.type for node in opened.nodes() if not node.known] == []
    assert essence(opened.graph_to_prompt()) == essence(read(WORKFLOWS / "api" / path.name))
