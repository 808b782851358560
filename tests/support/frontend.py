"""ComfyUI's own web page in a headless Chromium, as the browser tests drive it."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Playwright, TimeoutError

from .server import PACK

CHROMIUM_FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing outside this machine is reached. A route of the driver's would do it too, without the browser's cache.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
READY = """types => window.app && window.app.extensionManager && window.LiteGraph && window.app.graph
    && types.every(type => type in window.LiteGraph.registered_node_types)"""
SHOWN = "types => window.app.graph._nodes.some(n => types === null || types.includes(n.type))"
EVENTS = (
    "execution_start",
    "execution_cached",
    "executing",
    "progress",
    "executed",
    "execution_success",
    "execution_error",
    "execution_interrupted",
)
# The page collects its events, and keeps them until the test asks.
LISTEN = """names => {
    const seen = window.gtrEvents = [];
    if (window.gtrListens) return;
    window.gtrListens = true;
    for (const name of names)
        window.app.api.addEventListener(name, e => window.gtrEvents.push([name, e.detail ?? null]));
    window.app.api.addEventListener('b_preview', e => window.gtrEvents.push(['b_preview', {size: e.detail.size}]));
}"""
# The last message of a run is `executing` without a node; one may still be under way from the run before.
ENDED = """() => { const end = window.gtrEvents.findIndex(([name]) =>
        ['execution_success', 'execution_error', 'execution_interrupted'].includes(name));
    return end >= 0 && window.gtrEvents.slice(end).some(([name, detail]) =>
        name === 'executing' && detail === null); }"""
NODES = """() => window.app.graph._nodes.map(n => ({id: String(n.id), type: n.type, title: n.title,
    known: n.type in window.LiteGraph.registered_node_types, size: [n.size[0], n.size[1]]}))"""
# In Nodes 2.0 a node is a part of the page; the canvas knows the boxes of the others.
OVERLAPS = """() => { const boxes = window.app.graph._nodes.map(n => {
        const part = document.querySelector(`[data-node-id='${n.id}']`)?.getBoundingClientRect();
        const [x, y, w, h] = part ? [part.x, part.y, part.width, part.height] : n.boundingRect;
        return [`${n.id} ${n.title}`, x, y, x + w, y + h]; });
    return boxes.flatMap((a, k) => boxes.slice(k + 1)
        .filter(b => Math.min(a[3], b[3]) - Math.max(a[1], b[1]) > 1 && Math.min(a[4], b[4]) - Math.max(a[2], b[2]) > 1)
        .map(b => `${a[0]} / ${b[0]}`)); }"""
ZOOM = "() => [window.app.canvas.ds.scale, window.app.canvas.low_quality]"
IMAGE = """type => { const n = window.app.graph._nodes.find(n => n.type === type);
    const image = n && n.imgs && n.imgs[0];
    return image && image.naturalWidth > 0 ? [image.naturalWidth, image.naturalHeight] : null; }"""
DROP = """([data, name, type]) => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const transfer = new DataTransfer(); transfer.items.add(new File([bytes], name, {type})); return transfer; }"""
# A message in the corner of the page, as older and newer front ends show it.
TOAST = ".p-toast-message-error, ol.fixed > li"
COMPLAINTS = (
    "[data-testid='error-overlay'], [data-testid^='missing-'], [data-testid='dialog-overlay'], "
    f"[role='dialog'], {TOAST}"
)
HELP, INFO = ".node-help-content", "[data-testid='info-button']"
SELECTED = """id => { const canvas = window.app.canvas; const node = window.app.graph.getNodeById(id);
    if (canvas.selectedItems.has(node) && document.querySelector("[data-testid='info-button']")) return true;
    canvas.deselectAll(); canvas.selectNode(node); return false; }"""
MEDIA_TYPES = {".json": "application/json", ".png": "image/png"}


@dataclass(frozen=True)
class DrawnNode:
    """A node on the canvas; `known` says that the front end has a definition for its type."""

    id: str
    type: str
    title: str
    known: bool
    size: tuple[float, float]


class FrontEnd:
    """The page of one server. `types` are the node types that must be registered before anything is done."""

    def __init__(self, page: Page, url: str, types: list[str], shots: Path) -> None:
        self.page, self.url, self.types, self.shots = page, url, types, shots
        self.console: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.console.append(f"page error: {error}"))

    def open(self, template: str | None = None) -> None:
        """Open the page, with one of the pack's templates if named, and wait until it can be used.

        Without a template the front end shows a workflow of its own; what is loaded before that one would be replaced.
        """
        query = "" if template is None else "?" + urlencode({"template": template, "source": PACK})
        self.page.goto(f"{self.url}/{query}", wait_until="domcontentloaded")
        self.page.wait_for_function(READY, arg=self.types, timeout=60_000)
        self.page.wait_for_function(SHOWN, arg=None if template is None else self.types, timeout=20_000)

    def browse_templates(self) -> None:
        """Open the template browser at this pack's templates."""
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_text(PACK, exact=True).first.click()

    def help_of(self, node_id: int) -> str:
        """Select a node, click its info button; gives the text of the help page once it is there."""
        # Once is not enough while the page still settles after its start.
        self.page.wait_for_function(SELECTED, arg=node_id, polling=500, timeout=40_000)
        if not self.page.locator(HELP).is_visible():
            self.page.locator(INFO).first.click()
        self.page.locator(f"{HELP} h1").first.wait_for(timeout=40_000)
        return self.page.locator(HELP).first.inner_text()

    def load(self, workflow: dict[str, Any]) -> None:
        """Show a workflow (the UI's JSON)."""
        self.page.evaluate("async workflow => { await window.app.loadGraphData(workflow); }", workflow)

    def search_nodes(self, x: int, y: int) -> None:
        """Open the node search at a free place of the canvas; keys go to it afterwards."""
        # Once is not enough while the page still settles after its start.
        for _ in range(5):
            self.page.locator("#graph-canvas").dblclick(position={"x": x, "y": y})
            try:
                self.page.wait_for_function("() => document.activeElement?.tagName === 'INPUT'", timeout=5_000)
                return
            except TimeoutError:
                continue
        raise AssertionError("the node search should open on a double click, and does not")

    def click_run(self, timeout: float = 120) -> list[tuple[str, Any]]:
        """Click Run and wait for the end of the run; gives its events as (name, detail)."""
        self.page.evaluate(LISTEN, list(EVENTS))
        self.page.locator("[data-testid='queue-button']").first.click()
        self.page.wait_for_function(ENDED, timeout=timeout * 1000)
        return [(name, detail) for name, detail in self.page.evaluate("() => window.gtrEvents")]

    def nodes(self) -> list[DrawnNode]:
        """Every node on the canvas."""
        return [DrawnNode(**{**node, "size": tuple(node["size"])}) for node in self.page.evaluate(NODES)]

    def overlaps(self) -> list[str]:
        """Every pair of nodes that cover each other, in either renderer."""
        return self.page.evaluate(OVERLAPS)

    def zoom(self) -> tuple[float, bool]:
        """The zoom of the canvas, and whether it leaves out the nodes' text."""
        scale, without_text = self.page.evaluate(ZOOM)
        return scale, without_text

    def image_size(self, node_type: str, timeout: float = 20) -> tuple[int, int]:
        """Width and height of the image that a node of this type shows; waits for it."""
        handle = self.page.wait_for_function(IMAGE, arg=node_type, timeout=timeout * 1000)
        width, height = handle.json_value()
        return width, height

    def widget_texts(self, node_type: str, widget: str) -> list[str]:
        """What a text widget of this name shows in every node of this type that has it."""
        return self.page.evaluate(
            """([type, name]) => window.app.graph._nodes.filter(n => n.type === type)
            .flatMap(n => (n.widgets ?? []).filter(w => w.name === name).map(w => w.element.textContent))""",
            [node_type, widget],
        )

    def set_widgets(self, values: dict[str, Any]) -> None:
        """Give every widget of these names its value."""
        self.page.evaluate(
            """values => { for (const n of window.app.graph._nodes) for (const w of n.widgets ?? [])
            if (w.name in values) w.value = values[w.name]; }""",
            values,
        )

    @contextmanager
    def setting(self, name: str, value: Any) -> Iterator[None]:
        """Change a setting of the page's user for a while."""
        change = "async ([name, value]) => { await window.app.extensionManager.setting.set(name, value); }"
        before = self.page.evaluate("name => window.app.extensionManager.setting.get(name)", name)
        self.page.evaluate(change, [name, value])
        try:
            yield
        finally:
            self.page.evaluate(change, [name, before])

    def graph_to_prompt(self) -> dict[str, Any]:
        """The API format of what is shown, made by the front end itself."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def drop(self, file: Path) -> None:
        """Drop a workflow or an image that carries one on the canvas."""
        words = [base64.b64encode(file.read_bytes()).decode(), file.name, MEDIA_TYPES[file.suffix]]
        self.page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": self.page.evaluate_handle(DROP, words)})

    @property
    def toasts(self) -> Locator:
        """The messages in the corner of the page."""
        return self.page.locator(TOAST)

    def wait_for_toast(self, text: str, timeout: float = 20) -> None:
        """Wait until one of them says this."""
        self.toasts.get_by_text(text).first.wait_for(timeout=timeout * 1000)

    def complaints(self, settle: float = 1.0) -> list[str]:
        """The text of every dialog, error or missing-node card that is seen after the time they take to come up."""
        self.page.wait_for_timeout(settle * 1000)
        found = self.page.locator(COMPLAINTS).all()
        return [text for text in (item.inner_text().strip() for item in found if item.is_visible()) if text]

    def assert_shows(self, workflow: dict[str, Any]) -> None:
        """Every node of the workflow is on the canvas, known and with an area, and nothing complains."""
        drawn = self.nodes()
        assert sorted(node.type for node in drawn) == sorted(node["type"] for node in workflow["nodes"])
        assert [node.type for node in drawn if not node.known] == []
        assert all(min(node.size) > 0 for node in drawn)
        assert self.complaints() == []

    def fit(self) -> None:
        """Bring the whole graph into view."""
        self.page.evaluate("() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(800)

    def screenshot(self, name: str) -> Path:
        """Save what is seen as `name`.png in the folder GTR_SHOTS, or the test's own."""
        path = Path(os.environ.get("GTR_SHOTS") or self.shots) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)
        return path

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.console.append(f"{message.type}: {message.text}")


def launch(playwright: Playwright, chromium: str) -> Browser:
    """Start Chromium without a window."""
    return playwright.chromium.launch(executable_path=chromium, headless=True, args=list(CHROMIUM_FLAGS))


@contextmanager
def new_page(browser: Browser, locale: str = "en-US") -> Iterator[Page]:
    """A page with storage of its own, from which nothing outside this machine can be reached."""
    context = browser.new_context(viewport={"width": 1500, "height": 900}, locale=locale)
    try:
        yield context.new_page()
    finally:
        context.close()
