"""The library's front door: the example of its documentation runs, and its names are what they promise to be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import gtr_pack.gtr_core as gtr
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = {
    "load_model", "load_vae", "convert", "preset", "Schedule", "Method", "Guidance", "FTS", "LazyMAR", "make_plan",
    "sample", "generate", "GtRError",
}  # fmt: skip


def test_the_example_of_the_documentation_runs_on_the_demo_model() -> None:
    """The lines of the package's docstring, with the demo's files in place of MAR-B's."""
    lines = gtr.__doc__.split("\n\n")[1].replace('"mar-base-ema.pth"', "gtr.DEMO_MAR")
    lines = lines.replace('"kl16.safetensors"', "gtr.DEMO_VAE").replace('device="cuda"', 'device="cpu"')
    lines = lines.replace("[207, 360]", "[2, 3]").replace('"gtr-paper"', '"gtr-extreme"')
    code = "\n".join(line.strip() for line in lines.replace("import gtr_core as gtr", "").splitlines())
    scope = {"gtr": gtr}
    exec(compile(ast.parse(code), "docstring", "exec"), scope)  # noqa: S102
    images = scope["images"]
    assert images.shape == (2, 128, 128, 3) and images.dtype == np.uint8 and images.std() > 10


def test_image_k_has_the_seed_plus_k_in_the_public_api() -> None:
    model, vae = gtr.load_model(gtr.DEMO_MAR), gtr.load_vae(gtr.DEMO_VAE)
    method = gtr.Method(gtr.Schedule("short", "gtr", (2, 1, 1), diffusion=(4, 4, 4)))
    both = gtr.generate(model, vae, labels=[2, 3], method=method, seed=5)
    alone = gtr.generate(model, vae, labels=[3], method=method, seed=6)
    assert np.abs(both[1].astype(int) - alone[0].astype(int)).max() <= 1


def test_everything_that_is_promised_is_exported_and_nothing_is_missing() -> None:
    assert PUBLIC <= set(gtr.__all__) <= set(dir(gtr))
    assert all(getattr(gtr, name) is not None for name in gtr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gtr.nothing  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import gtr_core; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(), "labels or texts"),
        (dict(labels=[99]), "classes 0 to"),
        (dict(labels=[0], size=(64, 64)), "draws 128 x 128"),
        (dict(labels=[0], size=(100, 128)), "multiples of 8"),
    ],
)
def test_wrong_input_is_answered_in_one_line(arguments: dict, words: str) -> None:
    model, vae = gtr.load_model(gtr.DEMO_MAR), gtr.load_vae(gtr.DEMO_VAE)
    with pytest.raises(gtr.GtRError, match=words) as refusal:
        gtr.generate(model, vae, method=gtr.Method(gtr.preset("gtr-extreme")), **arguments)
    assert "\n" not in str(refusal.value)
