"""The budget: what is needed, known beforehand, against what there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .errors import GtRError

if TYPE_CHECKING:
    from .fts import FTS
    from .plan import Plan, Step
    from .spec import ModelSpec

# Tensors of (rows, dim) that live at once in a block: residual, norm, q, k, v, output; and the MLP's two.
BLOCK_TENSORS = 6
HEAD_TENSORS = 8


def noise_bytes(plan: Plan, spec: ModelSpec, fts: FTS | None = None) -> int:
    """The noise of the largest step, drawn in main memory whatever the device."""
    return max((_step_noise(plan, step, spec, fts) for step in plan.steps), default=0)


def activation_bytes(plan: Plan, spec: ModelSpec, *, guided: bool, itemsize: int, fts: FTS | None = None) -> int:
    """An upper estimate in bytes for ``plan``; ``itemsize`` is the transformer's, the head works in float32."""
    rows, peak = plan.batch * (2 if guided else 1), 0
    for step in plan.steps:
        sequence = spec.buffer + step.known.shape[1] + step.tokens + step.context.shape[1]
        block = rows * sequence * spec.dim * (BLOCK_TENSORS + 2 * spec.mlp_ratio) * itemsize
        scores = rows * spec.heads * sequence**2 * itemsize
        head = rows * step.tokens * spec.head.width * HEAD_TENSORS * 4
        peak = max(peak, block + scores, head + _step_noise(plan, step, spec, fts))
    return peak


def check_run(plan: Plan, spec: ModelSpec, *, guided: bool, itemsize: int, device: torch.device | str,
              fts: FTS | None = None) -> None:
    """Raises GtRError for a run that main memory cannot hold; what fits on an accelerator its driver decides."""
    needed = noise_bytes(plan, spec, fts)
    if torch.device(device).type == "cpu":
        needed = max(needed, activation_bytes(plan, spec, guided=guided, itemsize=itemsize, fts=fts))
    check_budget(needed, f"{plan.batch} x {plan.tokens} tokens need")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def _step_noise(plan: Plan, step: Step, spec: ModelSpec, fts: FTS | None) -> int:
    chain = max(step.diffusion_steps, fts.detail_steps if fts and step.reconstruction else 0)
    return plan.batch * step.tokens * spec.head.channels * (chain + 1) * 4


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
