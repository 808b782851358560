"""The command line: ``python -m gtr_core``, or ``gtr`` where the library is installed."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from .openmp import bound_spinning

# What to install, and the name to import it by: the extra 'standalone'. Every ComfyUI brings these.
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "einops": "einops",
    "Pillow": "PIL",
    "scipy": "scipy",
    "psutil": "psutil",
    "tqdm": "tqdm",
}

READER_LEFT = 141  # as a shell reports SIGPIPE


def main() -> int:
    """Run the command line. Whoever reads the output, such as ``head``, may leave before its end."""
    try:
        try:
            return run_verb()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still to be written at the exit goes nowhere, without another complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT


def run_verb() -> int:
    """Run the command line; without the packages that it needs, one line says which to install."""
    missing = [package for package, module in NEEDED.items() if find_spec(module) is None]
    if missing:
        print(f"error: {', '.join(missing)} not installed here: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    bound_spinning()
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
