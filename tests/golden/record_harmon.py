"""Writes harmon_small.npz and the weights behind it: ``python tests/golden/record_harmon.py``.

The arrays are this library's own, made when it agreed with the original code on recorded numbers that may not be
shipped (README.md). They are made anew only with a change that is meant to change what the model computes.
"""

import runpy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent
# The names under which tests import the repository and tests/support.
runpy.run_path(str(FOLDER.parent / "conftest.py"))
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata  # noqa: E402
from gtr_tests.harmon import record, seeded_harmon  # noqa: E402

model = seeded_harmon()
weights = {name: tensor.half() for name, tensor in model.state_dict().items()}
model.load_state_dict(weights)
save_file(weights, FOLDER / "harmon_small_fp16.safetensors", spec_metadata(model.spec, "model"))
with torch.no_grad():
    arrays = {name: tensor.numpy() for name, tensor in record(model).items()}
np.savez_compressed(FOLDER / "harmon_small.npz", **arrays)
