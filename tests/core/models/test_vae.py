"""The KL VAE: parity with upstream, and norm groups: in the metadata, and changed without changing the function."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.metadata import vae_metadata
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.vae import KL16, KLVAE, VAESpec, infer_vae_spec, regroup
from gtr_tests.recorded import error
from safetensors.torch import save_file

SPEC = VAESpec(
    channels=16, multipliers=(1, 2), blocks=1, latent_channels=4, embed_channels=4, groups=4, encoder_attention=(1,)
)


@pytest.fixture(scope="module")
def vae() -> KLVAE:
    model, generator = KLVAE(SPEC), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (p.dim() == 1))
    return model.eval()


def test_a_vae_decodes_and_encodes_as_upstreams(golden, golden_weights):
    g, weights = golden("vae_tiny"), golden_weights("vae_tiny_fp16")
    spec = infer_vae_spec({key: tuple(t.shape) for key, t in weights.items()})
    assert (spec.encoder_attention, spec.decoder_attention) == ((4,), ())
    vae = KLVAE(spec)
    vae.load_state_dict(weights)
    vae.eval().requires_grad_(False)
    for suffix in ("", "_nonsquare"):
        assert error(vae.decode(g[f"latent{suffix}"]), g[f"decoded{suffix}"]) < 1e-5
        mean, _ = vae.moments(g[f"image{suffix}"])
        assert error(mean, g[f"moments{suffix}"][:, :16]) < 1e-5
    mean, logvar = vae.moments(g["image"])
    assert error(mean, g["mean"]) < 1e-5 and error(logvar, g["logvar"]) < 1e-5


def test_kl16_has_the_published_layout(golden_layout):
    shapes = golden_layout("kl16")
    with torch.device("meta"):
        vae = KLVAE(KL16)
    assert {key: tuple(t.shape) for key, t in vae.state_dict().items()} == shapes
    assert infer_vae_spec(shapes) == KL16


@torch.no_grad()
def test_more_groups_are_the_same_function(vae):
    wide_spec, weights = regroup(SPEC, vae.state_dict())
    wide = KLVAE(wide_spec)
    wide.load_state_dict(weights)
    assert (wide_spec.groups, wide_spec.channels) == (32, 128)
    image = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(vae.moments(image), wide.eval().moments(image)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vae.decode(ours), wide.decode(ours), rtol=1e-4, atol=1e-4)


def test_ldm_groups_are_left_alone():
    tensors = {"any": torch.zeros(1)}
    spec = VAESpec(channels=128, multipliers=(1,), blocks=1, latent_channels=4, embed_channels=4)
    assert regroup(spec, tensors) == (spec, tensors)


def test_groups_travel_in_the_metadata(vae, tmp_path):
    path = tmp_path / "vae.safetensors"
    save_file(vae.state_dict(), path, metadata=vae_metadata(SPEC))
    assert checked_vae(read_checkpoint(path))[0] == SPEC


@pytest.mark.parametrize(
    "metadata, complaint",
    [
        ({"gtr.spec": '{"groups": 5}'}, "multiple of 5"),
        ({"gtr.spec": '{"groups": 0}'}, "not a positive whole number"),
        ({"gtr.spec": '{"heads": 4}'}, "does not fit a VAE"),
        ({}, "multiple of 32"),
    ],
)
def test_groups_that_do_not_fit_are_named(vae, tmp_path, metadata, complaint):
    path = tmp_path / "vae.safetensors"
    save_file(vae.state_dict(), path, metadata=metadata)
    with pytest.raises(GtRError, match=complaint):
        checked_vae(read_checkpoint(path))


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(GtRError, match="divisor"):
        regroup(VAESpec(channels=15, multipliers=(1,), blocks=1, latent_channels=4, embed_channels=4, groups=5), {})
