"""A few seconds of what tests/hostile/fuzz.py does for hours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).with_name("fuzz.py")
SECONDS = float(os.environ.get("GTR_FUZZ_SECONDS", "6"))


def test_mutated_files_and_tables(tmp_path: Path, tally) -> None:
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--minutes", str(SECONDS / 60)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=100 * SECONDS + 600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (tried,) = re.findall(r"TRIED (\d+) inputs", done.stdout)
    assert int(tried) > 20 and not list(tmp_path.iterdir())
    for name, count in re.findall(r"^(files|specs): (\d+) inputs", done.stdout, re.M):
        tally(f"mutated {name}", int(count))
    print(done.stdout)
