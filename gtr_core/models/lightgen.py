"""LightGen: the text-conditional masked autoregressive transformer (docs/upstream.md 3.1 to 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.chain import DiffusionSpec
from ..diffusion.head import DiffusionHead, HeadSpec
from ..errors import GtRError
from .latents import LatentSpec
from .layers import Attention, Block, Mlp, empty_parameter, sdpa
from .shapes import (
    Shapes,
    check_depths,
    check_latent,
    count_blocks,
    describe_names,
    head_count,
    infer_head_spec,
    shape_of,
)


@dataclass(frozen=True)
class LightGenSpec:
    """A LightGen model (text to image, upstream's FLUID; docs/upstream.md 3). ``grid`` is its usual size, not its only.

    ``text_length`` text positions of ``caption_dim`` values come from the text encoder; position tables have
    ``table`` x ``table`` entries and are resized. Upstream swaps the axes of resized tables; that is reproduced
    unless ``corrected_positions`` is set, which matters for non-square pictures only.
    """

    name: str
    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    cross_depth: int
    aligner_depth: int
    caption_dim: int
    head: HeadSpec
    latent: LatentSpec = LatentSpec(channels=16, stride=8, patch=2, scale=1.5305, shift=0.0609)
    grid: tuple[int, int] = (32, 32)
    text_length: int = 128
    table: int = 16
    corrected_positions: bool = False
    diffusion: DiffusionSpec = DiffusionSpec()
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    buffer: int = 0

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of blocks: encoder, decoder, head, cross-attention, aligner."""
        return self.encoder_depth, self.decoder_depth, self.head.depth, self.cross_depth, self.aligner_depth

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raises GtRError for a grid without tokens."""
        if min(grid) < 1:
            raise GtRError(f"{self.name} needs at least 1 x 1 tokens, found {grid[0]} x {grid[1]}")


# The published text-to-image model.
LIGHTGEN = LightGenSpec(
    name="lightgen",
    dim=1024,
    heads=16,
    encoder_depth=16,
    decoder_depth=16,
    cross_depth=16,
    aligner_depth=6,
    caption_dim=4096,
    head=HeadSpec(channels=64, condition_dim=1024, width=1536, depth=8),
)


class CrossAttention(nn.Module):
    """Queries from the picture, keys and values from the text; ``kv`` is laid out [k | v], each head-major."""

    def __init__(self, dim: int, heads: int, *, operations, attention: Attention, **factory):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.query_linear = operations.Linear(dim, dim, **factory)
        self.kv = operations.Linear(dim, 2 * dim, **factory)
        self.proj = operations.Linear(dim, dim, **factory)

    def remember(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, T, d) of the text (B, T, D)."""
        k, v = rearrange(self.kv(text), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = rearrange(self.query_linear(x), "b n (h d) -> b h n d", h=self.heads)
        return self.proj(rearrange(self.attention(q, k, v), "b h n d -> b n (h d)"))


class CrossBlock(nn.Module):
    """Cross-attention block whose residual base is the *normalised* query, as upstream's (docs/upstream.md 3.3)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, eps: float, *, operations, attention, **factory):
        super().__init__()
        self.normq = operations.LayerNorm(dim, eps=eps, **factory)
        self.normkv = operations.LayerNorm(dim, eps=eps, **factory)
        self.attn = CrossAttention(dim, heads, operations=operations, attention=attention, **factory)
        self.norm2 = operations.LayerNorm(dim, eps=eps, **factory)
        self.mlp = Mlp(dim, mlp_ratio * dim, operations=operations, **factory)

    def remember(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """What the block reads of the text."""
        return self.attn.remember(self.normkv(text))

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = self.normq(x)
        x = x + self.attn(x, k, v)
        return x + self.mlp(self.norm2(x))


class TextProjection(nn.Module):
    def __init__(self, inputs: int, dim: int, *, operations, **factory):
        super().__init__()
        self.linear_1 = operations.Linear(inputs, dim, **factory)
        self.linear_2 = operations.Linear(dim, dim, **factory)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class TextEmbedding(nn.Module):
    """Text encoder states (B, T, caption_dim) -> (B, T, dim); every position counts, padding too."""

    def __init__(self, spec: LightGenSpec, *, operations, attention, **factory):
        super().__init__()
        self.text_proj = TextProjection(spec.caption_dim, spec.dim, operations=operations, **factory)
        self.text_aligner = nn.ModuleList(
            Block(
                spec.dim,
                spec.heads,
                spec.mlp_ratio,
                spec.norm_eps,
                operations=operations,
                attention=attention,
                **factory,
            )
            for _ in range(spec.aligner_depth)
        )
        self.text_aligner_norm = operations.LayerNorm(spec.dim, eps=spec.norm_eps, **factory)

    def forward(self, text: Tensor) -> Tensor:
        x = self.text_proj(text)
        for block in self.text_aligner:
            x = block(x)
        return self.text_aligner_norm(x)


class LightGen(nn.Module):
    """Text-free encoder and decoder over tokens, a cross-attention decoder that reads the text, a diffusion head.

    Parameter names are those of the published checkpoints; positions are raster indices. Everything before the
    cross-attention does not depend on the text, so it runs once for all guidance halves; the cross-attention
    blocks have no self-attention, so they run for the target positions only.
    """

    def __init__(
        self,
        spec: LightGenSpec,
        *,
        operations=nn,
        attention: Attention = sdpa,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.spec = spec
        factory = {"device": device, "dtype": dtype}
        layers = {"operations": operations, "attention": attention, **factory}
        dim, block = spec.dim, (spec.dim, spec.heads, spec.mlp_ratio, spec.norm_eps)

        def norm() -> nn.Module:
            return operations.LayerNorm(dim, eps=spec.norm_eps, **factory)

        self.text_emb = TextEmbedding(spec, **layers)
        self.fake_latent = empty_parameter(1, 1, dim, **factory)
        self.z_proj = operations.Linear(spec.head.channels, dim, **factory)
        self.z_proj_ln = norm()
        self.encoder_pos_embed_learned = empty_parameter(1, spec.table**2, dim, **factory)
        self.encoder_blocks = nn.ModuleList(Block(*block, **layers) for _ in range(spec.encoder_depth))
        self.encoder_norm = norm()
        self.decoder_embed = operations.Linear(dim, dim, **factory)
        self.mask_token = empty_parameter(1, 1, dim, **factory)
        self.decoder_pos_embed_learned = empty_parameter(1, spec.table**2, dim, **factory)
        self.decoder_blocks = nn.ModuleList(Block(*block, **layers) for _ in range(spec.decoder_depth))
        self.decoder_norm = norm()
        self.last_embed = operations.Linear(dim, dim, **factory)
        self.last_pos_embed_learned = empty_parameter(1, spec.table**2, dim, **factory)
        self.cross_attn_blocks = nn.ModuleList(CrossBlock(*block, **layers) for _ in range(spec.cross_depth))
        self.cross_norm = norm()
        self.diffloss = nn.ModuleDict(
            {"net": DiffusionHead(spec.head, operations=operations, device=device, dtype=torch.float32)}
        )

    @property
    def head(self) -> DiffusionHead:
        return self.diffloss["net"]

    def embed_condition(self, text: Tensor, dtype: torch.dtype) -> Tensor:
        """Text encoder states (B, T, caption_dim) -> (B, T, D) in ``dtype``."""
        return self.text_emb(text.to(dtype))

    def null_condition(self, condition: Tensor) -> Tensor:
        """The learned empty text in the shape of an embedded one."""
        return self.fake_latent.to(condition).expand_as(condition)

    def positions(self, table: Tensor, grid: tuple[int, int], like: Tensor) -> Tensor:
        """A position table resized to ``grid``, (h * w, D), indexed by raster position (docs/upstream.md 3.4)."""
        side, (height, width) = self.spec.table, grid
        if (height, width) == (side, side):
            return table[0].to(like)
        axes = (height, width) if self.spec.corrected_positions else (width, height)
        square = rearrange(table.to(device=like.device, dtype=torch.float32), "b (p q) d -> b d p q", p=side)
        # Explicit factors, not a size: they define the sampling grid that the model was trained with.
        resized = F.interpolate(square, scale_factor=tuple((length + 0.1) / side for length in axes), mode="bicubic")
        return rearrange(resized, "b d p q -> (b p q) d").to(like.dtype)

    def encode(self, tokens: Tensor, known: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens (B, L, C), known (B, K) positions -> (B, K, D); K may be 0."""
        x = self.z_proj(tokens.gather(1, known[..., None].expand(-1, -1, tokens.shape[-1])))
        if not known.shape[1]:
            return x
        x = self.z_proj_ln(x + self.positions(self.encoder_pos_embed_learned, grid, x)[known])
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def decode(
        self, encoded: Tensor, known: Tensor, masked: Tensor, grid: tuple[int, int], rows: slice = slice(None)
    ) -> Tensor:
        """encoded (B, K, D), masked (B, M) positions -> (B, K + M, D) after the last norm, in that order; the last
        block computes ``rows`` of it only."""
        x = self.decoder_embed(encoded)
        x = torch.cat([x, self.mask_token.to(x).expand(x.shape[0], masked.shape[1], -1)], dim=1)
        x = x + self.positions(self.decoder_pos_embed_learned, grid, x)[torch.cat([known, masked], dim=1)]
        for block in self.decoder_blocks[:-1]:
            x = block(x)
        return self.decoder_norm(self.decoder_blocks[-1](x, rows))

    def decode_targets(
        self, tokens: Tensor, known: Tensor, targets: Tensor, context: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Everything before the text: (B, T, D) at the masked positions ``targets``."""
        rows = slice(known.shape[1], known.shape[1] + targets.shape[1])
        return self.decode(self.encode(tokens, known, grid), known, torch.cat([targets, context], dim=1), grid, rows)

    def remember(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the cross-attention blocks read of the text (B, T, D); it is the same in every AR step."""
        return [block.remember(text) for block in self.cross_attn_blocks]

    def read(
        self, decoded: Tensor, positions: Tensor, remembered: Sequence[tuple[Tensor, Tensor]], grid: tuple[int, int]
    ) -> Tensor:
        """decoded (B, n, D) at ``positions`` (B, n), a remembered text -> z (B, n, D)."""
        x = self.last_embed(decoded)
        x = x + self.positions(self.last_pos_embed_learned, grid, x)[positions]
        for block, (k, v) in zip(self.cross_attn_blocks, remembered):
            x = block(x, k, v)
        return self.cross_norm(x)

    def read_text(self, decoded: Tensor, positions: Tensor, text: Tensor, grid: tuple[int, int]) -> Tensor:
        """decoded (B, n, D) at ``positions`` (B, n), text (B, T, D) -> z (B, n, D)."""
        return self.read(decoded, positions, self.remember(text), grid)

    def forward(
        self,
        tokens: Tensor,
        known: Tensor,
        targets: Tensor,
        context: Tensor,
        conditions: Sequence[Tensor],
        grid: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        """Conditioning vectors z (B, T, D) of the masked positions ``targets``, one tensor per condition.

        As :meth:`gtr_core.mar.MAR.forward`, for a grid of any size; conditions are (B, text_length, D).
        """
        decoded, halves = self.decode_targets(tokens, known, targets, context, grid), len(conditions)
        z = self.read_text(decoded.repeat(halves, 1, 1), targets.repeat(halves, 1), torch.cat(list(conditions)), grid)
        return z.chunk(halves)


def is_lightgen(shapes: Shapes) -> bool:
    """Whether the names belong to a LightGen state dict."""
    return "last_embed.weight" in shapes and "text_emb.text_proj.linear_1.weight" in shapes


def infer_lightgen_spec(shapes: Shapes, *, heads: int | None = None, **overrides) -> LightGenSpec:
    """Read a :class:`LightGenSpec` off tensor names and shapes (docs/upstream.md 3.1). Raises GtRError."""
    if not is_lightgen(shapes):
        raise GtRError(
            f"not a LightGen checkpoint: expected tensors such as 'last_embed.weight' and "
            f"'text_emb.text_proj.linear_1.weight', found {describe_names(shapes)}; choose a LightGen file"
        )
    dim, caption_dim = shape_of(shapes, "text_emb.text_proj.linear_1.weight", 2)
    head = infer_head_spec(shapes, dim)
    table = math.isqrt(shape_of(shapes, "encoder_pos_embed_learned", 3)[1])
    latent = overrides.pop(
        "latent", replace(LightGenSpec.latent, channels=head.channels // LightGenSpec.latent.patch**2)
    )
    check_latent(latent, head)
    depths = {
        f"{part}_depth": count_blocks(shapes, prefix)
        for part, prefix in (
            ("encoder", "encoder_blocks"),
            ("decoder", "decoder_blocks"),
            ("cross", "cross_attn_blocks"),
            ("aligner", "text_emb.text_aligner"),
        )
    }
    spec = LightGenSpec(
        name="lightgen",
        dim=dim,
        heads=head_count(dim, heads),
        caption_dim=caption_dim,
        head=head,
        latent=latent,
        table=table,
        **depths,
    )
    check_depths(spec, stated=overrides.pop("depths", None))
    return replace(spec, **overrides)
