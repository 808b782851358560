"""Training of the demo's MAR."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gtr_core.diffusion.chain import Chain, chain
from gtr_core.diffusion.head import DiffusionHead
from gtr_core.models.latents import latent_to_tokens
from gtr_core.models.mar import MAR, MARSpec
from gtr_core.models.model import Positions

from . import data, runs
from .models import POSTERIOR, new_mar, sample_posterior
from .muon import Muon
from .pool import Pool

BASE_STEPS = 1000


@dataclass(frozen=True)
class MARPlan:
    """Warm-up, a constant rate, and a linear decay over the last ``decay`` steps: the end can be chosen late."""

    steps: int = 9900
    decay: int = 2400
    warm_up: int = 200
    batch: int = 512
    pool: int = 60000  # images that it learns from
    targets: int = 128  # masked positions that get a loss, per image
    draws: int = 2  # noisy versions of each of them
    low_masks: float = 0.45  # share of steps with a mask ratio between ``least`` and 0.7
    least: float = 0.0
    central: float = 0.1  # how much rather targets lie in the middle of the image, where it is difficult
    all_masked: float = 0.1
    high_noise: float = 0.1  # share of draws in the last tenth of the timesteps
    label_drop: float = 0.1
    known_noise: float = 0.1  # largest standard deviation of the noise on known tokens
    rate: float = 1.5e-3
    muon_rate: float = 3e-3
    ema: float = 0.9995
    clip: float = 1.0
    seed: int = 2
    log_every: int = 100
    save_every: int = 1000


def mask_ratio(plan: MARPlan, generator: torch.Generator) -> float:
    """MAR's truncated normal (mean 1, std 0.25, in [0.7, 1]); sometimes uniform in [least, 0.7], sometimes 1.

    The exceptions are ours: a small model extrapolates neither to the empty image of the first step nor to the
    almost finished ones of the last. In sampling, tokens are drawn at ratios spread evenly over [0, 1].
    """
    choice, uniform = torch.rand(2, generator=generator).tolist()
    if choice < plan.low_masks:
        return plan.least + (0.7 - plan.least) * uniform
    if choice > 1 - plan.all_masked:
        return 1.0
    return 1 - 0.25 * math.sqrt(2) * float(torch.erfinv(torch.tensor(uniform * math.erf(1.2 / math.sqrt(2)))))


def split_positions(n: int, tokens: int, ratio: float, plan: MARPlan, generator: torch.Generator) -> Positions:
    """Random known (n, K), target (n, T) and context (n, M) positions, the same counts for every image.

    The decoder sees every masked position, as MAR's does: a model that knew other scopes could not judge them.
    """
    place = data.place(generator)
    order = torch.rand(n, tokens, **place).argsort(dim=1)
    masked = max(1, math.ceil(tokens * ratio))
    known, hidden = order.split([tokens - masked, masked], dim=1)
    urgency = plan.central * central(tokens, generator.device)[hidden] + torch.rand(n, masked, **place)
    hidden = hidden.gather(1, urgency.argsort(dim=1, descending=True))
    return Positions(known, hidden[:, : plan.targets], hidden[:, plan.targets :])


@functools.cache
def central(tokens: int, device: torch.device) -> Tensor:
    """(tokens,) float: 1 for positions at least an eighth of a square grid's side from its border, else 0."""
    side = math.isqrt(tokens)
    inner = torch.zeros(side, side, device=device)
    inner[side // 8 : side - side // 8, side // 8 : side - side // 8] = 1
    return inner.flatten()


def draw_timesteps(n: int, base_steps: int, high_noise: float, generator: torch.Generator) -> Tensor:
    """(n,) int64: uniform, with ``high_noise`` of the draws in the last tenth, where errors are amplified most."""
    place = data.place(generator)
    t = torch.randint(base_steps, (n,), **place)
    high = torch.randint(base_steps * 9 // 10, base_steps, (n,), **place)
    return torch.where(torch.rand(n, **place) < high_noise, high, t)


class Process:
    """Float32 tables of the full chain on a device, and the hybrid loss of a learned-variance head."""

    def __init__(self, table: Chain, device: torch.device):
        def column(values) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)[:, None]

        self.steps = len(table)
        self.signal, self.noise = column(table.alphas_cumprod**0.5), column((1 - table.alphas_cumprod) ** 0.5)
        self.recip, self.recipm1 = column(table.sqrt_recip), column(table.sqrt_recipm1)
        self.mean_x0, self.mean_x = column(table.mean_x0), column(table.mean_x)
        self.log_posterior, self.log_betas = column(table.log_posterior_variance), column(table.log_betas)

    def diffuse(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return self.signal[t] * x0 + self.noise[t] * eps

    def losses(self, out: Tensor, x0: Tensor, x: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """eps error and variational term (bits per value), each (n,); the latter trains the variance only."""
        guess, v = out.float().chunk(2, dim=-1)
        error = (guess - eps).square().mean(-1)
        # The means differ by mean_x0 * (x0 - predicted x0); the prediction is detached.
        gap = self.mean_x0[t] * (x0 - (self.recip[t] * x - self.recipm1[t] * guess.detach()))
        f = (v + 1) / 2
        log_model = f * self.log_betas[t] + (1 - f) * self.log_posterior[t]
        log_true = self.log_posterior[t]
        kl = 0.5 * (log_model - log_true - 1 + torch.exp(log_true - log_model) + gap.square() * torch.exp(-log_model))
        return error, kl.mean(-1) * (self.steps / 1000) / math.log(2)


def rate_factor(step: int, plan: MARPlan) -> float:
    return min(1.0, (step + 1) / plan.warm_up, max(0.02, (plan.steps - step) / plan.decay))


def disturbed(tokens: Tensor, plan: MARPlan, generator: torch.Generator) -> Tensor:
    """Tokens (B, L, C) with noise, of a strength of its own for each image: what a sampler knows has errors."""
    place = data.place(generator)
    strength = plan.known_noise * torch.rand(len(tokens), 1, 1, **place)
    return tokens + strength * torch.randn(tokens.shape, **place)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of two batched products: on a processor faster than torch's own, forward and backward."""
    if q.device.type == "cuda":
        return F.scaled_dot_product_attention(q, k, v)
    rows = [x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v)]
    return torch.bmm(torch.bmm(rows[0], rows[1].mT).softmax(-1), rows[2]).view(*q.shape[:-1], v.shape[-1])


def head_output(head: DiffusionHead, x: Tensor, t: Tensor, z: Tensor, draws: int) -> Tensor:
    """The head with float32 ends and blocks in bfloat16: x and t of ``draws`` times as many rows as z."""
    times = head.time_embed(torch.arange(BASE_STEPS, device=x.device), x.dtype)  # fewer than there are rows
    y = F.silu(times[t] + head.cond_embed(z).repeat(draws, 1))
    h = head.input_proj(x)
    with runs.half_precision(x.device):
        for block in head.res_blocks:
            h = block.modulated(h, block.adaLN_modulation[1](y))
        modulation = head.final_layer.adaLN_modulation[1](y)
    return head.final_layer.modulated(h.float(), modulation.float())


def mar_loss(
    model: MAR,
    process: Process,
    tokens: Tensor,
    labels: Tensor,
    plan: MARPlan,
    ratio: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mean eps error and variational term of one batch: tokens (B, L, C), of which ``ratio`` is masked, labels (B,)."""
    device, n = tokens.device, len(tokens)
    positions = split_positions(n, tokens.shape[1], ratio, plan, generator)
    dropped = torch.rand(n, generator=generator, device=device) < plan.label_drop
    labels = torch.where(dropped, -1, labels)
    with runs.half_precision(device):
        memory = model.start([labels], device)
        (z,) = model(disturbed(tokens, plan, generator), positions, memory, model.spec.grid)
    x0 = tokens.gather(1, positions.targets[..., None].expand(-1, -1, tokens.shape[-1])).flatten(0, 1)
    x0 = x0.repeat(plan.draws, 1)
    t = draw_timesteps(len(x0), process.steps, plan.high_noise, generator)
    eps = torch.randn(x0.shape, generator=generator, device=device)
    x = process.diffuse(x0, t, eps)
    out = head_output(model.head, x, t, z.float().flatten(0, 1), plan.draws)
    error, bits = process.losses(out, x0, x, t, eps)
    return error.mean(), bits.mean()


def optimizers_for(model: nn.Module, plan: MARPlan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; tables and vectors are not decayed."""
    named = dict(model.named_parameters())
    muon = [name for name, p in named.items() if "blocks" in name and p.dim() == 2]
    decayed = [name for name, p in named.items() if p.dim() > 1 and not is_table(name) and name not in muon]
    plain = [name for name in named if name not in muon and name not in decayed]
    groups = [
        {"params": [named[name] for name in names], "weight_decay": decay}
        for names, decay in ((decayed, 0.02), (plain, 0.0))
    ]
    return [
        torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.95), fused=True),
        Muon([named[name] for name in muon], lr=plan.muon_rate, weight_decay=0.02),
    ]


def set_rates(optimizers: list[torch.optim.Optimizer], step: int, plan: MARPlan) -> None:
    for optimizer, rate in zip(optimizers, (plan.rate, plan.muon_rate)):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(step, plan)


def is_table(name: str) -> bool:
    return "pos_embed" in name or name in ("fake_latent", "mask_token", "class_emb.weight")


@torch.no_grad()
def average(ema: dict[str, Tensor], model: nn.Module, step: int, plan: MARPlan) -> None:
    """Exponential moving average, faster in the beginning."""
    decay = min(plan.ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.values()), [p.detach() for p in model.parameters()], 1 - decay)


