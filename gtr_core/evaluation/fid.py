"""FID and Inception Score of real checkpoints through torch-fidelity, by upstream's protocol (docs/upstream.md 1.13).

torch-fidelity is an optional extra (``pip install torch-fidelity``); it is imported here, when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.checkpoint import read_checkpoint
from ..errors import GtRError, first_line
from ..files import digest
from ..models.spec import ModelSpec
from .features import ImageFeatures

POOL, LOGITS, DIM = "2048", "logits_unbiased", 2048
LARGEST_ARRAY = DIM * DIM * 16 + 4096  # bytes of a covariance in the widest numbers that there are
Statistics = dict[str, np.ndarray]


@dataclass(frozen=True)
class InceptionFeatures:
    """Measures images with the Inception network of FID: pooled features and logits, nothing else."""

    network: nn.Module

    @property
    def identity(self) -> str:
        return digest(self.network.state_dict(), type(self.network).__name__)

    def check_model(self, spec: ModelSpec) -> None:
        """Inception knows any image."""

    @torch.no_grad()
    def measure(self, images: Tensor, labels: Tensor) -> ImageFeatures:
        """Images (n, 3, H, W) in [-1, 1], rounded to 8 bits as files are, and labels (n,)."""
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
        features, logits = (part.float().cpu() for part in self.network(pixels))
        none = features[:, :0]
        return ImageFeatures(features, logits, none, none, none, labels.cpu().long())


def inception_features(weights: str | os.PathLike | None = None, *, device: str = "cpu") -> InceptionFeatures:
    """torch-fidelity's Inception; it downloads the weights, unless their file is given. Raises GtRError."""
    utils = _part("utils")
    try:
        with _own_copy(weights) as path:
            network = utils.create_feature_extractor(
                "inception-v3-compat",
                [POOL, LOGITS],
                cuda=device.startswith("cuda"),
                verbose=False,
                feature_extractor_weights_path=path,
            )
    except (OSError, RuntimeError, KeyError) as error:
        raise GtRError(
            f"no Inception weights ({first_line(error)}): download torch-fidelity's "
            "weights-inception-2015-12-05-6726825d.pth and give it with --extractor"
        ) from error
    return InceptionFeatures(network.to(device))


@contextmanager
def _own_copy(weights: str | os.PathLike | None) -> Iterator[str | None]:
    """The checked tensors of a file in a file of our own: torch-fidelity would execute what is in the user's."""
    if weights is None:
        yield None
        return
    tensors = read_checkpoint(weights).tensors
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "inception.pth")
        torch.save({name: tensor.clone() for name, tensor in tensors.items()}, path)
        yield path


def read_statistics(path: str | os.PathLike) -> Statistics:
    """Mean ``mu`` (2048,) and covariance ``sigma`` (2048, 2048) of a reference .npz. Raises GtRError."""
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as arrays:
            statistics = {name: arrays[name].astype(np.float64) for name in ("mu", "sigma")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise GtRError(
            f"{path} is no reference statistics file ({first_line(error)}): expected an .npz with mu and "
            "sigma, such as adm_in256_stats.npz"
        ) from error
    shapes = tuple(array.shape for array in statistics.values())
    if shapes != ((DIM,), (DIM, DIM)) or not all(np.isfinite(array).all() for array in statistics.values()):
        raise GtRError(f"{path}: expected finite mu ({DIM},) and sigma ({DIM}, {DIM}), found shapes {shapes}")
    return statistics


def _check_sizes(path: str | os.PathLike) -> None:
    """Raises ValueError for an archive whose arrays unpack to more than the statistics need."""
    with zipfile.ZipFile(path) as archive:
        for name in ("mu", "sigma"):
            size = archive.getinfo(f"{name}.npy").file_size
            if size > LARGEST_ARRAY:
                raise ValueError(f"'{name}' has {size} bytes, expected at most {LARGEST_ARRAY}")


def fid_figures(made: ImageFeatures, statistics: Statistics, wanted: tuple[str, ...]) -> dict[str, float]:
    """``fid`` and ``is`` of one set of images, computed by torch-fidelity (10 splits for the score)."""
    values = {}
    if "fid" in wanted:
        fid = _part("metric_fid")
        own = fid.fid_features_to_statistics(made.features.double())
        values["fid"] = fid.fid_statistics_to_metric(own, statistics, verbose=False)["frechet_inception_distance"]
    if "is" in wanted:
        score = _part("metric_isc").isc_features_to_metric(made.scores, splits=min(10, len(made)))
        values["is"] = score["inception_score_mean"]
    return values


@dataclass(frozen=True, eq=False)
class FidMeasures:
    """FID and Inception Score, those that are ``wanted``; ``statistics`` are those of the real images."""

    statistics: Statistics
    wanted: tuple[str, ...]

    def figures(self, made: ImageFeatures, seed: int) -> dict[str, float]:
        return fid_figures(made, self.statistics, self.wanted)

    def floor(self, seeds: Sequence[int]) -> dict:
        """Real images have no row of their own: only their statistics are known."""
        return {}


def _part(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"torch_fidelity.{name}")
    except ImportError as error:
        raise GtRError(
            f"--metrics fid,is needs torch-fidelity ({first_line(error)}): pip install torch-fidelity"
        ) from error
