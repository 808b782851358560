"""What the hardware is good at."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from .errors import GtRError


def upload(t: Tensor, device: torch.device | str) -> Tensor:
    """``t`` on the device; to a CUDA device through pinned memory, so that the host does not wait."""
    if torch.device(device).type == "cuda" and t.device.type == "cpu":
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)


def fast_dtypes(device: torch.device | str) -> tuple[torch.dtype, ...]:
    """What matrix products are fast in, the fastest first: 16 bit where there are units for it (CUDA 7.0 and newer,
    bfloat16 from 8.0 on; processors with AVX512-BF16 or AMX), and float32."""
    device = torch.device(device)
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        units = (torch.bfloat16, torch.float16) if major >= 8 else (torch.float16,) if major == 7 else ()
    else:
        units = (torch.bfloat16,) if device.type == "cpu" and cpu_has_bfloat16() else ()
    return (*units, torch.float32)


def best_dtype(device: torch.device | str) -> torch.dtype:
    """The transformer's fastest dtype."""
    return fast_dtypes(device)[0]


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware; False where torch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))


def cpu_has_wide_vectors() -> bool:
    """Whether torch computes with AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


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
        raise GtRError(
            f"{what} {needed / 2**30:.3g} GiB of memory, {available / 2**30:.3g} GiB can be had: make "
            "the batch, the size or the steps smaller, or free memory"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
