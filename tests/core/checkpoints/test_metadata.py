"""What shapes do not tell about a model travels in its file, and is checked when it comes back."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from gtr_pack.gtr_core.checkpoints.metadata import SPEC_KEY, read_spec, spec_metadata
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec
from gtr_pack.gtr_core.models.latents import LatentSpec
from safetensors.torch import save_file


def test_metadata_carries_what_shapes_do_not_give(spec, weights):
    rich = replace(
        spec,
        name="x",
        latent=LatentSpec(16, 4, 1, 0.5, 0.1, ((0.1, 0.2, 0.3),) * 17),
        diffusion=DiffusionSpec(beta_cap=0.2, max_timestep=950),
        class_names=tuple("abcdefghij"),
    )
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    assert read_spec(shapes, spec_metadata(rich, "ema")) == rich


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read|unknown fields"),
        ('{"surprise": 1}', "unknown fields"),
        ('{"heads": 5}', "do not divide"),
        ('{"heads": -4}', "positive whole number"),
        ('{"heads": 4, "grid": [4, 4]}', "needs 16 positions"),
        ('{"heads": 4, "latent": {"channels": 16, "stride": 4, "patch": 1, "scale": 0, "shift": 0}}', "scale is 0"),
        ('{"heads": 4, "diffusion": {"base_steps": 1000, "beta_cap": 2}}', "out of range"),
        ('{"heads": 4, "norm_eps": NaN}', "finite"),
        ('{"heads": 4, "norm_eps": -1}', "not above 0"),
        ('{"heads": 4, "norm_eps": 1' + "0" * 400 + "}", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"heads": 4, "name": "a\\nb"}', "one printable line"),
        ('{"heads": 4, "class_names": ["a"]}', "1 class names for 10"),
        ('{"heads": 4, "depths": [2, 3, 3]}', "blocks are missing"),
        ('{"heads": 4, "text_length": 7}', "has text_length, which MAR has not"),
    ],
)
def test_wrong_metadata_is_refused(text, words, weights, refusal, tmp_path):
    save_file(weights, tmp_path / "m.safetensors", metadata={SPEC_KEY: text})
    assert re.search(words, refusal(tmp_path / "m.safetensors", heads=None))


def test_lost_last_blocks_are_noticed_by_the_metadata(weights, spec, refusal, tmp_path):
    """Such a file still looks like a model, of fewer blocks."""
    for prefix in ("diffloss.net.res_blocks.2.", "encoder_blocks.1."):
        kept = {name: t for name, t in weights.items() if not name.startswith(prefix)}
        save_file(kept, tmp_path / "m.safetensors", metadata=spec_metadata(spec, "ema"))
        assert "blocks are missing" in refusal(tmp_path / "m.safetensors")
