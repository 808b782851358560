"""A real ComfyUI server in a base folder of its own, with this repository linked in as a custom node."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import rest
from .environment import ROOT
from .errors import DevError

PACK = "gtr-mar"
READY_SECONDS = 180.0
DEMO_PAGE = f"?template=demo&source={PACK}"  # the page opens this workflow beside those of the last time
# Without these the first visit covers the graph with dialogs that catch every click.
HAND_SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Validation.Workflows": True}
# In tests every page also begins empty.
SETTINGS = {**HAND_SETTINGS, "Comfy.Minimap.Visible": False, "Comfy.Workflow.Persist": False}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
QUIET = ("--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:")


class ComfyServer:
    """One server process. `start` returns when it answers; `stop` ends it."""

    def __init__(self, python: Path, comfy: Path, base: Path, *flags: str, port: int = 0) -> None:
        self.python, self.comfy, self.base, self.flags = python, comfy, base, flags
        self.port = port or free_port()
        self.log = base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the server answers, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until it answers; DevError with its last words if it does not."""
        command = [
            str(self.python),
            "main.py",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--base-directory",
            str(self.base),
            *QUIET,
            *self.flags,
        ]
        # glibc keeps large blocks that were freed, as it sees fit; the tests ask what the server holds.
        environment = {
            "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONUTF8": "1",
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.comfy, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + READY_SECONDS
        while not self._answers():
            self.check_alive()
            if time.monotonic() > end:
                raise DevError(
                    f"ComfyUI should answer within {READY_SECONDS:.0f} s, and does not: see {self.log}.\n{self.tail()}"
                )
            time.sleep(0.1)

    def check_alive(self) -> None:
        """DevError with the end of the log if the process has ended."""
        if self._process is None or self._process.poll() is not None:
            code = "it was never started" if self._process is None else f"exit code {self._process.returncode}"
            raise DevError(f"ComfyUI should be running, but has ended ({code}): its last lines are\n{self.tail()}")

    def wait(self) -> int:
        """Wait until the process ends by itself."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """End the process; harmless when it is not running."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End the process at once, as a power cut does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self._text().splitlines()[-lines:])

    def import_trouble(self) -> str:
        """The part of the log about this pack's failed import, empty if it was imported."""
        link = self.base / "custom_nodes" / PACK
        text, _, times = self._text().partition("Import times for custom nodes")
        if f"(IMPORT FAILED): {link}" not in times and f"comfy_entrypoint in {link}" not in text:
            return ""
        lines = text.splitlines()
        first = next((at for at, line in enumerate(lines) if "Traceback" in line or str(link) in line), 0)
        return "\n".join(line for line in lines[first:] if line.strip() not in ("", "[INFO]"))

    def _text(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return COLOURS.sub("", text)

    def _answers(self) -> bool:
        try:
            rest.get(f"{self.url}/system_stats")
        except (urllib.error.URLError, OSError):
            return False
        return True


def make_base(base: Path, pack: Path = ROOT, settings: Mapping[str, Any] = SETTINGS) -> Path:
    """Lay out a base folder: the pack as a custom node, room for models, settings for a quiet front end. Settings that
    are there stay as they are."""
    for name in (
        "custom_nodes",
        "input",
        "output",
        "models/diffusion_models",
        "models/vae",
        "models/text_encoders",
        "user/default",
    ):
        (base / name).mkdir(parents=True, exist_ok=True)
    file = base / "user" / "default" / "comfy.settings.json"
    if not file.exists():
        file.write_text(json.dumps(settings, indent=4))
    link_folder(pack, base / "custom_nodes" / PACK)
    return base


def link_folder(target: Path, link: Path) -> None:
    """Make `link` lead to `target`: a symbolic link, or a junction on Windows, where links need a privilege."""
    if link.exists() and link.samefile(target):
        return
    if link.is_symlink():
        link.unlink()
    if os.name != "nt":
        link.symlink_to(target, target_is_directory=True)
        return
    made = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], capture_output=True, check=False)
    if made.returncode != 0:
        raise DevError(f"a junction {link} to {target} should be made, mklink said {made.stderr!r}: remove {link}.")


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_is_free(port: int) -> bool:
    """True if a server can listen there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
