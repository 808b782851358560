"""Devices: what the hardware is good at, where a run computes, and the budget of main memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .errors import GtRError

# Dtypes that a transformer can have, by name.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def dtype_named(dtype: torch.dtype | str) -> torch.dtype:
    """torch's dtype of a name. Raises GtRError."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise GtRError(f"dtype '{dtype}': expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


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


@dataclass(frozen=True)
class Machine:
    """What the hardware is good at, as a value: :meth:`detect` asks the device, a test states it.

    ``fast_dtypes`` are those that matrix products are fast in, ``wide_vectors`` says whether torch computes with
    AVX-512, ``available_bytes`` is free main memory (None = unknown). ``smallest_packed`` and ``part_bytes`` are
    measured limits of processors (docs/performance.md): the weights of a layer times images below which packing does
    not pay, and the size of the MLP's hidden layer above which the time per image rises.
    """

    fast_dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    wide_vectors: bool = False
    available_bytes: int | None = None
    smallest_packed: int = 2**18
    part_bytes: int = 16 * 2**20

    @classmethod
    def detect(cls, device: torch.device | str) -> Machine:
        """This machine, as seen from a device."""
        return cls(fast_dtypes(device), cpu_has_wide_vectors(), available_bytes())


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes.

    ``dtype`` is the transformer's compute dtype; the diffusion chain is float32 always. ``accelerate``, for weights
    that stay where they are, prepares what pays on the ``device``: packed weights on a processor with AVX-512, CUDA
    graphs of the head, and with a 16-bit ``dtype`` a head in 16 bit, except where a step would amplify the rounding
    (docs/performance.md). ``machine`` is detected unless it is given.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    accelerate: bool = False
    machine: Machine | None = None

    @cached_property
    def hardware(self) -> Machine:
        """The machine, asked once; how much memory is free changes, see :attr:`available_bytes`."""
        return self.machine or Machine.detect(self.device)

    @property
    def available_bytes(self) -> int | None:
        """Free main memory now, or what a given machine states; None = unknown."""
        return available_bytes() if self.machine is None else self.machine.available_bytes

    @property
    def type(self) -> str:
        """The device's kind, such as 'cpu' or 'cuda'."""
        return torch.device(self.device).type


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
