"""What the hardware is good at."""

from __future__ import annotations

import torch


def best_dtype(device: torch.device | str) -> torch.dtype:
    """The transformer's fastest dtype: bfloat16 where there are units for it, else float16 on CUDA devices with tensor
    cores, else float32. The diffusion head is float32 in any case."""
    device = torch.device(device)
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else torch.float32
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware; False where torch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))
