"""l-DeTok: its tokenizer and the MAR on its latents equal the original code's recorded numbers, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import AUTOENCODERS, infer_spec, recognise_autoencoder
from gtr_pack.gtr_core.models.autoencoder import LatentStatistics
from gtr_pack.gtr_core.models.detok import DETOK_FAMILY, DeTok, DeTokSpec, infer_detok_spec, rotary_table
from gtr_pack.gtr_core.models.latents import DETOK, NAMED
from gtr_pack.gtr_core.models.mar import MAR, mar_latent
from gtr_pack.gtr_core.models.vae import KLVAE, VAE_FAMILY, VAESpec
from gtr_pack.gtr_core.pipeline import check_pair
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.sampling.sampler import sample
from gtr_tests.models import SMALL_MAR, seeded
from gtr_tests.peak import Peak
from gtr_tests.recorded import RecordedNoise, error, recorded_plan
from torch import Tensor

GRID = (8, 8)


def grid_of(rows: Tensor) -> Tensor:
    """(B, L, C) -> (B, C, h, w)."""
    return rows.transpose(1, 2).unflatten(2, GRID)


@pytest.fixture(scope="module")
def weights(golden_weights) -> dict[str, Tensor]:
    return golden_weights("detok_tokenizer_fp16")


@pytest.fixture(scope="module")
def spec(weights) -> DeTokSpec:
    return infer_detok_spec({name: tuple(t.shape) for name, t in weights.items()}, heads=(2, 2))


@pytest.fixture(scope="module")
def statistics(golden) -> LatentStatistics:
    g = golden("detok_tokenizer")
    return LatentStatistics(g["stats_mean"][:16].double(), g["stats_std"][:16].double())


def model(spec: DeTokSpec, weights: dict[str, Tensor]) -> DeTok:
    tokenizer = DeTok(spec)
    tokenizer.load_state_dict(weights)
    return tokenizer.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(spec, weights, statistics) -> DeTok:
    """With the statistics of its latents folded in."""
    return model(spec, DETOK_FAMILY.fold(weights, statistics))


def test_the_positions_equal_the_original_codes(golden, spec):
    g = golden("detok_tokenizer")
    for name, half in (("dbg_enc_rope", spec.encoder), ("dbg_dec_rope", spec.decoder)):
        table = torch.cat(rotary_table(spec.side, half.dim // half.heads, torch.device("cpu")), dim=-1)
        torch.testing.assert_close(table, g[name], rtol=0, atol=2e-6)


def test_the_moments_equal_the_original_codes(golden, spec, weights):
    g = golden("detok_tokenizer")
    mean, logvar = model(spec, weights).moments(g["image"])
    recorded = grid_of(g["moments"])
    assert error(mean, recorded[:, :16]) < 1e-5 and error(logvar, recorded[:, 16:].clamp(-30, 20)) < 1e-5


def test_folded_statistics_normalise_the_latents(golden, tokenizer):
    """The mean, a sample of the posterior, and the decoder's input."""
    g = golden("detok_tokenizer")
    mean, logvar = tokenizer.moments(g["image"])
    assert torch.equal(tokenizer.encode(g["image"]), mean) and error(mean, g["latent"]) < 1e-5
    assert error(mean + grid_of(g["sample_noise"]) * (logvar / 2).exp(), g["latent_sampled"]) < 1e-5
    assert error(tokenizer.decode(g["latent_in"]), g["decoded_raw"]) < 1e-5


def test_folding_equals_normalising_by_hand(golden, spec, weights, statistics):
    g = golden("detok_tokenizer")
    mean, std = (values.float().view(1, -1, 1, 1) for values in (statistics.mean, statistics.std))
    plain = model(spec, weights)
    assert error(plain.decode(g["latent_in"] * std + mean), g["decoded_raw"]) < 1e-5
    assert error((plain.encode(g["image"]) - mean) / std, g["latent"]) < 1e-5


