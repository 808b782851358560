"""Devices: what the hardware is good at, where a run computes, and the budget of main memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from .errors import GtRError

OLDEST_TORCH = (2, 5)
# AMD's architectures whose matrix units take bfloat16: CDNA 1 to 4, RDNA 3 and 4.
AMD_WITH_BFLOAT16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
# Dtypes that a transformer can have, by name.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def dtype_named(dtype: torch.dtype | str) -> torch.dtype:
    """torch's dtype of a name. Raises GtRError."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise GtRError(f"dtype '{dtype}': expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def outdated_torch(version: str = torch.__version__) -> str | None:
    """One line where torch is older than what this library is written for."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not found or found >= OLDEST_TORCH:
        return None
    oldest = ".".join(map(str, OLDEST_TORCH))
    return f"torch {version} is too old for GtR, which needs {oldest} or newer: update torch, or expect errors"


def upload(t: Tensor, device: torch.device | str) -> Tensor:
    """``t`` on the device; to a CUDA device through pinned memory, so that the host does not wait.

    Inside an :class:`UploadsOnce` the same constant is uploaded once.
    """
    once = _uploads_once.get()
    return _upload(t, device) if once is None else once.get(t, device)


def _upload(t: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cuda" and t.device.type == "cpu":
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)


class UploadsOnce:
    """A context in which :func:`upload` keeps what it uploads, by the place of its source: a recording must not hold a
    copy from the host, whose memory has other numbers when it is replayed."""

    def __init__(self) -> None:
        self.kept: dict[tuple, tuple[Tensor, Tensor]] = {}
        self.whole = False
        self.before: list[Token] = []

    def __enter__(self) -> UploadsOnce:
        self.before.append(_uploads_once.set(self))
        return self

    def __exit__(self, *error: object) -> None:
        _uploads_once.reset(self.before.pop())

    def get(self, t: Tensor, device: torch.device | str) -> Tensor:
        """``t`` on the device. Raises RuntimeError for a new one after :meth:`complete`."""
        key = t.data_ptr(), t.shape, t.dtype, str(device)
        if key not in self.kept:
            if self.whole:
                raise RuntimeError("what is to be recorded uploads something new every time")
            self.kept[key] = t, _upload(t, device)  # the source too, so that nothing else takes its place
        return self.kept[key][1]

    def complete(self) -> None:
        """From now on nothing new may come."""
        self.whole = True


_uploads_once: ContextVar[UploadsOnce | None] = ContextVar("uploads_once", default=None)


def fast_dtypes(device: torch.device | str) -> tuple[torch.dtype, ...]:
    """What matrix products are fast in, the fastest first: 16 bit where there are units for it (CUDA from compute
    capability 7.0 on, bfloat16 from 8.0; AMD's CDNA, RDNA 3 and 4, on older ones float16; processors with AVX512-BF16
    or AMX), and float32."""
    device = torch.device(device)
    if device.type == "cuda" and torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName
        units = (torch.bfloat16, torch.float16) if name.startswith(AMD_WITH_BFLOAT16) else (torch.float16,)
    elif device.type == "cuda":
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
    return _cpu_has_one_of("avx512_bf16") or cpu_has_matrix_units()


def cpu_has_matrix_units() -> bool:
    """Whether the processor has AMX, whose tiles torch's own attention in 16 bit uses."""
    return _cpu_has_one_of("amx_bf16", "amx_tile")


def _cpu_has_one_of(*capabilities: str) -> bool:
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name, False) for name in capabilities)


