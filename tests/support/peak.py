"""How much memory a run on the meta device would hold."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Peak(TorchDispatchMode):
    """The most bytes of storages alive at once, weights aside, of those that were made while this is on."""

    def __init__(self, model):
        super().__init__()
        self.alive, self.now, self.most = {p.untyped_storage()._cdata for p in model.parameters()}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.is_meta:
                self._watch(t.untyped_storage())
        return result

    def _watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self.alive.discard(key)
        self.now -= size
