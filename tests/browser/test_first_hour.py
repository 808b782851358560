"""What a person meets first: an empty canvas, settings that count, errors that say what is wrong, the own language."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gtr_tests.sharing import BLUEPRINTS, WORKFLOWS, read_json

if TYPE_CHECKING:
    from gtr_tests.frontend import FrontEnd
    from gtr_tests.server import ComfyServer
    from playwright.sync_api import Browser

# Nodes from the search and wires, and not one value set.
BUILD = """() => { const graph = window.app.graph; graph.clear();
    const add = (type, x, y) => { const node = window.LiteGraph.createNode(type); node.pos = [x, y]; graph.add(node);
        return node; };
    const model = add('GtR_LoadMAR', 0, 0), vae = add('GtR_LoadMARVAE', 0, 150);
    const label = add('GtR_ClassCondition', 350, 0), latent = add('GtR_EmptyLatent', 350, 150);
    const schedule = add('GtR_Scheduler', 350, 350), sampler = add('GtR_Sampler', 750, 0);
    const decode = add('VAEDecode', 1150, 0), image = add('PreviewImage', 1150, 100);
    for (const target of [label, latent, sampler]) model.connect(0, target, 0);
    label.connect(0, sampler, 1); schedule.connect(0, sampler, 2); latent.connect(0, sampler, 3);
    sampler.connect(0, decode, 0); vae.connect(0, decode, 1); decode.connect(0, image, 0); }"""
CHANGE = """([type, name, value]) => { const node = window.app.graph._nodes.find(n => n.type === type);
    const widget = node.widgets.find(w => w.name === name); widget.value = value; widget.callback?.(value); }"""
MENU = """() => { const widget = window.app.graph._nodes.find(n => n.type === 'GtR_ClassCondition').widgets[0];
    return [widget.value, widget.options.values]; }"""
WIDGETS = """type => window.app.graph._nodes.find(n => n.type === type).widgets
    .filter(w => w.name !== 'control_after_generate').map(w => [w.name, !w.hidden, Boolean(w.disabled)])"""
SHOWN = """([type, names]) => { const node = window.app.graph._nodes.find(n => n.type === type);
    const text = document.querySelector(`[data-node-id='${node.id}']`).innerText;
    return names.filter(name => text.includes(name)); }"""
ALONE = """type => { const graph = window.app.graph; graph.clear(); graph.add(window.LiteGraph.createNode(type)); }"""
SIZES = "() => window.app.graph.serialize().nodes.map(node => [node.type, node.size[1]])"
LOAD_AGAIN = "async () => { await window.app.loadGraphData(window.app.graph.serialize()); }"
# As Ctrl-C and Ctrl-V do it, without the clipboard that a page may not read.
CLONE = """type => { const graph = window.app.graph, node = graph._nodes.find(n => n.type === type);
    const twin = node.clone(); graph.add(twin); const same = [node, twin].map(n => [n.size[1],
        n.widgets.filter(w => !w.hidden).map(w => w.name)]);
    graph.remove(twin); return same; }"""
REPORTS = """count => window.app.graph._nodes.filter(n =>
    (n.widgets ?? []).some(w => w.name === 'gtr_report' && w.element.textContent)).length === count"""
COMMAND = "name => window.app.extensionManager.command.execute(name)"


def change(front: FrontEnd, node_type: str, name: str, value: Any) -> None:
    """Set a widget as a person does."""
    front.page.evaluate(CHANGE, [node_type, name, value])


def counted(front: FrontEnd, node_type: str) -> list[str]:
    """The widgets that are seen and can be set."""
    return [name for name, seen, greyed in front.page.evaluate(WIDGETS, node_type) if seen and not greyed]


def test_every_value_at_its_default_draws_an_image(front: FrontEnd) -> None:
    front.open()
    front.page.evaluate(BUILD)
    assert "execution_success" in [name for name, _ in front.click_run()]
    (report,) = front.widget_texts("GtR_Sampler", "gtr_report")
    assert report.startswith("gtr-paper on demo: 1 image")


def test_the_report_stays_after_another_tab_and_a_reload(front: FrontEnd) -> None:
    front.open("demo")
    with front.setting("Comfy.Workflow.Persist", True):
        drawn = len(front.nodes())
        change(front, "GtR_EmptyLatent", "batch_size", 1)
        change(front, "GtR_Scheduler", "preset", "gtr-extreme")
        low = sampler_height(front)
        assert "execution_success" in [name for name, _ in front.click_run()]
        (report,) = front.widget_texts("GtR_Sampler", "gtr_report")
        for command, count in (("Comfy.NewBlankWorkflow", 0), ("Workspace.PreviousOpenedWorkflow", drawn)):
            front.page.evaluate(COMMAND, command)
            front.page.wait_for_function("n => window.app.graph._nodes.length === n", arg=count, timeout=20_000)
        assert front.widget_texts("GtR_Sampler", "gtr_report") == [report]
        front.page.wait_for_timeout(1500)  # the page saves what is open a moment after the last change
        high = sampler_height(front)
        front.open()
        front.page.wait_for_function("n => window.app.graph._nodes.length === n", arg=drawn, timeout=20_000)
        assert front.widget_texts("GtR_Sampler", "gtr_report") == [report]
        assert low <= sampler_height(front) <= high, "newer front ends leave out the line on what was done"
        change(front, "GtR_Sampler", "cfg", 3.5)
        front.page.evaluate(LOAD_AGAIN)
        assert front.widget_texts("GtR_Sampler", "gtr_report") == []
        assert sampler_height(front) == low, "a report that is not shown takes no room"


def sampler_height(front: FrontEnd) -> float:
    return next(node.size[1] for node in front.nodes() if node.type == "GtR_Sampler")


def test_a_template_opened_again_shows_no_report(front: FrontEnd) -> None:
    """Every copy of a template has the same ids, and the report belongs to the one that was run."""
    front.open("demo")
    change(front, "GtR_EmptyLatent", "batch_size", 1)
    change(front, "GtR_Scheduler", "preset", "gtr-extreme")
    change(front, "GtR_Sampler", "cfg", 2.5)  # the server remembers what the test before has drawn
    assert "execution_success" in [name for name, _ in front.click_run()]
    front.page.wait_for_function(REPORTS, arg=1, timeout=20_000)
    front.load(read_json(WORKFLOWS / "demo.json"))
    front.page.wait_for_timeout(1000)
    assert front.widget_texts("GtR_Sampler", "gtr_report") == []
    front.page.evaluate(COMMAND, "Workspace.PreviousOpenedWorkflow")
    front.page.wait_for_function(REPORTS, arg=1, timeout=20_000)
    (report,) = front.widget_texts("GtR_Sampler", "gtr_report")
    assert report.startswith("gtr-extreme on demo: 1 image")


def test_the_class_menu_follows_the_model(opened: FrontEnd) -> None:
    front = opened
    front.page.evaluate(COMMAND, "Comfy.NewBlankWorkflow")
    front.page.evaluate(BUILD)
    front.page.wait_for_timeout(500)
    value, classes = front.page.evaluate(MENU)
    assert value == "default" and all(name.startswith("demo ") for name in classes if name != "default")
    change(front, "GtR_ClassCondition", "class_name", classes[-1])
    change(front, "GtR_LoadMAR", "model_name", "mar-base-ema.pth")
    value, classes = front.page.evaluate(MENU)
    assert value == "default" and len(classes) == 1001 and "207: golden retriever" in classes
    change(front, "GtR_ClassCondition", "class_list", "1, 2")
    assert counted(front, "GtR_ClassCondition") == ["class_list"], "a list that is used instead greys the menu"


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes-2"])
def test_what_a_preset_ignores_is_folded_away(front: FrontEnd, nodes_2: bool) -> None:
    front.open()
    with front.setting("Comfy.VueNodes.Enabled", nodes_2):
        front.page.evaluate(BUILD)
        assert counted(front, "GtR_Scheduler") == ["preset"]
        low = front.nodes()[4].size[1]
        change(front, "GtR_Scheduler", "preset", "custom")
        assert counted(front, "GtR_Scheduler")[:3] == ["preset", "order", "steps"]
        assert front.nodes()[4].size[1] > low
        if nodes_2:
            front.page.wait_for_timeout(1000)
            assert front.page.evaluate(SHOWN, ["GtR_Scheduler", ["partition", "rates"]]) == ["partition", "rates"]
        change(front, "GtR_Scheduler", "steps", "8, 3, 2")
        change(front, "GtR_Scheduler", "preset", "gtr-paper")
        seen = [(name, greyed) for name, seen, greyed in front.page.evaluate(WIDGETS, "GtR_Scheduler") if seen]
        assert seen == [("preset", False), ("steps", True)], "what was changed without effect is seen, greyed"
        if nodes_2:
            front.page.wait_for_timeout(1000)
            assert front.page.evaluate(SHOWN, ["GtR_Scheduler", ["partition", "rates", "steps"]]) == ["steps"]


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes-2"])
def test_nothing_grows_when_a_graph_is_loaded_again(opened: FrontEnd, nodes_2: bool) -> None:
    """With every choice that shows other widgets than the default does."""
    front = opened
    front.page.evaluate(COMMAND, "Comfy.NewBlankWorkflow")
    choices = [("GtR_Scheduler", "preset", "custom"), ("GtR_Redraw", "redraw", "denoise")]
    choices += [("GtR_BaselineScheduler", "method", name) for name in ("disa", "origin")]
    with front.setting("Comfy.VueNodes.Enabled", nodes_2):
        for node_type, name, value in choices:
            front.page.evaluate(ALONE, node_type)
            change(front, node_type, name, value)
            seen, sizes = counted(front, node_type), []
            for _ in range(3):
                front.page.wait_for_timeout(700 if nodes_2 else 0)  # there the page measures a moment later
                sizes.append(front.page.evaluate(SIZES))
                front.page.evaluate(LOAD_AGAIN)
                assert counted(front, node_type) == seen
            settled = sizes[1:] if nodes_2 else sizes  # and stores what it measured
            assert all(size == settled[0] for size in settled), f"{node_type} with {value}: {sizes}"
            node, twin = front.page.evaluate(CLONE, node_type)
            assert node == twin, f"a copy of {node_type} with {value}"


def test_an_error_says_its_line_on_the_page(front: FrontEnd) -> None:
    """The newest one only, and beside the page's own card."""
    front.open()
    front.page.evaluate(BUILD)
    front.page.wait_for_timeout(500)
    change(front, "GtR_ClassCondition", "class_list", "disk")
    _, failed = next(event for event in front.click_run() if event[0] == "execution_error")
    assert failed["exception_type"] == "gtr_mar.GtRError"
    front.wait_for_toast("has no class 'disk'")
    change(front, "GtR_ClassCondition", "class_list", "")
    change(front, "GtR_Scheduler", "preset", "custom")
    change(front, "GtR_Scheduler", "steps", "a, b")
    front.click_run()
    front.wait_for_toast("steps 'a, b': expected whole numbers separated by commas")
    named_toasts = front.page.evaluate("() => Boolean(window.app.extensionManager.toast.dismiss)")
    card = front.page.get_by_test_id("error-overlay")
    if not named_toasts:  # newer front ends, which have them, show no card of their own
        card.wait_for(timeout=20_000)
    front.page.wait_for_timeout(1000)  # the toast before moves out
    assert front.toasts.count() == 1
    if not named_toasts:
        here, there = front.toasts.bounding_box(), card.bounding_box()
        assert here and there and 0 < here["x"] and here["x"] + here["width"] <= there["x"]


