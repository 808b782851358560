"""LightGen: the text-conditional masked autoregressive transformer (docs/upstream.md 3.1 to 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.chain import DiffusionSpec
from ..diffusion.head import HeadSpec
from ..errors import GtRError
from .latents import LatentSpec
from .layers import Attention, Mlp, block_flops, blocks, empty_parameter, sdpa
from .masked import MaskedAutoencoder
from .model import Conditions, InParts, Model, Positions, pick
from .position_tables import bicubic_weights, resized_table
from .shapes import Shapes, check_latent, count_blocks, describe_names, head_count, infer_head_spec, shape_of
from .spec import Family, Flops, ModelSpec, check_depths, check_finite, uneven_depths

ANCHORS = ("last_embed.weight", "text_emb.text_proj.linear_1.weight")


@dataclass(frozen=True)
class LightGenSpec(ModelSpec):
    """A LightGen model (text to image, upstream's FLUID; docs/upstream.md 3). ``grid`` is its usual size, not its only.

    ``text_length`` text positions of ``caption_dim`` values come from the text encoder; position tables have
    ``table`` x ``table`` entries and are resized. Upstream swaps the axes of resized tables; that is reproduced
    unless ``corrected_positions`` is set, which matters for non-square images only.
    """

    family: ClassVar[str] = "LightGen"
    origin: ClassVar[str] = "lightgen-origin"
    condition: ClassVar[str] = "text"
    classes: ClassVar[int] = 0
    supports_recap: ClassVar[bool] = True
    stored: ClassVar[tuple[str, ...]] = (*ModelSpec.stored, "text_length")

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
        return *super().depths, self.cross_depth, self.aligner_depth

    @property
    def assumptions(self) -> tuple[str, ...]:
        return super().assumptions + uneven_depths(self)

    def can_draw(self, grid: tuple[int, int]) -> bool:
        """Position tables are resized to any grid."""
        return min(grid) >= 1

    def check_grid(self, grid: tuple[int, int]) -> None:
        if not self.can_draw(grid):
            raise GtRError(f"{self.name} needs at least 1 x 1 tokens, found {grid[0]} x {grid[1]}")

    def check_condition(self, condition: Tensor) -> None:
        expected = (self.text_length, self.caption_dim)
        if not condition.is_floating_point() or condition.shape[1:] != expected:
            raise GtRError(
                f"{self.name} is conditioned on text states (images, {expected[0]}, {expected[1]}), found "
                f"{condition.dtype} of shape {tuple(condition.shape)}: encode the prompts for this model"
            )
        check_finite(condition, "text")

    def random_condition(self, batch: int) -> Tensor:
        return torch.randn(batch, self.text_length, self.caption_dim, generator=torch.Generator().manual_seed(0))

    def transformer_flops(self, known: int, masked: int) -> Flops:
        """As the original code runs it: cross-attention at every position, in both guidance branches.

        The text aligner, which runs once per image, is left out. The decoder's part includes the cross-attention.
        """
        everything = known + masked
        encoder = 2 * known * self.head.channels * self.dim
        encoder += self.encoder_depth * block_flops(self.dim, self.mlp_ratio, known)
        decoder = 2 * known * self.dim**2 + self.decoder_depth * block_flops(self.dim, self.mlp_ratio, everything)
        return Flops({"encoder": encoder, "decoder": decoder + self.read_flops(everything)})

    def read_flops(self, tokens: int) -> int:
        """The cross-attention blocks at so many positions."""
        return 2 * tokens * self.dim**2 + self.cross_depth * self._cross_block_flops(tokens)

    def _cross_block_flops(self, tokens: int) -> int:
        """Query and proj, keys and values of the text, two attention products, two MLP layers."""
        linear = 2 * self.dim**2 * (tokens * (2 + 2 * self.mlp_ratio) + 2 * self.text_length)
        return linear + 4 * tokens * self.text_length * self.dim

    def condition_bytes(self, itemsize: int) -> int:
        """The embedded text, and its keys and values in every cross-attention block."""
        return 2 * self.text_length * self.dim * (self.cross_depth + 1) * itemsize


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
    """Queries from the image, keys and values from the text; ``kv`` is laid out [k | v], each head-major."""

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
        self.text_aligner = blocks(spec.aligner_depth, spec, operations=operations, attention=attention, **factory)
        self.text_aligner_norm = operations.LayerNorm(spec.dim, eps=spec.norm_eps, **factory)

    def forward(self, text: Tensor) -> Tensor:
        x = self.text_proj(text)
        for block in self.text_aligner:
            x = block(x)
        return self.text_aligner_norm(x)


@dataclass(frozen=True, eq=False)
class TextMemory:
    """LightGen's memory: what the cross-attention blocks read of the text, per block keys and values
    (branches, B, heads, T, head_dim)."""

    text: tuple[tuple[Tensor, Tensor], ...]

    @property
    def branches(self) -> int:
        return self.text[0][0].shape[0]

    def first(self, branches: int) -> TextMemory:
        return self._each(lambda t: t[:branches])

    def images(self, rows: slice) -> TextMemory:
        return self._each(lambda t: t[:, rows])

    def stacked(self) -> list[tuple[Tensor, Tensor]]:
        """The branches one after another in the batch: (branches * B, heads, T, head_dim) each."""
        return [(k.flatten(0, 1), v.flatten(0, 1)) for k, v in self.text]

    def _each(self, part: Callable[[Tensor], Tensor]) -> TextMemory:
        return TextMemory(tuple((part(k), part(v)) for k, v in self.text))


class LightGen(MaskedAutoencoder, Model):
    """The masked autoencoder, which sees no text, and before its head a cross-attention decoder that reads the text.

    Everything before the cross-attention does not depend on the text, so it runs once for all guidance branches; the
    cross-attention blocks have no self-attention, so they run for the target positions only.
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
        factory = {"device": device, "dtype": dtype}
        layers = {"operations": operations, "attention": attention, **factory}
        dim, positions = spec.dim, spec.table**2
        super().__init__(spec, positions, **layers)
        self.spec = spec
        self.text_emb = TextEmbedding(spec, **layers)
        self.fake_latent = empty_parameter(1, 1, dim, **factory)
        self.last_embed = operations.Linear(dim, dim, **factory)
        self.last_pos_embed_learned = empty_parameter(1, positions, dim, **factory)
        self.cross_attn_blocks = nn.ModuleList(
            CrossBlock(dim, spec.heads, spec.mlp_ratio, spec.norm_eps, **layers) for _ in range(spec.cross_depth)
        )
        self.cross_norm = operations.LayerNorm(dim, eps=spec.norm_eps, **factory)

    def embed(self, conditions: Conditions, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Text states (B, T, caption_dim) -> (B, T, D) each; None is the learned empty text."""
        shape = (*conditions[0].shape[:2], self.spec.dim)
        null = self.fake_latent
        return tuple(
            null.to(device, dtype).expand(shape) if text is None else self.text_emb(text.to(device, dtype))
            for text in conditions
        )

    def start(
        self, conditions: Conditions, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TextMemory:
        text = self.remember(torch.cat(self.embed(conditions, device, dtype)))
        branches = len(conditions)
        return TextMemory(tuple((k.unflatten(0, (branches, -1)), v.unflatten(0, (branches, -1))) for k, v in text))

    def positions(self, table: Tensor, grid: tuple[int, int], like: Tensor) -> Tensor:
        """A position table resized to ``grid``, (h * w, D), indexed by raster position (docs/upstream.md 3.4)."""
        side, (height, width) = self.spec.table, grid
        if (height, width) == (side, side):
            return table[0].to(like)
        axes = (height, width) if self.spec.corrected_positions else (width, height)
        return resized_table(table[0].to(like.device, torch.float32), axes, bicubic_weights).to(like.dtype)

    def embed_known(self, tokens: Tensor, known: Tensor, grid: tuple[int, int]) -> Tensor:
        """Encoder input: tokens (B, L, C), known (B, K) positions -> (B, K, D)."""
        x = self.z_proj(tokens.gather(1, known[..., None].expand(-1, -1, tokens.shape[-1])))
        return self.z_proj_ln(x + self.positions(self.encoder_pos_embed_learned, grid, x)[known])

    def embed_masked(self, encoded: Tensor, known: Tensor, masked: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decoder input [known, masked] of encoder output (B, K, D)."""
        x = self.decoder_embed(encoded)
        x = torch.cat([x, self.mask_token.to(x).expand(x.shape[0], masked.shape[1], -1)], dim=1)
        return x + self.positions(self.decoder_pos_embed_learned, grid, x)[torch.cat([known, masked], dim=1)]

    def encoder_rows(
        self, tokens: Tensor, known: Tensor, memory: TextMemory, grid: tuple[int, int], *, buffer: bool
    ) -> Tensor:
        """Text-free: one copy for all guidance branches; there is no buffer."""
        return self.embed_known(tokens, known, grid)

    def decoder_rows(
        self, encoded: Tensor, known: Tensor, masked: Tensor, grid: tuple[int, int], *, buffer: bool
    ) -> Tensor:
        return self.embed_masked(encoded, known, masked, grid)

    def conditioning_of(
        self, decoded: Tensor, targets: Tensor, memory: TextMemory, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        return self._read_branches(decoded, targets, memory, grid)

    def encode(self, tokens: Tensor, known: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens (B, L, C), known (B, K) positions -> (B, K, D); K may be 0."""
        x = self.embed_known(tokens, known, grid)
        return self.through_encoder(x) if known.shape[1] else x

    def decode(
        self, encoded: Tensor, known: Tensor, masked: Tensor, grid: tuple[int, int], rows: slice = slice(None)
    ) -> Tensor:
        """encoded (B, K, D), masked (B, M) positions -> (B, K + M, D) after the last norm, in that order; the last
        block computes ``rows`` of it only."""
        return self.through_decoder(self.embed_masked(encoded, known, masked, grid), rows)

    def decode_targets(self, tokens: Tensor, positions: Positions, grid: tuple[int, int]) -> Tensor:
        """Everything before the text: (B, T, D) at the targets."""
        start = positions.known.shape[1]
        rows = slice(start, start + positions.targets.shape[1])
        return self.decode(self.encode(tokens, positions.known, grid), positions.known, positions.masked, grid, rows)

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

    def forward(
        self, tokens: Tensor, positions: Positions, memory: TextMemory, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        return self._read_branches(self.decode_targets(tokens, positions, grid), positions.targets, memory, grid)

    def first_step(
        self,
        tokens: Tensor,
        masked: Tensor,
        places: Tensor,
        memory: TextMemory,
        grid: tuple[int, int],
        in_parts: InParts,
    ) -> tuple[Tensor, ...] | None:
        """Everything before the text once for all images."""
        nothing = masked[:, :0]
        everything = Positions(nothing, masked, nothing)
        decoded = self.decode_targets(tokens[:1], everything, grid)
        targets = masked.expand(len(places), -1).gather(1, places)
        return in_parts(
            len(places),
            everything.count,
            memory.branches,
            lambda rows: self._read_branches(pick(decoded, places[rows]), targets[rows], memory.images(rows), grid),
        )

    def _read_branches(
        self, decoded: Tensor, targets: Tensor, memory: TextMemory, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """z per branch of what was decoded (B, T, D) at the targets (B, T)."""
        branches = memory.branches
        z = self.read(decoded.repeat(branches, 1, 1), targets.repeat(branches, 1), memory.stacked(), grid)
        return z.chunk(branches)

    def reference(
        self, tokens: Tensor, positions: Positions, embedded: Sequence[Tensor], grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Every branch goes through everything separately, the text's keys and values included."""
        everywhere = torch.cat([positions.known, positions.masked], dim=1)
        start = positions.known.shape[1]
        targets = slice(start, start + positions.targets.shape[1])

        def branch(text: Tensor) -> Tensor:
            encoded = self.encode(tokens, positions.known, grid)
            decoded = self.decode(encoded, positions.known, positions.masked, grid)
            return self.read(decoded, everywhere, self.remember(text), grid)[:, targets]

        return tuple(map(branch, embedded))


def is_lightgen(shapes: Shapes) -> bool:
    """Whether the names belong to a LightGen state dict."""
    return all(anchor in shapes for anchor in ANCHORS)


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


LIGHTGEN_FAMILY = Family(
    spec=LightGenSpec,
    model=LightGen,
    anchors=ANCHORS,
    infer=infer_lightgen_spec,
    published={LIGHTGEN.name: LIGHTGEN},
    weights="model",
)
