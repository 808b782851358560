"""Fixtures of the browser tests: the real front end of the shared server in a headless Chromium."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gtr_tests.frontend import FrontEnd
    from gtr_tests.server import ComfyServer
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where Chromium is; skips with the reason where the browser cannot be driven."""
    from gtr_tests import chromium

    if reason := os.environ.get("GTR_NO_BROWSER"):
        pytest.skip(reason)
    pytest.importorskip("playwright.sync_api", reason="the driver is not installed: run python3 dev.py test")
    return chromium.find() or pytest.skip(chromium.absence())


# Not for the whole session: while the driver is open it keeps an event loop in this thread.
@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    """A running Chromium."""
    from gtr_tests.frontend import launch
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = launch(playwright, chromium_path)
        yield running
        running.close()


@pytest.fixture
def front(
    browser: Browser, comfy_server: ComfyServer, pack_nodes: dict[str, Any], tmp_path: Path
) -> Iterator[FrontEnd]:
    """The front end in a fresh page, not yet opened."""
    from gtr_tests.frontend import FrontEnd, new_page

    with new_page(browser) as page:
        yield FrontEnd(page, comfy_server.url, sorted(pack_nodes), tmp_path)


@pytest.fixture(scope="module")
def opened(
    browser: Browser, comfy_server: ComfyServer, pack_nodes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FrontEnd]:
    """The front end in one open page, for tests that show one graph after the other: opening it takes seconds."""
    from gtr_tests.frontend import FrontEnd, new_page

    with new_page(browser) as page:
        front = FrontEnd(page, comfy_server.url, sorted(pack_nodes), tmp_path_factory.mktemp("opened"))
        front.open()
        yield front


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add an image of the page and what its console said to the report of a failed test."""
    report = yield
    values = getattr(item, "funcargs", {})
    front = values.get("front") or values.get("opened")
    if report.when == "call" and report.failed and front is not None:
        image = front.screenshot(f"failed-{item.name}")
        report.sections.append(("page", "\n".join([f"image: {image}", *front.console[-20:]])))
    return report
