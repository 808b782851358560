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
    return {node: {"class_type": entry["class_type"],
                   "inputs": {k: v for k, v in entry["inputs"].items() if k != "control_after_generate"}}
            for node, entry in graph.items()}


def assert_shows(front: FrontEnd, workflow: dict[str, Any]) -> None:
    """Every node of the workflow is on the canvas, known and with an area, and nothing complains."""
    drawn = front.nodes()
    assert sorted(node.type for node in drawn) == sorted(node["type"] for node in workflow["nodes"])
    assert [node.type for node in drawn if not node.known] == []
    assert all(min(node.size) > 0 for node in drawn)
    assert front.complaints() == []


def test_a_missing_node_would_be_noticed(front: FrontEnd) -> None:
    front.open()
    front.load({"version": 0.4, "last_node_id": 1, "last_link_id": 0, "links": [],
                "nodes": [{"id": 1, "type": "GtR_NoSuchNode", "pos": [0, 0], "size": [200, 100], "flags": {},
                           "order": 0, "mode": 0, "properties": {}}]})
    assert [node.known for node in front.nodes()] == [False]
    assert any("GtR_NoSuchNode" in text for text in front.complaints())


def test_demo_is_shipped() -> None:
    read(WORKFLOWS / "demo.json")
    read(WORKFLOWS / "api" / "demo.json")


def test_demo_opens_as_template(front: FrontEnd) -> None:
    workflow = read(WORKFLOWS / "demo.json")
    front.open(template="demo")
    front.fit()
    front.screenshot("demo-template")
    assert_shows(front, workflow)


def test_demo_runs_on_click(front: FrontEnd) -> None:
    workflow = read(WORKFLOWS / "demo.json")
    front.open()
    front.load(workflow)
    front.fit()
    assert_shows(front, workflow)
    events = front.click_run()
    assert "execution_success" in [name for name, _ in events], events
    width, height = front.picture_size("SaveImage")
    assert width >= 64 and height >= 64
    front.page.wait_for_timeout(500)
    front.screenshot("demo-run")


@pytest.mark.parametrize("name", ["inpaint", "variations", "outpaint"])
def test_editing_templates_open_and_run(front: FrontEnd, name: str) -> None:
    workflow = read(WORKFLOWS / f"{name}.json")
    front.open(template=name)
    front.fit()
    assert_shows(front, workflow)
    events = front.click_run(timeout=240)
    assert "execution_success" in [kind for kind, _ in events], events
    assert min(front.picture_size("SaveImage")) >= 64
    reports = front.widget_texts("GtR_Sampler", "gtr_report")
    assert len(reports) == 2 and all(text.startswith("gtr-full on demo:") or "window 1 of" in text for text in reports)
    front.page.wait_for_timeout(500)
    front.screenshot(f"{name}-run")


def test_compare_shows_pictures_and_reports_together(front: FrontEnd) -> None:
    workflow = read(WORKFLOWS / "compare.json")
    front.open()
    front.load(workflow)
    front.fit()
    assert_shows(front, workflow)
    events = front.click_run(timeout=240)
    assert "execution_success" in [name for name, _ in events], events
    front.picture_size("PreviewImage")
    texts = [text for name, detail in events if name == "executed"
             for text in ((detail or {}).get("output") or {}).get("text", ())]
    for method in ("origin", "step-n-16", "gtr-paper"):
        assert any(text.startswith(f"{method} on demo") for text in texts)
    front.page.wait_for_timeout(500)
    front.screenshot("compare-run")


def test_dropping_the_picture_brings_the_graph_back(front: FrontEnd, comfy_base: Path) -> None:
    workflow = read(WORKFLOWS / "demo.json")
    front.open()
    front.load(workflow)
    front.click_run()
    saved = max((comfy_base / "output").rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    front.load({"version": 0.4, "last_node_id": 0, "last_link_id": 0, "nodes": [], "links": []})
    assert front.nodes() == []
    front.drop(saved)
    front.page.wait_for_function("() => window.app.graph._nodes.length > 0", timeout=20_000)
    assert_shows(front, workflow)


@by_name
def test_workflow_equals_its_api_file(front: FrontEnd, path: Path) -> None:
    front.open()
    front.load(read(path))
    assert [node.type for node in front.nodes() if not node.known] == []
    assert essence(front.graph_to_prompt()) == essence(read(WORKFLOWS / "api" / path.name))
