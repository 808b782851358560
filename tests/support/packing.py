"""Packed weights in the tests: whether they can be had here, and a processor on which they pay."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.gtr_core.device import Machine
from gtr_pack.gtr_core.sampling.packed_linear import PackedLinear, unavailable_reason
from torch import nn

REASON = unavailable_reason(torch.float32)
needs_packing = pytest.mark.skipif(REASON is not None, reason=f"layers cannot be packed here: {REASON}")

# A processor on which packing pays, even of small layers, with units for bfloat16.
WIDE = Machine((torch.bfloat16, torch.float32), wide_vectors=True, smallest_packed=0)


def linear_layers(module: nn.Module) -> set[type]:
    """Which kinds of linear layers a module has, plain or packed."""
    return {kind for kind in (nn.Linear, PackedLinear) for each in module.modules() if isinstance(each, kind)}
