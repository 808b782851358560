"""What `dev.py serve` links to: the demo workflow, in a page that keeps its tabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gtr_tests.frontend import FrontEnd

DRAWN = "type => window.app.graph._nodes.some(node => node.type === type)"


def test_the_page_opens_the_demo_and_keeps_it_over_a_reload(front: FrontEnd) -> None:
    from gtr_tests.server import DEMO_PAGE, HAND_SETTINGS

    assert HAND_SETTINGS.get("Comfy.Workflow.Persist", True)
    front.open()
    with front.setting("Comfy.Workflow.Persist", True):
        front.page.goto(f"{front.url}/{DEMO_PAGE}", wait_until="domcontentloaded")
        front.page.wait_for_function(DRAWN, arg="GtR_Sampler", timeout=60_000)
        front.page.evaluate("() => { window.app.graph._nodes[0].pos[0] += 10; window.app.graph.change(); }")
        front.page.wait_for_timeout(2_000)  # the page writes its tabs a while after a change
        front.open()
        front.page.wait_for_function(DRAWN, arg="GtR_Sampler", timeout=20_000)
        front.page.wait_for_function("() => window.app.extensionManager.setting", timeout=20_000)
