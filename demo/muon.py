"""Muon: momentum whose matrices are orthogonalised, in bfloat16 where that is fast (torch's own always does)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import runs

# Quintic Newton-Schulz iteration: five rounds bring all singular values near 1.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """(k, m, n) with m <= n -> the nearest half-orthogonal matrices, approximately."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if runs.has_half_precision(matrices.device):
        x = x.bfloat16()
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.to(matrices)


class Muon(torch.optim.Optimizer):
    """For weights of hidden layers, matrices or convolutions; updates have AdamW's size (0.2 root mean square)."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                self._update(same, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, same: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        """One step for weights of one shape, stacked; a convolution is a matrix with a row per output channel."""
        for p in same:
            self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, 1 - momentum)
        ahead = torch.stack([p.grad.lerp(self.state[p]["momentum"], momentum).flatten(1) for p in same])
        tall = ahead.shape[1] > ahead.shape[2]
        update = orthogonalise(ahead.mT if tall else ahead)
        update = (update.mT if tall else update) * 0.2 * max(ahead.shape[1:]) ** 0.5
        for p, change in zip(same, update):
            p.mul_(1 - lr * decay).sub_(change.view(p.shape), alpha=lr)