def cpu_has_wide_vectors() -> bool:
    """Whether torch computes with AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@dataclass(frozen=True)
class Machine:
    """What the hardware is good at, as a value: :meth:`detect` asks the device, a test states it.

    ``fast_dtypes`` are those that matrix products are fast in, ``wide_vectors`` says whether torch computes with
    AVX-512, ``matrix_units`` whether the processor has AMX, ``available_bytes`` is free main memory (None = unknown).
    ``smallest_packed`` and ``part_bytes`` are measured limits of processors (docs/performance.md): the weights of a
    layer times images below which packing does not pay, and the size of the MLP's hidden layer above which the time
    per image rises.
    """

    fast_dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    wide_vectors: bool = False
    available_bytes: int | None = None
    smallest_packed: int = 2**18
    part_bytes: int = 16 * 2**20
    matrix_units: bool = False

    @classmethod
    def detect(cls, device: torch.device | str) -> Machine:
        """This machine, as seen from a device."""
        return cls(fast_dtypes(device), cpu_has_wide_vectors(), available_bytes(), matrix_units=cpu_has_matrix_units())


class Preparations:
    """What a run prepared of a model to be faster, kept for the next one that needs the same: one set at most.

    Runs that share this follow one another, and the model's weights must not change meanwhile. :meth:`clear` frees it.
    """

    def __init__(self) -> None:
        self.key: object = None
        self.value: Any = None

    def get(self, key: object, prepare: Callable[[], Any]) -> Any:
        """What has the key; another set is freed before it is prepared."""
        if self.value is None or key != self.key:
            self.clear()
            self.key, self.value = key, prepare()
        return self.value

    def clear(self) -> None:
        self.key = self.value = None


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes.

    ``dtype`` is the transformer's compute dtype; the diffusion chain is float32 always. ``accelerate``, for weights
    that stay where they are, prepares what pays on the ``device``: packed weights on a processor with AVX-512, CUDA
    graphs, and with a 16-bit ``dtype`` a head in 16 bit, except where a step would amplify the rounding
    (docs/performance.md). ``machine`` is detected unless it is given. With ``preparations`` the next run finds what
    this one prepared; without, it goes with the run. Where ``transformer_stays`` is false only the head's weights stay
    where they are: what is recorded of the others would read what has taken their place.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    accelerate: bool = False
    machine: Machine | None = None
    preparations: Preparations | None = field(default=None, compare=False, repr=False)
    transformer_stays: bool = True

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


def available_bytes(root: Path = Path("/"), system: Any = psutil) -> int | None:
    """Main memory that this process can still have, swap included and within the limit of its container.

    None where the system does not tell: the allocation itself must fail then. ``system`` tells as psutil does;
    /proc and /sys are read below ``root``.
    """
    try:
        free, swap = system.virtual_memory().available, system.swap_memory().free
    except (psutil.Error, OSError, RuntimeError, LookupError, ValueError):
        return None
    return min([free + swap, *_container_limits(root, swap)])


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


def _container_limits(root: Path, swap: int) -> Iterator[int]:
    """Bytes that every control group of this process still allows, with at most ``swap`` of them swapped out.

    A group is limited by those above it too. In a container the path that a process is told may be the one outside;
    the container's own group is the topmost then.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    groups = root / "sys/fs/cgroup"
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if "memory" in controllers.split(","):
            top, allowed = groups / "memory", _allowed_v1
        elif not controllers:
            top, allowed = groups, _allowed_v2
        else:
            continue
        inside = Path(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            found = allowed(top / folder, swap)
            if found is not None:
                yield max(found, 0)


def _allowed_v2(group: Path, swap: int) -> int | None:
    """What a group of cgroup v2 still allows; None without a limit."""
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is None or used is None:
        return None
    swap_limit, swapped = _number(group / "memory.swap.max"), _number(group / "memory.swap.current")
    if swap_limit is not None and swapped is not None:
        swap = min(swap, max(swap_limit - swapped, 0))
    return limit - used + _cached(group, ("active_file", "inactive_file")) + swap


def _allowed_v1(group: Path, swap: int) -> int | None:
    """What a group of cgroup v1 still allows; None where it cannot be read. ``memsw`` is memory and swap together."""
    cached = _cached(group, ("total_active_file", "total_inactive_file"))
    limit, used = _number(group / "memory.limit_in_bytes"), _number(group / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    both, used_of_both = _number(group / "memory.memsw.limit_in_bytes"), _number(group / "memory.memsw.usage_in_bytes")
    allowed = limit - used + cached + swap
    return allowed if both is None or used_of_both is None else min(allowed, both - used_of_both + cached)


def _cached(group: Path, names: tuple[str, ...]) -> int:
    """Bytes of files that are counted as the group's, and given up when memory is needed."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        return sum(int(size) for name, _, size in (line.partition(" ") for line in lines) if name in names)
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    """The number that a file holds; None where there is no file, or 'max'."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
