"""What the hardware is good at."""

from __future__ import annotations

import torch


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
