"""The budget: what is needed, known beforehand, against what there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GtRError

if TYPE_CHECKING:
    from .fts import FTS
    from .plan import Plan
    from .spec import ModelSpec

# Tensors of (rows, dim) that live at once in a block: residual, norm, q, k, v, output; and the MLP's two.
BLOCK_TENSORS = 6
HEAD_TENSORS = 8


def activation_bytes(plan: Plan, spec: ModelSpec, *, guided: bool, itemsize: int, fts: FTS | None = None) -> int:
    """An upper estimate in bytes for ``plan``; ``itemsize`` is the transformer's, the head works in float32."""
    rows, peak = plan.batch * (2 if guided else 1), 0
    for step in plan.steps:
        sequence = spec.buffer + step.known.shape[1] + step.tokens + step.context.shape[1]
        block = rows * sequence * spec.dim * (BLOCK_TENSORS + 2 * spec.mlp_ratio) * itemsize
        scores = rows * spec.heads * sequence**2 * itemsize
        steps = max(step.diffusion_steps, fts.detail_steps if fts and step.reconstruction else 0)
        head = rows * step.tokens * spec.head.width * HEAD_TENSORS * 4
        noise = plan.batch * step.tokens * spec.head.channels * (steps + 1) * 4
        peak = max(peak, block + scores, head + noise)
    return peak


def available_bytes() -> int | None:
    """Main memory that a process can still have, swap included; all there is where the system tells no more.

    None where it does not tell (Windows): the allocation itself must fail then.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(size.split()[0]) * 1024 for name, _, size in (line.partition(":") for line in lines)}
        return sizes["MemAvailable"] + sizes["SwapFree"]
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def check_budget(needed: int, what: str, available: int | None = None) -> None:
    """Raises GtRError when ``needed`` bytes are more than ``available``, by default what the system has now.

    To be called before the memory is asked for; ``what`` begins the message, such as 'the weights need'.
    """
    available = available_bytes() if available is None else available
    if available is not None and needed > available:
        raise GtRError(f"{what} {needed / 2**30:.3g} GiB of memory, {available / 2**30:.3g} GiB can be had: make "
                       "the batch, the size or the steps smaller, or free memory")
