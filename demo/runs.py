"""What a training run leaves on disk: checkpoints that are never half-written, and a JSON-lines log."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gtr_core import files


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """``files.replace_file`` in a folder that is made first, for a file that everybody may read."""

    def write_readable(part: Path) -> None:
        write(part)
        part.chmod(0o644)

    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_file(path, write_readable)


def save(path: Path, state: dict) -> None:
    replace_file(path, lambda temporary: torch.save(state, temporary))


def load(path: Path) -> dict | None:
    """The saved state, or None when there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def append_log(path: Path, **fields) -> None:
    """Add one line of JSON; floats are rounded to 6 digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in fields.items()}) + "\n")


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trim_log(path: Path, step: int) -> None:
    """Forget what was logged after ``step``: a resumed run repeats it."""
    rows = [row for row in read_log(path) if row["step"] <= step]
    if path.exists():
        replace_file(path, lambda part: part.write_text("".join(json.dumps(row) + "\n" for row in rows)))


@dataclass
class Means:
    """Running means of named losses between two log lines."""

    sums: dict[str, float | Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, **values: float | Tensor) -> None:
        """Tensors are summed where they are: the device is not waited for."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + (value.detach() if isinstance(value, Tensor) else value)

    def take(self) -> dict[str, float]:
        """The means since the last call; starts over."""
        means = {name: float(total) / max(self.count, 1) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The randomness of one training step: a run that is stopped and resumed sees the same numbers on a device."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


def has_half_precision(device: torch.device) -> bool:
    """Does the device multiply faster in bfloat16?"""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def half_precision(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Bfloat16 where it is wanted and fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_half_precision(device))
