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
from gtr_core.diffusion.cuda_graphs import disagreement
from gtr_core.diffusion.head import DiffusionHead, HeadSpec
from gtr_core.diffusion.triton_kernels import advance

head, generator = DiffusionHead(HeadSpec(16, 64, 96, 3)).requires_grad_(False), torch.Generator().manual_seed(1)
for parameter in head.parameters():
    parameter.normal_(0.0, 0.2, generator=generator)
for each in (head, head.copied(torch.bfloat16)):
    print(*(disagreement(each, torch.zeros(16, sum(head.widths), dtype=each.dtype), advance, n) for n in (1, 2)))
"""


def test_the_step_in_triton_equals_torchs():
    pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for CUDA")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    exact, low_precision = (map(float, line.split()) for line in done.stdout.splitlines())
    assert all(0 < difference < 1e-5 for difference in exact)
    assert all(0 < difference < TOLERANCE_16_BIT for difference in low_precision)
