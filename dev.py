#!/usr/bin/env python3
"""One program for the repository: `demo` makes an image, `test` runs every test, `serve` opens ComfyUI by hand.

The first run makes .venv and .comfyui here (a pinned ComfyUI, checked by hash); later runs start at once.
Set COMFYUI_PATH to use a ComfyUI of your own instead. Needs the standard library only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _load_helpers() -> None:
    """Make tests/support importable as gtr_tests: another package `tests` may be installed, and would win."""
    folder = Path(__file__).resolve().parent / "tests" / "support"
    spec = importlib.util.spec_from_file_location(
        "gtr_tests", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules["gtr_tests"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load_helpers()

from gtr_tests import chromium, environment, rest  # noqa: E402
from gtr_tests.environment import ROOT, STATE, Host  # noqa: E402
from gtr_tests.errors import DevError  # noqa: E402
from gtr_tests.server import DEMO_PAGE, HAND_SETTINGS, ComfyServer, link_folder, make_base, port_is_free  # noqa: E402

from gtr_core.openmp import bound_spinning  # noqa: E402

DEMO = ROOT / "workflows" / "api" / "demo.json"
OUTPUT = ROOT / "output"
PROCESSES = 4  # of a whole test run, at most
# Of a run with --fast: no server, no kills, no fuzzing. What it names as slowest may need the mark `slow`.
FAST = ["--durations=5", "tests/core", "tests/support"]
# Unlike -m, this keeps the repository root, with its folder `nodes`, off the import path.
RUN_PYTEST = "import sys; sys.path[:] = [p for p in {tools} + sys.path if p]; import pytest; sys.exit(pytest.main())"

log = logging.getLogger("gtr_dev")


def demo(options: argparse.Namespace) -> int:
    """Run the demo workflow in a real ComfyUI; the last line printed is the path of the image."""
    if not DEMO.is_file():
        raise DevError(f"{DEMO} should hold the demo workflow and does not exist: restore it from the repository.")
    graph = json.loads(DEMO.read_text(encoding="utf-8"))
    server = _server(environment.prepare(), options.cpu)
    try:
        server.start()
        entry = _run(server, graph)
    finally:
        server.stop()
    for text in _texts(entry):
        print(text)
    images = _images(entry)
    if not images:
        raise DevError(f"{DEMO} should save an image and saved none: does it still have a SaveImage node?")
    print(images[-1])
    return 0


def test(options: argparse.Namespace) -> int:
    """Run every test, those in ComfyUI and in the browser included; what is skipped is listed with its reason.

    With --fast only those that need neither a server nor a browser and take little time. Other arguments are pytest's.
    Without any, the tests are shared between a few processes, each with a server of its own. --comfyui says in which
    ComfyUI they run: the pinned one, the oldest supported one, or the newest with the newest front end.
    """
    host = environment.prepare(options.comfyui)
    environment.add_test_tools(host)
    extra = {"COMFYUI_PATH": str(host.comfy), **_extras(host)}
    if host.front_end is not None:
        extra["GTR_FRONT_END"] = str(host.front_end)
    words = options.pytest
    if not words:
        cores = os.cpu_count() or 1
        processes = min(cores, PROCESSES)
        words = ["-n", str(processes), "--no-loadscope-reorder", "--dist", "loadfile"]
        extra["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(cores // processes))
    if options.fast:
        named = any(Path(word.partition("::")[0]).exists() for word in options.pytest)
        words = ["-m", "not slow", *words, *([] if named else FAST)]
    else:
        extra |= _browser(host)
    code = RUN_PYTEST.format(tools=[str(folder) for folder in environment.tool_folders(host)])
    return _child([str(host.python), "-c", code, "-rfEs", *words], {**os.environ, **extra})


def serve(options: argparse.Namespace) -> int:
    """Start ComfyUI with this pack for hand use, with a link that opens the demo workflow; ends with Ctrl-C."""
    if not port_is_free(options.port):
        raise DevError(f"port {options.port} should be free, something listens there: choose another with --port.")
    server = _server(environment.prepare(), options.cpu, "--preview-method", "auto", port=options.port)
    try:
        server.start()
        print(
            f"ComfyUI: {server.url}/{DEMO_PAGE}\nmodels:  {server.base / 'models'}\nlog:     {server.log}", flush=True
        )
        if options.open:
            webbrowser.open(f"{server.url}/{DEMO_PAGE}")
        if server.wait():
            server.check_alive()  # says how it ended
        return 0
    except KeyboardInterrupt:
        return 0
    finally:
        server.stop()


def _server(host: Host, cpu: bool, *flags: str, port: int = 0) -> ComfyServer:
    base = STATE / "base"
    if not host.owned:
        base = STATE / "base-own"
        base.mkdir(parents=True, exist_ok=True)
        link_folder(host.comfy / "models", base / "models")
    make_base(base, settings=HAND_SETTINGS)
    OUTPUT.mkdir(exist_ok=True)
    if cpu or not environment.has_accelerator(host.python):
        flags = ("--cpu", *flags)
    log.info("starting ComfyUI%s", " on the CPU" if "--cpu" in flags else "")
    return ComfyServer(host.python, host.comfy, base, "--output-directory", str(OUTPUT), *flags, port=port)


def _run(server: ComfyServer, graph: rest.Graph) -> dict[str, Any]:
    """Run a graph to its end; DevError if the server refuses it or a node fails."""
    log.info("running %s", DEMO.name)
    try:
        prompt_id = rest.queue(server.url, graph)
    except rest.Refused as refused:
        raise DevError(f"{DEMO.name} was refused: {refused}\n{server.import_trouble()}".rstrip()) from None
    entry = rest.wait(server.url, prompt_id, server.check_alive)
    failed = rest.failure(entry)
    if failed is not None:
        raise DevError(f"{rest.blame(failed)}; log: {server.log}")
    return entry


def _texts(entry: dict[str, Any]) -> list[str]:
    return [str(text) for output in entry["outputs"].values() for text in output.get("text", ())]


def _images(entry: dict[str, Any]) -> list[Path]:
    return [
        OUTPUT / image["subfolder"] / image["filename"]
        for output in entry["outputs"].values()
        for image in output.get("images", ())
        if image["type"] == "output"
    ]


def _extras(host: Host) -> dict[str, str]:
    """Install the extras that tests use; environment variables that say why one is not there."""
    reasons = {}
    for name in environment.EXTRAS:
        try:
            environment.add_extra(host, name)
        except DevError as error:
            reasons[f"GTR_NO_{name.upper()}"] = f"the extra '{name}' could not be installed: {error}"
    return reasons


def _browser(host: Host) -> dict[str, str]:
    """Environment variables for the browser tests: where Chromium is, or why they cannot run."""
    try:
        environment.add_browser_driver(host)
    except DevError as error:
        return {"GTR_NO_BROWSER": f"the browser driver could not be installed: {error}"}
    found = chromium.find_or_install()
    return {"GTR_CHROMIUM": found} if found else {"GTR_NO_BROWSER": chromium.absence()}


def _child(command: Sequence[str], variables: dict[str, str]) -> int:
    """Run a program to its end; when this one is stopped, so is that one, and in time to clean up."""
    process = subprocess.Popen(command, cwd=ROOT, env=variables)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__.split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for action in (demo, serve):
        verb = verbs.add_parser(action.__name__, help=action.__doc__)
        verb.add_argument("--cpu", action="store_true", help="use the CPU even where there is an accelerator")
        verb.set_defaults(action=action)
    verb.add_argument("--port", type=int, default=8188)
    verb.add_argument("--open", action="store_true", help="open the page in the browser")
    verb = verbs.add_parser("test", help=test.__doc__, add_help=False, allow_abbrev=False)
    verb.add_argument("--fast", action="store_true")
    verb.add_argument("--comfyui", choices=environment.HOSTS, default="pinned")
    verb.set_defaults(action=test)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Parse the command line and run its verb; 1 with one clear line on standard error if it cannot be done."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options, rest_of_line = _parser().parse_known_args(words)
    if rest_of_line and options.verb != "test":
        _parser().error(f"unrecognized arguments: {' '.join(rest_of_line)}")
    options.pytest = rest_of_line
    bound_spinning()
    try:
        return options.action(options)
    except (DevError, OSError) as error:
        print(f"dev.py {options.verb}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
