"""The head's step in Triton: its kernels interpreted on the CPU, against torch's own operations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gtr_pack.gtr_core.diffusion.cuda_graphs import TOLERANCE_16_BIT

ROOT = Path(__file__).resolve().parents[3]
INTERPRETED = """
import torch
from gtr_core.diffusion.cuda_graphs import CHECKED_ROWS, disagreement
from gtr_core.diffusion.head import DiffusionHead, HeadSpec
from gtr_core.diffusion.triton_kernels import advance

head, generator = DiffusionHead(HeadSpec(16, 64, 96, 3)).requires_grad_(False), torch.Generator().manual_seed(1)
for parameter in head.parameters():
    parameter.normal_(0.0, 0.2, generator=generator)
for each in (head, head.copied(torch.bfloat16)):
    buffer = torch.zeros(CHECKED_ROWS, sum(head.widths), dtype=each.dtype)
    print(*(disagreement(each, buffer, advance, n) for n in (1, 2)))
"""


# One program has all columns: those of the interpreter run one after another, and could not wait for each other.
FEW_ROWS = """
from functools import partial
import torch
from gtr_core.diffusion.cuda_graphs import CHECKED_ROWS, disagreement
from gtr_core.diffusion.triton_few_rows import Launch, advance
from gtr_core.diffusion.head import DiffusionHead, HeadSpec

head, generator = DiffusionHead(HeadSpec(16, 64, 96, 3)).requires_grad_(False), torch.Generator().manual_seed(1)
for parameter in head.parameters():
    parameter.normal_(0.0, 0.2, generator=generator)
head = head.copied(torch.float32, joined=True)
for launch in (Launch(8, split=4, tile=128), Launch(4, split=1, tile=128), Launch(32, split=2, tile=128)):
    step = partial(advance, launch=launch)
    print(*(disagreement(head, torch.zeros(CHECKED_ROWS, sum(head.widths)), step, n) for n in (1, 2)))
"""


def interpreted(program: str) -> list[list[float]]:
    """The lines of numbers that a program prints, with Triton's kernels interpreted."""
    pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for CUDA")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_the_step_in_a_single_kernel_equals_torchs():
    """However the kernel is cut."""
    differences = interpreted(FEW_ROWS)
    assert len(differences) == 3 and all(0 < each < 1e-4 for line in differences for each in line)


def test_the_step_in_triton_equals_torchs():
    exact, low_precision = interpreted(INTERPRETED)
    assert all(0 < difference < 1e-5 for difference in exact)
    assert all(0 < difference < TOLERANCE_16_BIT for difference in low_precision)
