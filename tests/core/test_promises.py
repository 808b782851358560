"""No network and no other program unless asked: the command line under an audit of everything that it touches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Python reports every connection, name look-up and new process to audit hooks, whoever makes it.
AUDITED = """
import sys
from gtr_core.cli import main
from gtr_core.demo import DEMO_MAR, DEMO_VAE
def refuse(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "urllib.",
                         "ftplib.", "http.", "smtplib.", "webbrowser.")):
        sys.stderr.write(f"FORBIDDEN {event} {arguments}\\n")
        raise PermissionError(event)
sys.addaudithook(refuse)
fast = ["--steps", "1,1,1", "--diffusion", "2,2,2", "--fts-steps", "2"]
for line in (["info", str(DEMO_VAE)], ["convert", str(DEMO_MAR), "a.safetensors"], ["schedule", "--figure", "a.png"],
             ["flops", "--model", "demo"], ["generate", *fast, "-o", "b.png"],
             ["generate", *fast, "--image", "b.png", "--redraw", "variations", "-o", "c.png"],
             ["bench", "--model", "demo", "--presets", "gtr-extreme", "--rounds", "1"]):
    assert main(line) == 0, line
try:
    import socket; socket.create_connection(("127.0.0.1", 9), 1)
except PermissionError:
    print("AUDIT WORKS")
"""


@pytest.mark.slow
def test_no_network_and_no_programs(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{AUDITED}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("AUDIT WORKS\n"), done.stderr[-2000:]
    assert done.stderr.count("FORBIDDEN") == 1, done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "a.png", "b.png", "c.png"}
