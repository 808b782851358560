"""The masked autoencoder that the families share: layers by their published names, and the way through their blocks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..diffusion.head import DiffusionHead, HeadSpec
from .layers import Attention, Sizes, blocks, empty_parameter, sdpa


class MaskedSizes(Sizes, Protocol):
    """What a spec says about the autoencoder."""

    @property
    def encoder_depth(self) -> int: ...

    @property
    def decoder_depth(self) -> int: ...

    @property
    def head(self) -> HeadSpec: ...


class MaskedAutoencoder(nn.Module):
    """Encoder over known tokens, decoder over known and masked ones, diffusion head per token.

    ``positions`` is the length of the position tables. A family adds what its condition needs.
    """

    def __init__(
        self,
        spec: MaskedSizes,
        positions: int,
        *,
        operations=nn,
        attention: Attention = sdpa,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        layers = {"operations": operations, "attention": attention, **factory}
        dim = spec.dim

        def norm() -> nn.Module:
            return operations.LayerNorm(dim, eps=spec.norm_eps, **factory)

        self.z_proj = operations.Linear(spec.head.channels, dim, **factory)
        self.z_proj_ln = norm()
        self.encoder_pos_embed_learned = empty_parameter(1, positions, dim, **factory)
        self.encoder_blocks = blocks(spec.encoder_depth, spec, **layers)
        self.encoder_norm = norm()
        self.decoder_embed = operations.Linear(dim, dim, **factory)
        self.mask_token = empty_parameter(1, 1, dim, **factory)
        self.decoder_pos_embed_learned = empty_parameter(1, positions, dim, **factory)
        self.decoder_blocks = blocks(spec.decoder_depth, spec, **layers)
        self.decoder_norm = norm()
        head = DiffusionHead(spec.head, operations=operations, device=device, dtype=torch.float32)
        self.diffloss = nn.ModuleDict({"net": head})

    def through_encoder(self, x: Tensor) -> Tensor:
        """x (B, n, D) -> (B, n, D) after the encoder's last norm."""
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def through_decoder(self, x: Tensor, rows: slice) -> Tensor:
        """x (B, n, D) -> the output at ``rows`` after the decoder's last norm: all that its last block computes."""
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        return self.decoder_norm(self.decoder_blocks[-1](x, rows))
