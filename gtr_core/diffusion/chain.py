"""The respaced DDPM chain of the diffusion head, always in float32 (docs/upstream.md 1.7 and 1.8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..device import upload
from ..errors import GtRError


@dataclass(frozen=True)
class DiffusionSpec:
    """The base noise process of a diffusion head.

    ``beta_cap`` limits the betas of the cosine schedule (0.999 is MAR's); ``max_timestep`` clips the respaced
    timesteps (None = no clip), see :class:`Chain`.
    """

    base_steps: int = 1000
    beta_cap: float = 0.999
    max_timestep: int | None = None


Head = Callable[[Tensor, Tensor, Tensor], Tensor]
# (chain index i, x, t) -> eps and v.
Evaluate = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
# (steps done, steps in all)
OnStep = Callable[[int, int], None]


def cosine_betas(spec: DiffusionSpec) -> np.ndarray:
    """Betas of the cosine schedule, float64 (base_steps,), capped at ``spec.beta_cap``."""
    t = np.arange(spec.base_steps + 1, dtype=np.float64) / spec.base_steps
    alpha_bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], spec.beta_cap)


def respaced_timesteps(steps: int, spec: DiffusionSpec) -> tuple[int, ...]:
    """The base timesteps of a chain of ``steps`` steps, ascending; fewer when the clip merges some.

    Raises GtRError unless 1 <= steps <= base_steps.
    """
    if not 1 <= steps <= spec.base_steps:
        raise GtRError(f"{steps} diffusion steps: expected 1 to {spec.base_steps}")
    stride = (spec.base_steps - 1) / (steps - 1) if steps > 1 else 1.0
    timesteps, position = [], 0.0
    for _ in range(steps):
        timesteps.append(round(position))
        position += stride
    limit = spec.base_steps - 1 if spec.max_timestep is None else spec.max_timestep
    return tuple(sorted({min(t, limit) for t in timesteps}))


@dataclass(frozen=True)
class Chain:
    """Tables of a respaced chain, float64, index 0 = least noise. Build with :func:`chain`."""

    timesteps: tuple[int, ...]
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    sqrt_recip: np.ndarray
    sqrt_recipm1: np.ndarray
    mean_x0: np.ndarray
    mean_x: np.ndarray
    log_posterior_variance: np.ndarray
    log_betas: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)


@lru_cache(maxsize=256)
def chain(steps: int, spec: DiffusionSpec = DiffusionSpec()) -> Chain:
    """The chain of ``steps`` reverse steps over the base process ``spec`` (golden: diffusion_tables)."""
    timesteps = respaced_timesteps(steps, spec)
    base = np.cumprod(1 - cosine_betas(spec))[list(timesteps)]
    betas = 1 - base / np.append(1.0, base[:-1])
    cumulative = np.cumprod(1 - betas)
    previous = np.append(1.0, cumulative[:-1])
    posterior_variance = betas * (1 - previous) / (1 - cumulative)
    # At index 0 the posterior variance is 0; its logarithm is replaced by the next entry's.
    clipped = np.append(posterior_variance[1], posterior_variance[1:]) if len(betas) > 1 else betas
    return Chain(
        timesteps=timesteps,
        betas=betas,
        alphas_cumprod=cumulative,
        sqrt_recip=np.sqrt(1 / cumulative),
        sqrt_recipm1=np.sqrt(1 / cumulative - 1),
        mean_x0=betas * np.sqrt(previous) / (1 - cumulative),
        mean_x=(1 - previous) * np.sqrt(1 - betas) / (1 - cumulative),
        log_posterior_variance=np.log(clipped),
        log_betas=np.log(betas),
    )


@dataclass(frozen=True)
class ChainGroup:
    """So many rows of an AR step run the same chain."""

    rows: int
    chain: Chain


@dataclass(frozen=True, eq=False)
class Chains:
    """The chains of one AR step: its groups, the longest chain first, and the noise of their rows in that order.

    ``init`` is (n, C) and ``noise`` (S, n, C), float32; ``noise[j]`` belongs to every row's j-th executed step.
    """

    groups: tuple[ChainGroup, ...]
    init: Tensor
    noise: Tensor

    @property
    def steps(self) -> int:
        """Steps of the longest chain."""
        return len(self.groups[0].chain)


def guided(head: Head, x: Tensor, t: Tensor, z: Tensor, z_uncond: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """eps and v (n, C) of one head evaluation; with ``z_uncond`` eps is guided, v is the conditional rows' own.

    One chain of n rows is kept and 2n rows are evaluated: the unconditional rows of the original chain
    never influence the conditional ones (docs/upstream.md 1.8).
    """
    if z_uncond is None:
        return head(x, t, z).float().chunk(2, dim=-1)
    out = head(torch.cat([x, x]), torch.cat([t, t]), torch.cat([z, z_uncond])).float()
    (eps, v), (eps_uncond, _) = (branch.chunk(2, dim=-1) for branch in out.chunk(2))
    return eps_uncond + scale * (eps - eps_uncond), v


def denoise(
    evaluate: Evaluate, table: Chain, init: Tensor, noise: Tensor, *, on_step: Callable[[int], None] | None = None
) -> Tensor:
    """Run the reverse chain: init (n, C) and noise (S, n, C) float32 -> tokens (n, C) float32.

    ``evaluate(i, x, t)`` gives eps and v (n, C) at chain index i, t (n,) being its base timestep. ``noise[j]`` belongs
    to the j-th executed step (largest t first); the last one is not used. For a
    temperature, scale ``noise``. ``on_step(j)`` is called when j steps are done.
    """
    x = init.float()
    # The head takes one timestep per row; a table on the device needs one upload and no synchronisation per step.
    timesteps = upload(torch.tensor(table.timesteps), x.device)[:, None].expand(-1, x.shape[0])
    for j, i in enumerate(reversed(range(len(table)))):
        eps, v = evaluate(i, x, timesteps[i])
        x0 = x * table.sqrt_recip[i] - eps * table.sqrt_recipm1[i]
        x = x0 * table.mean_x0[i] + x * table.mean_x[i]
        if i:
            f = (v + 1) / 2
            log_variance = f * table.log_betas[i] + (1 - f) * table.log_posterior_variance[i]
            x = x + torch.exp(0.5 * log_variance) * noise[j]
        if on_step is not None:
            on_step(j + 1)
    return x


def denoise_in_turn(
    evaluator: Callable[[tuple[Tensor, ...], int], Evaluate], z: tuple[Tensor, ...], chains: Chains, on_step: OnStep
) -> Tensor:
    """One group after the other: z (n, D) per guidance branch -> tokens (n, C).

    ``evaluator(z, steps)`` makes what evaluates the head for one group. ``on_step(j, total)`` is called when j steps
    of all groups together are done.
    """
    total = sum(len(group.chain) for group in chains.groups)
    values = []
    start = done = 0
    for group in chains.groups:
        rows, steps = slice(start, start + group.rows), len(group.chain)
        evaluate = evaluator(tuple(branch[rows] for branch in z), steps)
        values.append(
            denoise(
                evaluate,
                group.chain,
                chains.init[rows],
                chains.noise[:steps, rows],
                on_step=lambda j, done=done: on_step(done + j, total),
            )
        )
        start, done = start + group.rows, done + steps
    return torch.cat(values)
