"""Reads suspicious files in a process of its own, which may be killed: what came of each, and what was touched.

The child notes every attempt to run a program, open a socket, change the file system or use the plain unpickler.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

CHILD = """
import importlib.util, json, sys
try:
    import resource
except ImportError:
    resource = None
root = {root!r}
spec = importlib.util.spec_from_file_location("gtr_pack", root + "/__init__.py", submodule_search_locations=[root])
module = importlib.util.module_from_spec(spec); sys.modules["gtr_pack"] = module
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, checked_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.statistics import read_statistics
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import recognise_autoencoder
touched = []
BAD = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.mkdir", "os.remove", "os.rename", "os.putenv",
       "subprocess.", "socket.", "pickle.find_class", "ctypes.dlopen", "webbrowser.", "shutil.", "tempfile.")
def watch(event, arguments):
    if event.startswith(BAD) or (event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
        touched.append(f"{{event}} {{arguments}}"[:200])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if resource else 0
def judge(path):
    try:
        if path.endswith(".pkl"):
            read_statistics(path, 16, "x")
            return "read", ""
        checkpoint = read_checkpoint(path)
        checked_vae(checkpoint) if recognise_autoencoder(checkpoint.tensors) else checked_model(checkpoint, heads=4)
        return "read", ""
    except GtRError as error:
        return "refused", str(error)
    except BaseException as error:
        return "crashed", f"{{type(error).__name__}}: {{error}}"
judge({warm!r})
sys.addaudithook(watch)
print("ready", flush=True)
for line in sys.stdin:
    touched.clear()
    before = peak()
    kind, text = judge(json.loads(line))
    print(json.dumps([kind, text, peak() - before, touched]), flush=True)
"""


@dataclass(frozen=True)
class Verdict:
    """``kind`` is read, refused (a GtRError), crashed (another error) or died (killed for the time, or by itself)."""

    kind: str
    text: str = ""
    grown: int = 0
    touched: list[str] = field(default_factory=list)


class Judge:
    """One child at a time; a new one where the last has died."""

    def __init__(self, root: Path, warm: Path) -> None:
        self.code = CHILD.format(root=str(root), warm=str(warm))
        self.asked = 0
        self._process: subprocess.Popen[str] | None = None

    def verdict(self, path: Path, seconds: float) -> Verdict:
        """What reading the file comes to within this time."""
        process = self._running()
        self.asked += 1
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(str(path)) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            timer.cancel()
        return Verdict(*json.loads(answer)) if answer else Verdict("died", f"exit code {process.wait()}")

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", self.code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._process.stdout.readline() == "ready\n"
        return self._process
