"""Latents and tokens: there and back, sizes, and colours for previews."""

from __future__ import annotations

import pytest
import torch
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.latents import LatentSpec, latent_to_tokens, preview_colours, tokens_to_latent

PATCHED = LatentSpec(channels=3, stride=8, patch=2, scale=1.5, shift=0.25)


def test_tokens_are_patches_in_raster_order_channels_first():
    latent = torch.arange(3 * 4 * 6.0).view(1, 3, 4, 6)
    tokens = latent_to_tokens(latent, PATCHED)
    assert tokens.shape == (1, 6, PATCHED.token_dim) == (1, 6, 12)
    patch = latent[0, :, 2:4, 0:2].flatten()  # the second row's first
    torch.testing.assert_close(tokens[0, 3], (patch - 0.25) * 1.5)
    torch.testing.assert_close(tokens_to_latent(tokens, (2, 3), PATCHED), latent)


def test_sizes_in_pixels_and_in_tokens():
    assert PATCHED.size((2, 3)) == (32, 48) and PATCHED.grid((32, 48)) == (2, 3)
    assert PATCHED.pixels((2, 3)) == "48 x 32"
    for wrong in ((0, 16), (40, 16)):
        with pytest.raises(GtRError, match="multiples of 16 pixels"):
            PATCHED.grid(wrong)


def test_a_linear_map_makes_colours():
    spec = LatentSpec(channels=1, patch=1)
    tokens = torch.tensor([[[1.0], [-1.0], [0.0], [9.0]]])
    colours = preview_colours(tokens, (2, 2), spec, [[1.0, 0.5, 0.0], [0.0, 0.0, -1.0]])
    torch.testing.assert_close(colours[0, 0, 0], torch.tensor([1.0, 0.75, 0.0]))
    assert colours.shape == (1, 2, 2, 3) and colours.min() >= 0 and colours.max() <= 1
    assert preview_colours(tokens, (2, 2), spec).shape == (1, 2, 2, 3)