@torch.no_grad()
def test_a_kl_vae_takes_statistics_too():
    """As a MAR on the latents of VA-VAE needs it: 1 x 1 convolutions instead of linear layers."""
    vae = seeded(KLVAE(VAESpec(32, (1, 1), 1, 4, 4)))
    statistics = LatentStatistics(torch.tensor([0.5, -1.0, 2.0, 0.0]).double(), torch.tensor([2.0, 0.5, 4, 1]).double())
    folded = KLVAE(vae.spec)
    folded.load_state_dict(VAE_FAMILY.fold(vae.state_dict(), statistics))
    mean, std = (values.float().view(1, -1, 1, 1) for values in (statistics.mean, statistics.std))
    generator = torch.Generator().manual_seed(0)
    latent, image = torch.randn(1, 4, 4, 4, generator=generator), torch.randn(1, 3, 8, 8, generator=generator)
    torch.testing.assert_close(folded.eval().decode(latent), vae.decode(latent * std + mean), rtol=1e-4, atol=1e-4)
    (ours, our_logvar), (theirs, their_logvar) = folded.moments(image), vae.moments(image)
    torch.testing.assert_close(ours, (theirs - mean) / std, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(our_logvar.exp(), their_logvar.exp() / std**2, rtol=1e-4, atol=1e-4)


def test_statistics_that_do_not_fit_are_refused(weights):
    short = LatentStatistics(torch.zeros(4).double(), torch.ones(4).double())
    with pytest.raises(GtRError, match="statistics of 4 channels for latents of 16"):
        DETOK_FAMILY.fold(weights, short)
    with pytest.raises(GtRError, match="no layer beside the latent"):
        VAE_FAMILY.fold(KLVAE(VAESpec(32, (1,), 1, 4, 4, quant=False)).state_dict(), short)


def test_the_published_tokenizer_has_this_layout(golden_layout):
    shapes = golden_layout("detok_BB")
    spec = infer_detok_spec(shapes)
    assert recognise_autoencoder(shapes) is DETOK_FAMILY is AUTOENCODERS["l-DeTok tokenizer"]
    assert (spec.variant, spec.heads, spec.embed_channels, spec.stride, spec.pixels) == (
        "detok-BB",
        (12, 12),
        16,
        16,
        256,
    )
    with torch.device("meta"):
        state = DeTok(spec).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == shapes
    assert sum(t.numel() for t in state.values()) == 171_712_628


def test_va_vae_is_a_kl_vae_of_32_channels(golden_layout):
    shapes = golden_layout("vavae_f16d32")
    spec = recognise_autoencoder(shapes).infer(shapes)
    assert (spec.embed_channels, spec.stride, spec.decoder_attention) == (32, 16, (4,))


@pytest.mark.parametrize("size", [(64, 128), (128, 136), (256, 256), (32, 512)])
def test_images_of_another_size_are_refused(size, tokenizer):
    with pytest.raises(GtRError, match=f"knows images of 128 x 128 pixels only, found {size[1]} x {size[0]}: scale or"):
        tokenizer.encode(torch.zeros(1, 3, *size))
    with pytest.raises(GtRError, match="128 x 128 pixels only"):
        tokenizer.decode(torch.zeros(1, 16, size[0] // 16, size[1] // 16 + 1))


def test_a_tokenizer_that_is_no_whole_one_is_refused(weights):
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    with pytest.raises(GtRError, match="cannot be read off a width of 64 .*--heads N"):
        infer_detok_spec(shapes)
    with pytest.raises(GtRError, match="5 attention heads do not fit the width 64"):
        infer_detok_spec(shapes, heads=(5, 2))
    with pytest.raises(GtRError, match="'decoder.transformer' has no blocks"):
        infer_detok_spec({k: s for k, s in shapes.items() if "decoder.transformer" not in k}, heads=(2, 2))
    with pytest.raises(GtRError, match="63 latent cells, expected a square grid"):
        infer_detok_spec(shapes | {"encoder.positional_embedding": (1, 63, 64)}, heads=(2, 2))


@torch.no_grad()
def test_the_stated_activations_are_enough_for_an_image(golden_layout):
    spec = infer_detok_spec(golden_layout("detok_BB"))
    with torch.device("meta"):
        tokenizer = DeTok(spec)
    for run, shape in ((tokenizer.decode, (1, 16, 16, 16)), (tokenizer.encode, (1, 3, 256, 256))):
        with Peak(tokenizer) as peak:
            run(torch.empty(shape, device="meta"))
        # The attention's probabilities, which fused kernels do not keep, are counted too.
        assert spec.activation_values * 4 / 3 < peak.most < spec.activation_values * 4


def test_without_its_statistics_a_tokenizer_is_of_no_use(spec):
    assert "convert it with --stats stats.pkl" in spec.unusable
    assert DeTokSpec(spec.encoder, spec.decoder, normalised=True).unusable is None


# -- MAR on its latents ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mar(golden_model) -> MAR:
    return golden_model("detok_mar_fp16", heads=3, latent=NAMED["detok"])


LOOPS = {"lin": ([3, 7], Guidance(3.9, "linear"), 1.0), "nocfg": ([5], Guidance(1.0), 0.95)}


@pytest.mark.parametrize("case", LOOPS)
def test_a_whole_run_equals_the_original_codes(case, golden, mar, tokenizer):
    """From noise to tokens, and for one image to pixels: the model's tokens are the tokenizer's latents."""
    g = golden(f"detok_mar_sample_{case}")
    labels, guidance, temperature = LOOPS[case]
    plan = recorded_plan(g, GRID, guidance, temperature)
    out = sample(mar, plan, torch.tensor(labels), RecordedNoise(g, len(labels)))
    assert error(out, g["latent"].flatten(2).transpose(1, 2)) < 1e-3
    if "pixels" in g:
        pixels = (tokenizer.decode(grid_of(out[:1])) / 2 + 0.5).clamp(0, 1)
        assert error(pixels, g["pixels"]) < 2e-3


def test_the_published_mar_is_known_by_the_order_of_its_names(golden_layout):
    """Names and shapes are MAR-B's; DeTok's code puts both norms of a block before its attention."""
    shapes = golden_layout("detok_mar_base")
    spec = infer_spec(shapes, {})
    assert (spec.name, spec.latent) == ("mar-b", NAMED["detok"])
    assert "assumed to be l-DeTok's" in spec.assumptions[0]
    for others in (golden_layout("mar_base"), dict(sorted(shapes.items())), dict(reversed(shapes.items()))):
        assert others == shapes and mar_latent(others) == NAMED["kl-16"]


def test_two_kinds_of_latents_of_one_shape_are_not_mixed(tokenizer, mar):
    check_pair(mar, model(tokenizer.spec, tokenizer.state_dict()))
    kl = KLVAE(VAESpec(32, (1, 1, 1, 1, 1), 1, 16, 16))
    assert (kl.spec.embed_channels, kl.spec.stride) == (tokenizer.spec.embed_channels, tokenizer.spec.stride)
    with pytest.raises(GtRError, match="draws latents of the kind 'l-DeTok', the VAE decodes 'KL VAE'"):
        check_pair(mar, kl)
    assert mar.spec.latent.kind == DETOK and SMALL_MAR.latent.kind == kl.spec.latents
