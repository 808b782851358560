"""Find or make the Python environment and the ComfyUI that this repository runs in."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import comfy_source
from .errors import DevError

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
STATE = ROOT / ".gtr-host"
VENV = ROOT / ".venv"
COMFY = ROOT / ".comfyui"
TORCH = "torch==2.13.0"
TORCH_FRIENDS = ("torchvision==0.28.0", "torchaudio==2.11.0")
HOST_REQUIREMENTS = HERE / "requirements-host.txt"
TEST_REQUIREMENTS = HERE / "requirements-test.txt"
BROWSER_REQUIREMENTS = HERE / "requirements-browser.txt"
# Extras of pyproject.toml that the tests use, and what must be importable when one is installed.
EXTRAS = {"eval": ("torch_fidelity", "matplotlib"), "scale": ("ray", "pyarrow")}
OLDEST_PYTHON = (3, 11)
# In which ComfyUI the tests run: the one that everything is developed with, the oldest supported one, and the newest
# of the package index, which is the same one with the newest front end.
HOSTS = ("pinned", "floor", "newest")
NEWEST_FRONT_END = "comfyui-frontend-package==1.58.1"
log = logging.getLogger("gtr_dev")


@dataclass(frozen=True)
class Host:
    """A Python interpreter and the ComfyUI folder that it can run."""

    python: Path
    comfy: Path
    owned: bool
    """True for this repository's own .venv and .comfyui, False where COMFYUI_PATH names someone else's."""
    front_end: Path | None = None
    """A front end to use instead of the installed one."""


def prepare(which: str = "pinned") -> Host:
    """The host to use, one of HOSTS; makes or repairs the repository's own one where COMFYUI_PATH is unset."""
    given = os.environ.get("COMFYUI_PATH", "")
    if given and which != "pinned":
        raise DevError(f"COMFYUI_PATH is {given}, which is not the {which} ComfyUI: unset it, or leave --comfyui out.")
    return _foreign_host(Path(given).expanduser().resolve()) if given else _own_host(which)


def add_test_tools(host: Host) -> None:
    """Install pytest and its companions."""
    _once(
        _stamp(host, "tools"),
        _key(TEST_REQUIREMENTS.read_text(), host.python),
        "installing the test tools",
        lambda: _pip(host.python, *_target(host, "tools"), "-r", str(TEST_REQUIREMENTS)),
    )


def tool_folders(host: Host) -> list[Path]:
    """Folders to put on sys.path; none where everything is in the repository's own environment.

    Each list of requirements has its own: pip replaces what an earlier one left in a folder.
    """
    return [] if host.owned else [STATE / name for name in ("tools", *EXTRAS, "driver")]


def extra_requirements(name: str) -> Path:
    """The pinned packages of an extra."""
    return HERE / f"requirements-{name}.txt"


def add_extra(host: Host, name: str) -> None:
    """Install an extra; DevError where this platform has no packages of it.

    Without dependencies: the lists are complete, and no package of the host (torch!) is replaced or hidden.
    """
    requirements = extra_requirements(name)

    def install() -> None:
        _pip(host.python, *_target(host, name), "--no-deps", "-r", str(requirements))
        paths = [] if host.owned else [str(STATE / name)]
        _call(
            [str(host.python), "-c", f"import sys; sys.path[:0] = {paths}; import {', '.join(EXTRAS[name])}"],
            f"importing {' and '.join(EXTRAS[name])} failed",
        )

    _once(_stamp(host, name), _key(requirements.read_text(), host.python), f"installing the extra '{name}'", install)


def add_browser_driver(host: Host) -> None:
    """Install the browser driver; DevError where there is none for this platform."""
    _once(
        _stamp(host, "driver"),
        _key(BROWSER_REQUIREMENTS.read_text(), host.python),
        "installing the browser driver",
        lambda: _pip(host.python, *_target(host, "driver"), "-r", str(BROWSER_REQUIREMENTS)),
    )


def has_accelerator(python: Path) -> bool:
    """True if ComfyUI can start without --cpu in this environment."""
    probe = (
        "from importlib.metadata import version as v; import sys\n"
        "if v('torch').endswith('+cpu'): sys.exit(1)\n"
        "import torch; sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available()\n"
        "                            or (hasattr(torch, 'xpu') and torch.xpu.is_available())))"
    )
    return _runs(python, probe)


def _foreign_host(comfy: Path) -> Host:
    if not (comfy / "main.py").is_file():
        raise DevError(
            f"COMFYUI_PATH should name a ComfyUI folder, but {comfy / 'main.py'} does not exist: "
            "correct it, or unset it to let this program make its own."
        )
    python = _python_beside(comfy)
    if not _runs(python, "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"):
        raise DevError(
            f"COMFYUI_PATH is {comfy}, but {python} has no torch: start this program with the Python "
            "that runs that ComfyUI, or unset COMFYUI_PATH."
        )
    return Host(python, comfy, owned=False)