def train_mar(folder: Path, spec: MARSpec, pool: Pool, device: torch.device, plan: MARPlan = MARPlan()) -> None:
    """Train (or go on training) the MAR; checkpoint and log live in ``folder``."""
    path, log = folder / "mar.pt", folder / "mar.jsonl"
    model = new_mar(spec, runs.step_generator(plan.seed, -1), attention=attend).to(device).train()
    process = Process(chain(spec.diffusion.base_steps, spec.diffusion), device)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, seen, seconds = 0, 0, 0.0
    if state := runs.load(path):
        model.load_state_dict(state["model"])
        ema = {name: value.to(device) for name, value in state["ema"].items()}
        first, seen, seconds = state["step"], state["images"], state["seconds"]
    runs.trim_log(log, first)
    optimizers = optimizers_for(model, plan)
    for optimizer, saved in zip(optimizers, state["optimizers"] if state else ()):
        optimizer.load_state_dict(saved)
    means, started = runs.Means(), time.monotonic() - seconds
    for step in range(first, plan.steps):
        set_rates(optimizers, step, plan)
        generator = runs.step_generator(plan.seed, step, device)
        ratio = mask_ratio(plan, runs.step_generator(plan.seed, step))
        mean, logvar, labels = pool.take(plan.batch, generator)
        tokens = latent_to_tokens(sample_posterior(mean.float(), logvar.float(), generator, POSTERIOR), spec.latent)
        error, bits = mar_loss(model, process, tokens, labels, plan, ratio, generator)
        model.zero_grad(set_to_none=True)
        (error + bits).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        for optimizer in optimizers:
            optimizer.step()
        average(ema, model, step, plan)
        seen += plan.batch
        means.add(eps=error, vb=bits, norm=norm)
        seconds = time.monotonic() - started
        if (step + 1) % plan.log_every == 0:
            runs.append_log(log, step=step + 1, images=seen, seconds=seconds, **means.take())
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            runs.save(
                path,
                {
                    "model": model.state_dict(),
                    "ema": ema,
                    "step": step + 1,
                    "images": seen,
                    "seconds": seconds,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                },
            )
