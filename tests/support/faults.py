"""Faults on demand: an exception at the n-th allocation of a piece of code, and what of its tensors is left."""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Fault(TorchDispatchMode):
    """Raises ``error`` instead of the ``at``-th operation that allocates; counts them, and remembers every result."""

    def __init__(self, at: int | None = None, error: type[BaseException] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.at, self.error, self.count = at, error, 0
        self.results: list[weakref.ref] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), settings: dict | None = None) -> Any:
        if not any(value.alias_info for value in function._schema.returns):
            self.count += 1
            if self.count == self.at:
                raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        result = function(*arguments, **(settings or {}))
        self.results += [
            weakref.ref(t)
            for t in (result if isinstance(result, (tuple, list)) else (result,))
            if isinstance(t, torch.Tensor)
        ]
        return result

    @property
    def alive(self) -> int:
        """How many results still exist."""
        return sum(reference() is not None for reference in self.results)


class Alarm:
    """Raises KeyboardInterrupt in the thread that enters, after some seconds, wherever that is then."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.over, self.lock = seconds, False, threading.Lock()

    def __enter__(self) -> Alarm:
        self.target = threading.get_ident()
        self.thread = threading.Thread(target=self._ring, daemon=True)
        self.thread.start()
        return self

    def _ring(self) -> None:
        time.sleep(self.seconds)
        with self.lock:
            if not self.over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self.target), ctypes.py_object(KeyboardInterrupt)
                )

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.over = True
        self.thread.join()
