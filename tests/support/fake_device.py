"""A device that nobody has to have: its tensors have shapes and dtypes but no numbers, those of the CPU stay real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

PIN = torch.ops.aten._pin_memory.default
COPIES = ("_to_copy", "copy_")
# What the host cannot know before the device is done: a value, a number of elements.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim")
# What takes operands of one dtype only; of these shapes alone do not tell.
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "native_layer_norm", "convolution")


class WithoutDriver(TorchFunctionMode):
    """What torch asks the device's driver for on its way to the operations, without it: ``t[...]``, of slices where it
    is assigned to, ``t.copy_``, and attention."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if any(isinstance(each, FakeTensor) for each in args):
            if function is Tensor.__getitem__:
                return indexed(*args)
            if function is Tensor.__setitem__:
                target, value = indexed(*args[:2]), args[2]
                return copied(target, value) if isinstance(value, Tensor) else target.fill_(value)
            if function is F.scaled_dot_product_attention:
                return attention(*args, **(kwargs or {}))
            if function is Tensor.copy_:
                return copied(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> Tensor:
    """Torch's own asks the driver which of its kernels to take."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        scores = scores + torch.full_like(scores, float("-inf")).triu(1)
    return scores.softmax(-1) @ v


def copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``target.copy_(source)``."""
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.aten.copy_.default(target, source, non_blocking)


def indexed(t: Tensor, key) -> Tensor:
    """``t[key]``."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [each for each in keys if not isinstance(each, Tensor)]:
        place = next(i for i, each in enumerate(keys) if each is Ellipsis)
        given = sum(each is not None and each is not Ellipsis for each in keys)
        keys[place : place + 1] = [slice(None)] * (t.dim() - given)
    dim, tensors = 0, []
    for each in keys:
        if isinstance(each, int):
            t = t.select(dim, each)
            continue
        if each is None:
            t = t.unsqueeze(dim)
        elif isinstance(each, slice):
            t = torch.ops.aten.slice.Tensor(t, dim, each.start, each.stop, 1 if each.step is None else each.step)
        else:
            tensors += [None] * (dim - len(tensors)) + [each]
        dim += 1
    return torch.ops.aten.index.Tensor(t, tensors) if tensors else t


class Clash(AssertionError):
    """The device has no such dtype, or does not take these together."""


class HostSync(AssertionError):
    """The host would wait for the device here."""


class FakeDevice(TorchDispatchMode):
    """Tensors on ``device``, such as 'cuda:0', without numbers. What the hardware would refuse or be slow at, raises:
    operands on different devices (RuntimeError); different dtypes in a product, or one in ``refused`` (Clash); and in
    :meth:`without_waiting` whatever makes the host wait for the device: a value, a copy to the host, one from pageable
    memory (HostSync).
    """

    def __init__(self, device: str, refused: tuple[torch.dtype, ...] = ()):
        super().__init__()
        self.device, self.refused = torch.device(device), refused
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.pinned = WeakIdKeyDictionary()
        self.waiting_allowed = True
        self.computed = 0
        self.operations: set[str] = set()
        self.around = ExitStack()

    def __enter__(self) -> FakeDevice:
        self.around.enter_context(self.fake)
        self.around.enter_context(WithoutDriver())
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.around.close()

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Inside, the host must not wait."""
        self.waiting_allowed = False
        try:
            yield
        finally:
            self.waiting_allowed = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is PIN:
            result = args[0].clone()
            self.pinned[result] = True
            return result
        target = kwargs.get("device")
        fake = any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs)))
        if not fake and (target is None or torch.device(target).type != self.device.type):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if not self.waiting_allowed:
            self._check_wait(name, args, kwargs)
        dtypes = {leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.is_floating_point()}
        if name in PRODUCTS and len(dtypes) > 1:
            raise Clash(f"{name} of {dtypes}")
        result = function(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device.type:
                self.computed += 1
                self.operations.add(name)
                if leaf.dtype in self.refused:
                    raise Clash(f"{name}: {leaf.dtype} on {self.device}")
        return result

    def _check_wait(self, name: str, args, kwargs) -> None:
        if name in WAITS:
            raise HostSync(f"{name} of a tensor on {self.device}")
        if name in COPIES:
            source, target = (args[0], kwargs.get("device")) if name == COPIES[0] else (args[1], args[0].device)
            target = source.device if target is None else torch.device(target)
            if target.type == "cpu" and source.device.type != "cpu":
                raise HostSync(f"a copy of {tuple(source.shape)} from {self.device} to the host")
            freely = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            if target.type == "cuda" and source.device.type == "cpu" and not (source in self.pinned and freely):
                raise HostSync(f"a copy of {tuple(source.shape)} from pageable memory to {self.device}")
