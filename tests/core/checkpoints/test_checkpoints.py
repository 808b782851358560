"""From files to models that are ready to run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model, load_vae, prompt_states
from gtr_pack.gtr_core.errors import GtRError
from gtr_tests.stand_ins import small_lightgen
from safetensors.torch import save_file

VAE = Path(__file__).resolve().parents[2] / "golden" / "vae_tiny_fp16.safetensors"


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_a_loaded_model_runs_in_its_dtype_with_a_float32_head(dtype, good, weights):
    model = load_model(good, dtype=dtype)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.bfloat16
    for name, t in model.state_dict().items():
        kept = weights[name] if name.startswith("diffloss.") else weights[name].bfloat16()
        assert torch.equal(t, kept)


def test_a_dtype_that_nobody_knows_is_refused(good):
    with pytest.raises(GtRError, match="dtype 'float8': expected one of float32, float16, bfloat16"):
        load_model(good, dtype="float8")


def test_a_loaded_vae_is_float32(golden_weights):
    vae = load_vae(VAE)
    assert not vae.training and {t.dtype for t in vae.state_dict().values()} == {torch.float32}
    assert all(torch.equal(vae.state_dict()[name], t) for name, t in golden_weights("vae_tiny_fp16").items())


def test_encoded_prompts_are_read_as_they_are(tmp_path):
    states = torch.randn(3, 128, 64, dtype=torch.bfloat16)
    save_file({"prompt_embeds": states}, tmp_path / "text.safetensors")
    assert torch.equal(prompt_states(tmp_path / "text.safetensors", small_lightgen().spec), states)


@pytest.mark.parametrize(
    "tensors, found",
    [
        ({"text": torch.zeros(1, 128, 64)}, "found None"),
        ({"prompt_embeds": torch.zeros(1, 127, 64)}, r"found \(1, 127, 64\)"),
        ({"prompt_embeds": torch.zeros(128, 64)}, r"found \(128, 64\)"),
        ({"prompt_embeds": torch.zeros(0, 128, 64)}, r"found \(0, 128, 64\)"),
    ],
)
def test_prompts_of_another_shape_are_refused(tensors, found, tmp_path):
    save_file(tensors, tmp_path / "text.safetensors")
    with pytest.raises(GtRError, match=r"'prompt_embeds' of shape \(prompts, 128, 64\), " + found):
        prompt_states(tmp_path / "text.safetensors", small_lightgen().spec)
