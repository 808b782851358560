"""What a person does with a shared workflow: find it, run it, read about its nodes in two languages, reuse a part."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gtr_tests import sharing
from gtr_tests.sharing import WORKFLOWS, read_json

if TYPE_CHECKING:
    from gtr_tests.frontend import FrontEnd
    from gtr_tests.server import ComfyServer
    from playwright.sync_api import Browser

ROOT = WORKFLOWS.parent
TEMPLATES = sorted(WORKFLOWS.glob("*.json"))
RELEASED = sorted((ROOT / "tests" / "released").glob("*/*.json"))
PICTURES = """() => window.app.graph._nodes.filter(n => ['SaveImage', 'PreviewImage', 'GtR_PreviewSchedule']
    .includes(n.type)).map(n => (n.imgs ?? []).filter(i => i.naturalWidth > 0).length)"""
CUT = """() => window.app.graph._nodes.flatMap(n => (n.widgets ?? []).filter(w => w.name === 'gtr_report')
    .map(w => w.element)).filter(e => e.scrollHeight > e.clientHeight).map(e => e.textContent)"""


def ids(paths: list[Path]) -> list[str]:
    return ["-".join(path.with_suffix("").relative_to(ROOT).parts[-2:]) for path in paths]


def is_offline(path: Path) -> bool:
    """Whether a workflow runs with what is part of the pack."""
    values = [value for node in read_json(path)["nodes"] for value in node.get("widgets_values") or ()]
    return not any(isinstance(value, str) and value in sharing.MODELS for value in values)


def reports_of(front: FrontEnd, count: int) -> list[str]:
    """The samplers' reports, as soon as there are so many: the page shows the last one after the run."""
    for _ in range(50):
        reports = front.widget_texts("GtR_Sampler", "gtr_report")
        if len(reports) == count:
            return reports
        front.page.wait_for_timeout(200)
    raise AssertionError(f"{len(reports)} reports, expected {count}: {reports}")


@pytest.fixture(scope="module")
def no_example(comfy_base: Path) -> None:
    """Before the page opens: it brings the image that it does not find."""
    (comfy_base / "input" / sharing.EXAMPLE.name).unlink(missing_ok=True)


@pytest.mark.parametrize("path", TEMPLATES, ids=ids(TEMPLATES))
def test_found_in_the_template_browser_and_run(no_example: None, opened: FrontEnd, path: Path, update: bool) -> None:
    """On a laptop's screen: thumbnail, graph without complaints, its text large enough and no node over another; then,
    where no file is needed, preview, images and report."""
    front = opened
    workflow = read_json(path)
    front.page.set_viewport_size({"width": 1366, "height": 768})
    front.page.evaluate("() => { window.app.graph.clear(); window.app.canvas.ds.scale = 1; }")
    front.browse_templates()
    card = front.page.get_by_test_id(f"template-workflow-{path.stem}")
    card.wait_for(timeout=40_000)
    card.scroll_into_view_if_needed()  # images out of sight are not loaded
    front.page.wait_for_function(
        "([id, size]) => [...document.querySelectorAll(`[data-testid='${id}'] img`)]"
        ".some(i => i.naturalWidth === size)",
        arg=[f"template-workflow-{path.stem}", sharing.THUMBNAIL],
        timeout=40_000,
    )
    front.screenshot(f"templates-{path.stem}")
    card.click()
    front.page.wait_for_function(
        "n => window.app.graph._nodes.length === n", arg=len(workflow["nodes"]), timeout=40_000
    )
    front.page.wait_for_function("() => window.app.canvas.ds.scale !== 1", timeout=20_000)
    scale, without_text = front.zoom()
    assert scale >= 0.6 and not without_text
    assert front.overlaps() == []
    if not is_offline(path):
        assert [node.type for node in front.nodes() if not node.known] == []
        assert_fits_nodes_2(front, workflow)
        return
    front.assert_shows(workflow)
    if update:
        front.set_widgets({"seed": 4, "value": 4, "control_after_generate": "fixed"})
    else:
        front.set_widgets({"batch_size": 1, "class_list": "", "cfg": 1})  # less to wait for
        if path.stem == "demo_compare":
            front.set_widgets({"method": "step-n", "ar_steps": 8})
    events = front.click_run(timeout=300)
    names = [name for name, _ in events]
    assert "execution_success" in names, events
    if path.stem == "demo":
        assert "b_preview" in names, "the sampler should show what it draws"
    front.page.wait_for_function(f"() => ({PICTURES})().every(count => count > 0)", timeout=40_000)
    drawn = [node["type"] for node in workflow["nodes"]]
    assert min(front.image_size("SaveImage" if "SaveImage" in drawn else "PreviewImage")) >= 64
    reports = reports_of(front, drawn.count("GtR_Sampler"))
    assert front.page.evaluate(CUT) == [], "the last line is hidden"
    assert front.overlaps() == [], "a sampler with its report covers another node"
    assert all(" on demo:" in text or "window 1 of" in text for text in reports)
    assert all("AR steps" in text and "TFLOPs" in text for text in reports)
    if path.stem == "demo_compare":
        methods = sorted(text.partition(" ")[0] for text in reports)
        assert methods == ["gtr-paper", *(["origin", "step-16"] if update else ["step-8", "step-8"])]
    if update:
        publish(front, f"graph_{path.stem}")
    assert_fits_nodes_2(front, workflow)


