"""The budget of main memory: what is needed, known beforehand, against what there is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .errors import GtRError


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
