"""The feature extractor of the quality measures: a small classifier, trained on the images that it judges."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints.checkpoint import check_tensors, read_checkpoint
from ..checkpoints.metadata import parse_count, parse_finite, parse_name, parse_names, read_fields
from ..errors import GtRError
from ..files import write_tensors

CLASSIFIER_KEY = "gtr.extractor"
CLASS, GROUPS = "class", 4


@dataclass(frozen=True)
class ClassifierSpec:
    """A classifier of square images of ``size`` pixels.

    ``widths`` are the channels of its convolutions, each of stride 2. ``factors`` are (name, count) of what else it
    tells apart: hue, background and so on. ``accuracy`` is the share of held-out images that it gets right, by head.
    With a ``contrast`` above 0 it also sees ``tanh(contrast * (pixel - mean of its 3 x 3 pixels))``: faint detail,
    which strong objects would drown. ``whole`` is a factor and the least probability of its likeliest value with which
    an image counts as one object and not as a mixture of two.
    """

    size: int
    widths: tuple[int, ...]
    classes: tuple[str, ...]
    factors: tuple[tuple[str, int], ...] = ()
    feature_dim: int = 64
    contrast: float = 0.0
    accuracy: Mapping[str, float] = field(default_factory=dict, hash=False)
    whole: tuple[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.widths or any(width < GROUPS or width % GROUPS for width in self.widths):
            raise GtRError(f"extractor widths {list(self.widths)}: expected multiples of {GROUPS}")
        if not 0 <= self.contrast < math.inf:
            raise GtRError(f"extractor contrast {self.contrast:g}: expected 0 or a positive number")
        if self.size % 2 ** len(self.widths):
            raise GtRError(f"extractor for {self.size} pixels: expected a multiple of {2 ** len(self.widths)}")
        if len(set(self.heads)) != 1 + len(self.factors) or min(self.heads.values()) < 2:
            raise GtRError(
                f"extractor heads {CLASS}, {', '.join(name for name, _ in self.factors)}: expected "
                "different names, each with 2 choices or more"
            )
        if self.whole and (self.whole[0] not in dict(self.factors) or not 0 < self.whole[1] < 1):
            raise GtRError(f"extractor coherence {self.whole}: expected a factor and a probability")
        if not set(self.accuracy) <= set(self.heads) or not all(0 <= share <= 1 for share in self.accuracy.values()):
            raise GtRError(f"extractor accuracy {dict(self.accuracy)}: expected shares of {', '.join(self.heads)}")

    @property
    def heads(self) -> dict[str, int]:
        """Choices per head, the class first."""
        return {CLASS: len(self.classes)} | dict(self.factors)


class Classifier(nn.Module):
    """Images (n, 3, size, size) in [-1, 1] -> features (n, feature_dim), or scores (n, choices) per head."""

    def __init__(self, spec: ClassifierSpec):
        super().__init__()
        self.spec = spec
        widths = (6 if spec.contrast else 3, *spec.widths)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, width) for width in spec.widths)
        self.pooled = nn.Linear(2 * widths[-1], spec.feature_dim)
        self.scores = nn.Linear(spec.feature_dim, sum(spec.heads.values()))

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps (n, width, side, side) after every convolution."""
        if images.shape[1:] != (3, self.spec.size, self.spec.size):
            raise GtRError(
                f"the extractor judges {self.spec.size} x {self.spec.size} pixels, found "
                f"{' x '.join(map(str, images.shape[:1:-1]))}: use the extractor of this model"
            )
        h, maps = images, []
        if self.spec.contrast:
            means = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            h = torch.cat([images, torch.tanh(self.spec.contrast * (images - means))], dim=1)
        for conv, norm in zip(self.convs, self.norms):
            h = F.silu(norm(conv(h)))
            maps.append(h)
        return maps

    def pool(self, last: Tensor) -> Tensor:
        """The last map -> features (n, feature_dim), from its mean and its maximum over positions."""
        return F.silu(self.pooled(torch.cat([last.mean((2, 3)), last.amax((2, 3))], dim=1)))

    def features(self, images: Tensor) -> Tensor:
        """(n, feature_dim)."""
        return self.pool(self.maps(images)[-1])

    def heads(self, features: Tensor) -> dict[str, Tensor]:
        """Features (n, feature_dim) -> scores (n, choices) per head, before the softmax."""
        heads = self.spec.heads
        return dict(zip(heads, self.scores(features).split(list(heads.values()), dim=1)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.heads(self.features(images))


def save_classifier(path: str | os.PathLike, extractor: Classifier) -> None:
    """One safetensors file, with the spec in its metadata. Raises GtRError."""
    write_tensors(path, extractor.state_dict(), {CLASSIFIER_KEY: json.dumps(asdict(extractor.spec))})


def load_classifier(path: str | os.PathLike, *, device: torch.device | str = "cpu") -> Classifier:
    """The extractor of a file, in evaluation mode, float32. Raises GtRError when it is not one."""
    checkpoint = read_checkpoint(path)
    if CLASSIFIER_KEY not in checkpoint.metadata:
        raise GtRError(
            f"{checkpoint.path.name} is not an extractor (no metadata '{CLASSIFIER_KEY}'): give the "
            "classifier's file with --extractor"
        )
    fields = read_fields(checkpoint.metadata[CLASSIFIER_KEY], CLASSIFIER_KEY, _PARSERS, "train the extractor again")
    try:
        spec = ClassifierSpec(**fields)
        expected = _on_meta(spec)
    except (TypeError, RuntimeError) as error:
        raise GtRError(f"metadata '{CLASSIFIER_KEY}' is incomplete ({error}): train the extractor again") from error
    check_tensors(checkpoint, expected, "the extractor")
    extractor = Classifier(spec)
    extractor.load_state_dict(checkpoint.tensors)
    return extractor.to(device).eval().requires_grad_(False)


def _on_meta(spec: ClassifierSpec) -> dict[str, Tensor]:
    with torch.device("meta"):
        return Classifier(spec).state_dict()


def _widths(values: Iterable) -> tuple[int, ...]:
    widths = tuple(map(parse_count, values))
    if len(widths) > 16 or max(widths, default=0) > 8192:
        raise ValueError("more than 16 stages, or wider than 8192")
    return widths


def _factors(rows: Iterable) -> tuple[tuple[str, int], ...]:
    return tuple((parse_name(name), parse_count(count)) for name, count in rows)


def _whole(found: Iterable | None) -> tuple[str, float] | None:
    if found is None:
        return None
    name, least = found
    return parse_name(name), parse_finite(least)


def _accuracy(shares: Mapping) -> dict[str, float]:
    return {parse_name(name): parse_finite(share) for name, share in shares.items()}


_PARSERS = {
    "size": parse_count,
    "widths": _widths,
    "classes": parse_names,
    "factors": _factors,
    "feature_dim": parse_count,
    "contrast": parse_finite,
    "accuracy": _accuracy,
    "whole": _whole,
}