def assert_fits_nodes_2(front: FrontEnd, workflow: dict[str, Any]) -> None:
    """In the renderer of nodes as parts of the page no node covers another either."""
    with front.setting("Comfy.VueNodes.Enabled", True):
        front.load(workflow)
        drawn = "n => document.querySelectorAll('[data-node-id]').length === n"
        front.page.wait_for_function(drawn, arg=len(workflow["nodes"]), timeout=40_000)
        front.page.wait_for_timeout(1000)  # a node takes its height a moment after it is shown
        assert front.overlaps() == []


def publish(front: FrontEnd, name: str) -> None:
    """A screenshot of the graph alone for the documentation, as docs/NAME.png."""
    from PIL import Image

    # So large that the zoom of the whole graph still shows the nodes' words.
    front.page.set_viewport_size({"width": 2700, "height": 2400})
    front.page.wait_for_timeout(500)
    front.fit()
    shot = Image.open(front.screenshot(name)).convert("RGB")
    left, top, right, bottom = front.page.evaluate("""() => { const c = window.app.canvas, s = c.ds.scale,
        o = c.ds.offset, r = c.canvas.getBoundingClientRect(); const xs = [], ys = [];
        for (const n of window.app.graph._nodes) { xs.push(n.pos[0], n.pos[0] + n.size[0]);
            ys.push(n.pos[1] - 32, n.pos[1] + n.size[1]); }
        const at = (v, i) => (v + o[i]) * s + (i ? r.top : r.left);
        return [at(Math.min(...xs), 0), at(Math.min(...ys), 1), at(Math.max(...xs), 0), at(Math.max(...ys), 1)]; }""")
    box = (
        max(0, int(left) - 16),
        max(0, int(top) - 16),
        min(shot.width, int(right) + 16),
        min(shot.height, int(bottom) + 16),
    )
    graph = shot.crop(box)
    graph.thumbnail((1600, 1200), Image.Resampling.LANCZOS)
    graph.quantize(256, kmeans=3, dither=Image.Dither.NONE).save(ROOT / "docs" / f"{name}.png", optimize=True)


@pytest.mark.parametrize("locale, suffix", [("en-US", ".md"), ("zh-CN", "/zh.md")], ids=["english", "chinese"])
def test_every_node_explains_itself(
    browser: Browser, comfy_server: ComfyServer, pack_nodes: dict[str, Any], tmp_path: Path, locale: str, suffix: str
) -> None:
    """Title on the canvas and help page in the person's language; of the pages, which take a second each, one half is
    opened in one language and the other half in the other."""
    from gtr_tests.frontend import FrontEnd, new_page

    names = read_json(ROOT / "locales" / locale[:2] / "nodeDefs.json")
    with new_page(browser, locale) as page:
        front = FrontEnd(page, comfy_server.url, sorted(pack_nodes), tmp_path)
        front.open()
        for place, node in enumerate(sorted(pack_nodes)):
            page.evaluate(
                "type => { window.app.graph.clear(); const node = window.LiteGraph.createNode(type);"
                " node.id = 1; window.app.graph.add(node); }",
                node,
            )
            (drawn,) = front.nodes()
            assert drawn.title == names[node]["display_name"]
            if place % 2 != (locale == "zh-CN"):
                continue
            heading, _, body = (ROOT / "web" / "docs" / f"{node}{suffix}").read_text(encoding="utf-8").partition("\n")
            page.evaluate("() => window.app.graph.setDirtyCanvas(true, true)")
            shown = front.help_of(1)
            page.locator(".node-help-content h1", has_text=heading.removeprefix("# ")).wait_for(timeout=40_000)
            shown = page.locator(".node-help-content").first.inner_text()
            assert plain(body)[:40] in plain(shown), node
        front.screenshot(f"help-{locale}")


def plain(text: str) -> str:
    """Letters and figures only: what is left of a text by every way of rendering it."""
    text = re.sub(r"\]\([^)]*\)", "", text)
    return re.sub(r"[\W_]+", "", text)


@pytest.mark.parametrize("path", RELEASED, ids=ids(RELEASED))
def test_a_released_workflow_means_what_it_meant(opened: FrontEnd, path: Path) -> None:
    """Opened today, it gives every value that it had; inputs that came later are added."""
    opened.load(read_json(path))
    assert [node.type for node in opened.nodes() if not node.known] == []
    now, then = opened.graph_to_prompt(), read_json(path.parent / "api" / path.name)
    assert now.keys() == then.keys()
    for node, entry in then.items():
        assert now[node]["class_type"] == entry["class_type"]
        assert now[node]["inputs"].items() >= entry["inputs"].items()


