"""The reverse chain: its tables against recorded ones, and against what is known in closed form."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec, chain, denoise

TABLES = {
    "betas": "betas",
    "alphas_cumprod": "alphas_cumprod",
    "sqrt_recip_alphas_cumprod": "sqrt_recip",
    "sqrt_recipm1_alphas_cumprod": "sqrt_recipm1",
    "posterior_mean_coef1": "mean_x0",
    "posterior_mean_coef2": "mean_x",
    "posterior_log_variance_clipped": "log_posterior_variance",
    "log_betas": "log_betas",
}


@pytest.mark.parametrize("steps", [1000, 100, 50, 25, 20, 10, 5])
def test_the_tables_are_upstreams(steps, golden):
    g, table = golden("diffusion_tables"), chain(steps)
    assert list(table.timesteps) == g[f"r{steps}_timestep_map"].tolist()
    for theirs, ours in TABLES.items():
        if f"r{steps}_{theirs}" in g:
            np.testing.assert_allclose(getattr(table, ours), g[f"r{steps}_{theirs}"].numpy(), rtol=1e-12)


def test_disas_clipped_chains_are_upstreams(golden):
    g = golden("disa_tables")
    counts = sorted({int(match.group(1)) for name in g if (match := re.fullmatch(r"s(\d+)_map", name))})
    assert counts[0] == 5 and counts[-1] == 50
    for count in counts:
        table = chain(count, DiffusionSpec(max_timestep=950))
        assert list(table.timesteps) == g[f"s{count:02d}_map"].tolist()
        np.testing.assert_allclose(table.betas, g[f"s{count:02d}_betas"].numpy(), rtol=1e-12)


def test_the_chain_recovers_a_point_mass():
    """For data that is one point m the exact eps is known; the chain must end in m (closed form)."""
    spec, point = DiffusionSpec(beta_cap=0.2), torch.tensor([[1.5, -0.5]])
    table = chain(40, spec)
    cumulative = dict(zip(table.timesteps, table.alphas_cumprod))

    def exact(i, x, t):
        a = torch.tensor([cumulative[int(k)] for k in t])[:, None]
        eps = (x.double() - a.sqrt() * point) / (1 - a).sqrt()
        return eps.float(), torch.full_like(x, -1.0)

    generator = torch.Generator().manual_seed(0)
    out = denoise(exact, table, torch.randn(6, 2, generator=generator), torch.randn(40, 6, 2, generator=generator))
    torch.testing.assert_close(out, point.expand(6, 2), rtol=0, atol=2e-3)
