"""Devices: what they are good at, and a machine as a value."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from gtr_pack.gtr_core import device as hardware
from gtr_pack.gtr_core.device import Machine, Runtime, best_dtype, dtype_named, fast_dtypes
from gtr_pack.gtr_core.errors import GtRError


@pytest.mark.parametrize("device, dtype", [("mps", torch.float32), ("xpu", torch.float32), ("meta", torch.float32)])
def test_float32_where_nothing_faster_is_known(device, dtype):
    assert best_dtype(device) == dtype


@pytest.mark.parametrize(
    "capabilities, dtypes",
    [
        ({"avx2": True}, (torch.float32,)),
        ({}, (torch.float32,)),
        ({"avx512_bf16": True}, (torch.bfloat16, torch.float32)),
        ({"avx512_bf16": False, "amx_tile": True}, (torch.bfloat16, torch.float32)),
    ],
)
def test_bfloat16_on_processors_with_units_for_it(capabilities, dtypes, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fast_dtypes("cpu") == dtypes
    assert Machine.detect("cpu").matrix_units == ("amx_tile" in capabilities)


@pytest.mark.parametrize(
    "generation, dtypes",
    [
        (9, (torch.bfloat16, torch.float16, torch.float32)),
        (8, (torch.bfloat16, torch.float16, torch.float32)),
        (7, (torch.float16, torch.float32)),
        (6, (torch.float32,)),
    ],
)
def test_16_bit_on_cuda_devices_with_units_for_it(generation, dtypes, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    assert fast_dtypes("cuda") == dtypes


@pytest.mark.parametrize(
    "name, first",
    [
        ("gfx1030", torch.float16),
        ("gfx906:sramecc+:xnack-", torch.float16),
        ("gfx90a:sramecc+:xnack-", torch.bfloat16),
        ("gfx942", torch.bfloat16),
        ("gfx1100", torch.bfloat16),
        ("gfx1201", torch.bfloat16),
    ],
)
def test_16_bit_on_amd_devices_by_their_units(name, first, monkeypatch):
    """ROCm counts its versions otherwise: RDNA 2, without units for bfloat16, is 10.3."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=name))
    assert best_dtype("cuda") == first and fast_dtypes("cuda")[-1] == torch.float32


def test_a_stated_machine_is_believed():
    machine = Machine((torch.bfloat16, torch.float32), wide_vectors=True, available_bytes=7)
    runtime = Runtime(machine=machine)
    assert runtime.hardware is machine and runtime.available_bytes == 7


def test_free_memory_is_asked_anew_every_time(monkeypatch):
    """A runtime may live as long as its process, as a default argument does."""
    runtime, answers = Runtime(), iter((1, 2, 3))
    monkeypatch.setattr(hardware, "available_bytes", lambda: next(answers))
    assert runtime.hardware is runtime.hardware
    assert [runtime.available_bytes, runtime.available_bytes] == [2, 3]


def test_a_dtype_by_name():
    assert dtype_named("bfloat16") == dtype_named(torch.bfloat16) == torch.bfloat16
    with pytest.raises(GtRError, match="expected one of float32, float16, bfloat16"):
        dtype_named("float8")