def test_the_blueprint_draws_an_image(front: FrontEnd) -> None:
    """Found by its name in the node search, put on the canvas, connected and run."""
    front.open()
    front.page.evaluate("() => window.app.graph.clear()")
    front.search_nodes(500, 400)
    front.page.keyboard.type("MAR + GtR", delay=30)
    front.page.wait_for_timeout(1500)
    front.screenshot("blueprint-search")
    front.page.keyboard.press("Enter")
    front.page.wait_for_function("() => window.app.graph._nodes.length === 1", timeout=40_000)
    front.page.mouse.click(500, 400)  # a node from the search follows the pointer until it is put down
    front.page.evaluate("""() => { const graph = window.app.graph, [node] = graph._nodes;
        const shown = window.LiteGraph.createNode('PreviewImage'); shown.pos = [node.pos[0] + 420, node.pos[1]];
        graph.add(shown); node.connect(0, shown, 0); }""")
    widgets = front.page.evaluate("() => window.app.graph._nodes[0].widgets.map(w => w.name)")
    assert {"model_name", "class_name", "preset", "seed", "cfg"} <= set(widgets)
    assert {"model_name", "class_name", "preset", "cfg"} <= set(
        front.page.evaluate("() => window.app.graph._nodes[0].inputs.map(i => i.name)")
    ), "what is set should be an input of the subgraph, to be wired"
    before = front.graph_to_prompt()
    inner = {entry["class_type"] for entry in front.graph_to_prompt().values()}
    assert {
        "GtR_LoadMAR",
        "GtR_LoadMARVAE",
        "GtR_ClassCondition",
        "GtR_EmptyLatent",
        "GtR_Scheduler",
        "GtR_FTS",
        "GtR_Sampler",
        "VAEDecode",
        "PreviewImage",
    } == inner
    events = front.click_run()
    assert "execution_success" in [name for name, _ in events], events
    width, height = front.image_size("PreviewImage")
    assert min(width, height) >= 64
    assert front.graph_to_prompt() != before, "the next Run should have another seed"
    front.fit()
    front.screenshot("blueprint-run")


REPORT = """() => [...document.querySelectorAll('[data-node-id]')].map(node => node.innerText)
    .filter(text => text.includes('AR steps') && text.includes('TFLOPs'))"""


def test_the_report_is_seen_in_nodes_2(front: FrontEnd) -> None:
    """The renderer of nodes as parts of the page, which draws widgets of known types itself."""
    front.open()
    with front.setting("Comfy.VueNodes.Enabled", True):
        front.load(read_json(WORKFLOWS / "demo.json"))
        front.set_widgets({"batch_size": 1, "class_list": "", "preset": "gtr-extreme"})
        front.page.locator("[data-node-id]").first.wait_for(timeout=40_000)
        front.fit()
        events = front.click_run(timeout=300)
        assert "execution_success" in [name for name, _ in events], events
        front.page.wait_for_function(f"() => ({REPORT})().length > 0", timeout=40_000)
        front.screenshot("nodes-2-report")
        (shown,) = front.page.evaluate(REPORT)
        assert "gtr-extreme on demo: 1 image" in shown and "total " in shown
        (widget,) = front.widget_texts("GtR_Sampler", "gtr_report")
        assert plain(widget) in plain(shown)
        assert front.overlaps() == []
        # Widgets stay as they are, and the report is no part of the workflow.
        saved = front.page.evaluate("() => window.app.graph.serialize().nodes.find(n => n.type === 'GtR_Sampler')")
        assert len(saved["widgets_values"]) == 8


WIRES = ("MAR_MODEL", "GTR_SCHEDULE", "GTR_FTS", "GTR_CACHE", "GTR_STEPS")
COLOURS = """types => types.map(type => [window.app.canvas.default_connection_color_byType[type],
    window.app.canvas.constructor.link_type_colors[type],
    getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`).trim()])"""


def test_wires_have_colours_of_their_own(front: FrontEnd) -> None:
    """Slots and links, in both renderers, also after a change of palette."""
    front.open()
    stock = {
        colour for row in front.page.evaluate(COLOURS, ["MODEL", "CONDITIONING", "LATENT", "VAE"]) for colour in row
    }
    found = front.page.evaluate(COLOURS, list(WIRES))
    assert all(len(set(row)) == 1 and re.fullmatch("#[0-9a-f]{6}", row[0]) for row in found)
    assert len({row[0] for row in found} - stock) == len(WIRES)
    for palette in ("light", "dark"):
        with front.setting("Comfy.ColorPalette", palette):
            front.page.wait_for_timeout(500)
            assert front.page.evaluate(COLOURS, list(WIRES)) == found
