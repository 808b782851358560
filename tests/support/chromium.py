"""Find a Chromium for the browser tests, or install the distribution's where that is possible."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge")
PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)
PACKAGES = ("chromium", "fonts-dejavu-core")
log = logging.getLogger("gtr_dev")


def find() -> str | None:
    """The path of a Chromium or a relative of it: GTR_CHROMIUM if set, else what is installed."""
    given = os.environ.get("GTR_CHROMIUM")
    if given:
        return shutil.which(given)
    found = (shutil.which(name) for name in NAMES)
    return next((path for path in found if path), None) or next((p for p in PLACES if Path(p).is_file()), None)


def find_or_install() -> str | None:
    """As `find`; as root on Debian or Ubuntu, installs it first where it is missing."""
    if find() is None and not os.environ.get("GTR_CHROMIUM") and _can_install():
        log.info("installing %s", " and ".join(PACKAGES))
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "-qq", *words], env=environment, stdout=subprocess.DEVNULL, check=False)
    return find()


def absence() -> str:
    """Why there is no browser, for the reason of a skipped test."""
    given = os.environ.get("GTR_CHROMIUM")
    if given:
        return f"GTR_CHROMIUM should name a Chromium that can be started, but is {given}"
    return f"no Chromium found (looked for {', '.join(NAMES)}): install one or set GTR_CHROMIUM to its path"


def _can_install() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None