def _python_beside(comfy: Path) -> Path:
    for folder in (comfy / ".venv", comfy / "venv", comfy.parent / ".venv", comfy.parent / "venv"):
        if _venv_python(folder).exists():
            return _venv_python(folder)
    portable = comfy.parent / "python_embeded" / "python.exe"
    return portable if portable.exists() else Path(sys.executable)


def _own_host(which: str) -> Host:
    python = _venv_python(VENV)
    pins = _key(TORCH, *TORCH_FRIENDS, HOST_REQUIREMENTS.read_text())
    if not python.exists():
        (VENV / "gtr-packages.stamp").unlink(missing_ok=True)
    _once(
        VENV / "gtr-packages.stamp",
        pins,
        f"making the Python environment in {VENV} (about 2 GB, some minutes)",
        lambda: _install_packages(python),
    )
    if which == "floor":
        return Host(python, _comfy(python, comfy_source.FLOOR, STATE / "floor"), owned=True)
    comfy = _comfy(python, comfy_source.PINNED, COMFY)
    return Host(python, comfy, owned=True, front_end=_newest_front_end(python) if which == "newest" else None)


def _comfy(python: Path, source: comfy_source.Source, folder: Path) -> Path:
    target, stamp = folder / "ComfyUI", folder / "gtr-comfyui.stamp"
    if not (target / "main.py").is_file():
        stamp.unlink(missing_ok=True)
    _once(
        stamp,
        _key(source.sha256),
        f"fetching ComfyUI {source.version}",
        lambda: comfy_source.fetch(source, lambda *words: _pip(python, *words, verb="download"), target),
    )
    return target


def _newest_front_end(python: Path) -> Path:
    into = STATE / "front-end"
    _once(
        STATE / "gtr-front-end.stamp",
        _key(NEWEST_FRONT_END),
        f"installing {NEWEST_FRONT_END}",
        lambda: _pip(python, "--no-deps", *_into(into), NEWEST_FRONT_END),
    )
    return into / "comfyui_frontend_package" / "static"


def _install_packages(python: Path) -> None:
    _make_venv(python)
    log.info("installing %s", TORCH)
    _pip(python, TORCH)
    _pip(python, "--no-deps", *TORCH_FRIENDS)
    log.info("installing what ComfyUI needs")
    _pip(python, "-r", str(HOST_REQUIREMENTS))
    _call([str(python), str(HERE / "cpu_wheels.py")], "making torchvision and torchaudio importable failed")


def _make_venv(python: Path) -> None:
    if _runs(python, "import pip"):
        return
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise DevError(
            "Python 3.11 or newer is needed for the pinned ComfyUI, but this is "
            f"{sys.version.split()[0]}: use a newer python3, or set COMFYUI_PATH to your own ComfyUI."
        )
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise DevError(
            f"{sys.executable} cannot make virtual environments (ensurepip is missing): install it "
            "(on Debian and Ubuntu: apt-get install python3-venv) and run this again."
        )
    clear = [] if _runs(python, "pass") else ["--clear"]
    _call([sys.executable, "-m", "venv", *clear, str(VENV)], "making the virtual environment failed")


def _venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _runs(python: Path, code: str) -> bool:
    """True if that Python exists and runs this code without an error."""
    if not python.exists():
        return False
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0


def _target(host: Host, name: str) -> tuple[str, ...]:
    return () if host.owned else _into(STATE / name)


def _into(folder: Path) -> tuple[str, ...]:
    return "--upgrade", "--target", str(folder)


def _stamp(host: Host, name: str) -> Path:
    return (VENV if host.owned else STATE) / f"gtr-{name}.stamp"


def _key(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _once(stamp: Path, key: str, what: str, action: Callable[[], None]) -> None:
    """Run the action unless its stamp holds this key; the stamp is written last, so a half-done one is redone."""
    if stamp.is_file() and stamp.read_text() == key:
        return
    log.info("%s", what)
    stamp.unlink(missing_ok=True)
    action()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)


def _pip(python: Path, *words: str, verb: str = "install") -> None:
    wanted = " ".join(word for word in words if not word.startswith("-"))
    _call(
        [str(python), "-m", "pip", verb, "-qq", "--disable-pip-version-check", *words], f"pip could not {verb} {wanted}"
    )


def _call(command: Sequence[str], failure: str) -> None:
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise DevError(
            f"{failure} (exit code {code}, its own message is above): check the network and the free "
            "disk space and run this again, it goes on where it stopped."
        )