def test_the_search_finds_what_is_meant(front: FrontEnd) -> None:
    front.open()
    front.search_nodes(500, 400)
    front.page.keyboard.type("class to image", delay=30)
    front.page.get_by_role("option").get_by_text("Class Label (MAR)", exact=True).wait_for(timeout=20_000)
    front.page.keyboard.press("ControlOrMeta+A")
    front.page.keyboard.type("masked autoregressive", delay=30)
    front.page.get_by_role("option").get_by_text("GtR Sampler", exact=True).wait_for(timeout=20_000)


@pytest.mark.parametrize(
    "path", [WORKFLOWS / "demo.json", BLUEPRINTS / "MAR + GtR.json"], ids=["template", "blueprint"]
)
def test_titles_are_in_the_persons_language(
    browser: Browser, comfy_server: ComfyServer, pack_nodes: dict[str, Any], tmp_path: Path, path: Path
) -> None:
    from gtr_tests.frontend import FrontEnd, new_page

    names = read_json(WORKFLOWS.parent / "locales" / "zh" / "nodeDefs.json")
    with new_page(browser, "zh-CN") as page:
        front = FrontEnd(page, comfy_server.url, sorted(pack_nodes), tmp_path)
        front.open()
        front.load(read_json(path))
        inside = "() => (window.app.graph._nodes[0].subgraph ?? window.app.graph)._nodes.map(n => [n.type, n.title])"
        shown = [(kind, title) for kind, title in page.evaluate(inside) if kind in names]
        assert len(shown) >= 7 and shown == [(kind, names[kind]["display_name"]) for kind, _ in shown]
        front.screenshot(f"titles-{path.stem}")
