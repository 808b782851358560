"""One reverse step of the diffusion chain as arithmetic on rows: x <- a x + b eps + exp(c v + d) noise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..device import upload
from .chain import Chain
from .head import DiffusionHead


class Coefficients(NamedTuple):
    """Of one reverse step, x <- a x + b eps + exp(c v + d) noise, each (..., 1)."""

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor


def coefficients(table: Chain, device: torch.device) -> Tensor:
    """The four :class:`Coefficients` of a chain in order of execution, (S, 4) float32.

    The last step has c = d = 0; its noise must be 0.
    """
    c = (table.log_betas - table.log_posterior_variance) / 4
    d = (table.log_betas + table.log_posterior_variance) / 4
    c[0] = d[0] = 0.0
    columns = (table.mean_x + table.mean_x0 * table.sqrt_recip, -table.mean_x0 * table.sqrt_recipm1, c, d)
    return upload(torch.from_numpy(np.stack(columns, axis=1)[::-1].astype(np.float32)), device)


def evaluated_rows(head: DiffusionHead, x: Tensor, branches: int) -> Tensor:
    """What goes into the head for the rows x (n, C): (n * branches, C) in its dtype."""
    return x.to(head.dtype)[:, None].expand(-1, branches, -1).flatten(0, 1)


def advance(
    head: DiffusionHead,
    x: Tensor,
    modulations: Iterable[Tensor],
    step: Coefficients,
    noise: Tensor,
    branches: int,
    scale: float | Tensor,
) -> None:
    """One reverse step of the rows x (n, C) float32, in place."""
    out = head(evaluated_rows(head, x, branches), modulations=modulations).float().view(len(x), branches, 2, -1)
    eps = out[:, 0, 0] if branches == 1 else torch.lerp(out[:, 1, 0], out[:, 0, 0], scale)
    x.mul_(step.a).addcmul_(step.b, eps)
    x.addcmul_(torch.addcmul(step.d, step.c, out[:, 0, 1]).exp_(), noise)
