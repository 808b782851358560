"""A model's linear layers with weights laid out by oneDNN for the processor at hand (docs/performance.md).

The operations are those that torch's own compiler puts in their place. They are not part of torch's public interface:
:func:`unavailable_reason` tries them before they are used.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..diffusion.head import DiffusionHead
from ..models.layers import Attention, sdpa

# What an operation raises that is not there, takes other arguments, or finds no memory.
FAILURES = (AttributeError, RuntimeError, TypeError)
Module = TypeVar("Module", bound=nn.Module)


class PackedLinear(nn.Module):
    """torch.nn.Linear in ``dtype``, of the weights that ``linear`` has now: x (..., in) in ``dtype`` -> (..., out)."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype), None)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packed(module: Module, dtype: torch.dtype, smallest: int = 0, attention: Attention = sdpa) -> Module:
    """A copy of ``module`` that computes in ``dtype``, a head in its own; all but linear layers of at least
    ``smallest`` weights is shared with it. ``attention`` takes the place of torch's own, and of no other."""
    if isinstance(module, nn.Linear):
        return PackedLinear(module, dtype) if module.weight.numel() >= smallest else module
    dtype = _dtype_within(module, dtype)
    twin = copy.copy(module)
    if getattr(module, "attention", None) is sdpa:
        twin.attention = attention
    twin._modules = {name: packed(child, dtype, smallest, attention) for name, child in module.named_children()}
    return twin


def packed_bytes(module: nn.Module, dtype: torch.dtype, smallest: int = 0) -> int:
    """What the weights of :func:`packed` take."""
    if isinstance(module, nn.Linear):
        return module.weight.numel() * dtype.itemsize if module.weight.numel() >= smallest else 0
    return sum(packed_bytes(child, _dtype_within(module, dtype), smallest) for child in module.children())


def unavailable_reason(dtype: torch.dtype) -> str | None:
    """Why layers cannot be packed here; None where a small one computes what torch's own does."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(32, 32, device="meta")
    linear.weight, linear.bias = (nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((32, 32), (32,)))
    x = torch.randn(4, 32, generator=generator)
    try:
        found, expected = PackedLinear(linear, dtype)(x.to(dtype)).float(), linear(x)
    except FAILURES as error:
        return str(error).partition("\n")[0]
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    return None if difference < 16 * torch.finfo(dtype).eps else f"they differ from torch's by {difference:.1e}"


def _dtype_within(module: nn.Module, dtype: torch.dtype) -> torch.dtype:
    return module.dtype if isinstance(module, DiffusionHead) else dtype
