"""A small classifier of the demo's pictures: it judges samples, it is not shipped."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import data, runs

STEPS, BATCH, RATE, SEED = 300, 64, 2e-3, 4


class Judge(nn.Module):
    """Pictures (n, 3, 64, 64) in [-1, 1] -> class scores (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[1:])
        self.out = nn.Linear(2 * widths[-1], len(data.CLASS_NAMES))

    def features(self, images: Tensor) -> Tensor:
        """(n, 128): mean and maximum over positions."""
        h = images
        for conv, norm in zip(self.convs, self.norms):
            h = F.silu(norm(conv(h)))
        return torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(self.features(images))


def train_judge(folder: Path, device: torch.device) -> Judge:
    """The classifier of ``folder``, trained first if it is missing; noise in its pictures keeps it from being picky."""
    path = folder / "judge.pt"
    torch.manual_seed(SEED)
    judge = Judge().to(device)
    if state := runs.load(path):
        judge.load_state_dict(state)
        return judge.eval()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE)
    for step in range(STEPS):
        generator = runs.step_generator(SEED, step)
        images, labels = data.batch(BATCH, generator, spread=1)
        images = images + 0.2 * torch.rand(BATCH, 1, 1, 1, generator=generator) * torch.randn(
            images.shape, generator=generator)
        loss = F.cross_entropy(judge(images.to(device)), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    runs.save(path, judge.state_dict())
    return judge.eval()


@torch.no_grad()
def accuracy(judge: Judge, images: Tensor, labels: Tensor) -> float:
    """Share of ``images`` (n, 3, H, W) that the judge gives their ``labels`` (n,)."""
    return float((judge(images).argmax(1) == labels).float().mean())


@torch.no_grad()
def frechet(judge: Judge, images: Tensor, real: Tensor) -> float:
    """Frechet distance between the judge's features of two sets of pictures."""
    a, b = (judge.features(x).double() for x in (images, real))
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    cross = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)
