"""MAR: the class-conditional masked autoregressive transformer (docs/upstream.md 1.1 to 1.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..diffusion.chain import DiffusionSpec
from ..diffusion.head import HeadSpec
from ..errors import GtRError
from .latents import DETOK, LatentSpec
from .layers import Attention, block_flops, empty_parameter, sdpa
from .masked import MaskedAutoencoder
from .model import Conditions, InParts, Model, Positions, at_all_positions, pick
from .shapes import (
    HEADS_BY_WIDTH,
    Shapes,
    check_latent,
    count_blocks,
    describe_names,
    head_count,
    infer_head_spec,
    shape_of,
)
from .spec import Family, Flops, ModelSpec, Traces, check_depths, uneven_depths

# Width, encoder and decoder depth, head depth and width of the published sizes.
VARIANTS = {(768, 12, 12, 6, 1024): "mar-b", (1024, 16, 16, 8, 1280): "mar-l", (1280, 20, 20, 12, 1536): "mar-h"}
ANCHORS = ("class_emb.weight", "diffloss.net.input_proj.weight")
# l-DeTok's training code, and the order in which it alone builds a block: both norms first.
DETOK_SAVER, DETOK_ORDER = "DeTok", ("norm1.weight", "norm2.weight", "attn.qkv.weight", "mlp.fc1.weight")
# Tokens and their values of a MAR on MAETok's latents.
MAETOK = (128, 32)
# Arguments of MAR's training code that say what its latents are, and their values for KL-16.
LATENT_ARGUMENTS = {"vae_embed_dim": 16, "vae_stride": 16, "patch_size": 1}
ASSUMED_KL16 = (
    "latents assumed to be KL-16's: the file does not say, and its tokens have 16 values; to say it, convert the file "
    "with --latent kl-16, or with what else they are"
)
ASSUMED_DETOK = (
    "latents assumed to be l-DeTok's, for the file was written by its training code: decode them with the l-DeTok "
    "tokenizer; a model trained on KL-16 with that code needs convert --latent kl-16"
)


@dataclass(frozen=True)
class MARSpec(ModelSpec):
    """A class-conditional masked autoregressive model (spec of the published sizes: ``mar_spec('mar-b')``)."""

    family: ClassVar[str] = "MAR"
    origin: ClassVar[str] = "origin"
    condition: ClassVar[str] = "label"
    supports_lazymar: ClassVar[bool] = True
    supports_recap: ClassVar[bool] = True
    stored: ClassVar[tuple[str, ...]] = (*ModelSpec.stored, "class_names")

    name: str
    grid: tuple[int, int]
    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    classes: int
    buffer: int
    head: HeadSpec
    latent: LatentSpec = LatentSpec()
    diffusion: DiffusionSpec = DiffusionSpec()
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    class_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def assumptions(self) -> tuple[str, ...]:
        return super().assumptions + uneven_depths(self)

    @property
    def raw_weights(self) -> str | None:
        """l-DeTok's code evaluates whatever a file holds."""
        if self.latent.kind == DETOK:
            return None
        return "worse images (FID 5.6 instead of 2.3)" if self.name == "mar-b" else super().raw_weights

    def can_draw(self, grid: tuple[int, int]) -> bool:
        """Positions are learned for one size."""
        return tuple(grid) == self.grid

    def check_grid(self, grid: tuple[int, int]) -> None:
        if not self.can_draw(grid):
            raise GtRError(
                f"{self.name} draws {self.latent.pixels(self.grid)} pixels only, found "
                f"{self.latent.pixels(grid)}: use the model's own size"
            )

    def check_condition(self, condition: Tensor) -> None:
        if condition.is_floating_point() or condition.ndim != 1:
            raise GtRError(
                f"{self.name} is conditioned on class labels (images,), found {condition.dtype} of shape "
                f"{tuple(condition.shape)}: give one whole number per image"
            )
        if not condition.is_meta and ((condition < -1) | (condition >= self.classes)).any():
            raise GtRError(f"a class is out of range: {self.name} has classes 0 to {self.classes - 1} (-1 for none)")

    def random_condition(self, batch: int) -> Tensor:
        return torch.arange(batch) % self.classes

    def transformer_flops(self, known: int, masked: int) -> Flops:
        encoded = self.buffer + known
        encoder = 2 * known * self.head.channels * self.dim
        encoder += self.encoder_depth * block_flops(self.dim, self.mlp_ratio, encoded)
        decoder = 2 * encoded * self.dim**2
        decoder += self.decoder_depth * block_flops(self.dim, self.mlp_ratio, encoded + masked)
        return Flops({"encoder": encoder, "decoder": decoder})


def mar_spec(name: str) -> MARSpec:
    """The spec of a published size: ``mar-b``, ``mar-l`` or ``mar-h`` (256 px, 16 x 16 tokens, 1000 classes)."""
    for (dim, encoder, decoder, depth, width), known in VARIANTS.items():
        if known == name:
            head = HeadSpec(channels=16, condition_dim=dim, width=width, depth=depth)
            return MARSpec(
                name=name,
                grid=(16, 16),
                dim=dim,
                heads=HEADS_BY_WIDTH[dim],
                encoder_depth=encoder,
                decoder_depth=decoder,
                classes=1000,
                buffer=64,
                head=head,
            )
    raise GtRError(f"unknown model size '{name}': expected one of {', '.join(sorted(VARIANTS.values()))}")


@dataclass(frozen=True, eq=False)
class EmbeddedLabels:
    """MAR's memory: class embeddings (B, D), one tensor per guidance branch; rows that are all views of one row tell
    that the whole batch has one label."""

    rows: tuple[Tensor, ...]

    @property
    def branches(self) -> int:
        return len(self.rows)

    def first(self, branches: int) -> EmbeddedLabels:
        return EmbeddedLabels(self.rows[:branches])

    def images(self, rows: slice) -> EmbeddedLabels:
        return EmbeddedLabels(tuple(branch[rows] for branch in self.rows))

    def distinct(self) -> list[Tensor]:
        """Per branch its rows, or the one of which all are views."""
        return [branch[:1] if branch.stride(0) == 0 else branch for branch in self.rows]


class MAR(MaskedAutoencoder, Model):
    """The masked autoencoder with a class embedding in its buffer rows."""

    def __init__(
        self,
        spec: MARSpec,
        *,
        operations=nn,
        attention: Attention = sdpa,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        factory = {"device": device, "dtype": dtype}
        super().__init__(spec, spec.buffer + spec.tokens, operations=operations, attention=attention, **factory)
        self.spec = spec
        self.class_emb = operations.Embedding(spec.classes, spec.dim, **factory)
        self.fake_latent = empty_parameter(1, spec.dim, **factory)
        self.diffusion_pos_embed_learned = empty_parameter(1, spec.tokens, spec.dim, **factory)

    def embed_labels(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """labels (B,) int64, -1 = unconditional -> class embeddings (B, D) in ``dtype``."""
        embedded = self.class_emb(labels.clamp(min=0)).to(dtype)
        return torch.where(labels[:, None] < 0, self.fake_latent.to(embedded), embedded)

    def embed(self, conditions: Conditions, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        batch = len(conditions[0])
        null = torch.full((1,), -1)

        def one(labels: Tensor | None) -> Tensor:
            # One label for the whole batch is embedded once; it is looked for on the host, so that nothing waits.
            same = labels is None or (labels.device.type == "cpu" and bool((labels == labels[0]).all()))
            distinct = null if labels is None else labels[:1] if same else labels
            return self.embed_labels(distinct.to(device), dtype).expand(batch, -1)

        return tuple(map(one, conditions))

    def start(
        self, conditions: Conditions, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> EmbeddedLabels:
        return EmbeddedLabels(self.embed(conditions, device, dtype))

    def embed_known(self, tokens: Tensor, known: Tensor, condition: Tensor | None) -> Tensor:
        """Encoder input [buffer, known]: tokens (B, L, C), known (B, K), condition (B, D) -> (B, buffer + K, D).

        Without a condition there are no buffer rows.
        """
        x = self.z_proj(tokens.gather(1, known[..., None].expand(-1, -1, tokens.shape[-1])))
        if condition is not None:
            x = torch.cat([condition[:, None].expand(-1, self.spec.buffer, -1), x], dim=1)
        x = x + self._positions(self.encoder_pos_embed_learned, known, x, buffer=condition is not None)
        return self.z_proj_ln(x)

    def encode(self, tokens: Tensor, known: Tensor, condition: Tensor) -> Tensor:
        """tokens (B, L, C), known (B, K) positions, condition (B, D) -> (B, buffer + K, D)."""
        return self.through_encoder(self.embed_known(tokens, known, condition))

    def decode(self, encoded: Tensor, known: Tensor, masked: Tensor, rows: slice = slice(None)) -> Tensor:
        """encoded (B, buffer + K, D), masked (B, M) positions -> (B, buffer + K + M, D) after the last norm.

        Attention does not depend on the order of its rows, so the sequence is simply [buffer, known, masked]. The
        last block computes ``rows`` of it only.
        """
        return self.through_decoder(self.embed_masked(encoded, known, masked), rows)

    def embed_masked(self, encoded: Tensor, known: Tensor, masked: Tensor, *, buffer: bool = True) -> Tensor:
        """Decoder input [buffer, known, masked] of encoder output (B, buffer + K, D); without a buffer of (B, K, D)."""
        x = self.decoder_embed(encoded)
        x = torch.cat([x, self.mask_token.to(x).expand(x.shape[0], masked.shape[1], -1)], dim=1)
        positions = torch.cat([known, masked], dim=1)
        return x + self._positions(self.decoder_pos_embed_learned, positions, x, buffer=buffer)

    def encoder_rows(
        self, tokens: Tensor, known: Tensor, memory: EmbeddedLabels, grid: tuple[int, int], *, buffer: bool
    ) -> Tensor:
        branches = memory.branches
        condition = torch.cat(memory.rows) if buffer else None
        return self.embed_known(tokens.repeat(branches, 1, 1), known.repeat(branches, 1), condition)

    def decoder_rows(
        self, encoded: Tensor, known: Tensor, masked: Tensor, grid: tuple[int, int], *, buffer: bool
    ) -> Tensor:
        copies = len(encoded) // len(masked)
        return self.embed_masked(encoded, known.repeat(copies, 1), masked.repeat(copies, 1), buffer=buffer)

    def conditioning_of(
        self, decoded: Tensor, targets: Tensor, memory: EmbeddedLabels, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        branches = memory.branches
        return self._with_diffusion_positions(decoded, targets.repeat(branches, 1)).chunk(branches)

    def forward(
        self, tokens: Tensor, positions: Positions, memory: EmbeddedLabels, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        branches = memory.branches
        tokens, positions = tokens.repeat(branches, 1, 1), positions.repeat(branches)
        encoded = self.encode(tokens, positions.known, torch.cat(memory.rows))
        start = self.spec.buffer + positions.known.shape[1]
        rows = slice(start, start + positions.targets.shape[1])
        decoded = self.decode(encoded, positions.known, positions.masked, rows)
        return self._with_diffusion_positions(decoded, positions.targets).chunk(branches)

    def first_step(
        self,
        tokens: Tensor,
        masked: Tensor,
        places: Tensor,
        memory: EmbeddedLabels,
        grid: tuple[int, int],
        in_parts: InParts,
    ) -> tuple[Tensor, ...] | None:
        """Every distinct label once, at all masked positions."""
        distinct = memory.distinct()
        count = sum(map(len, distinct))
        if count == memory.branches * len(places):
            return None
        labels = EmbeddedLabels((torch.cat(distinct),))
        z = at_all_positions(self, tokens, masked, labels, count, grid, in_parts)
        return tuple(pick(branch, places) for branch in z.split([len(rows) for rows in distinct]))

    def reference(
        self, tokens: Tensor, positions: Positions, embedded: Sequence[Tensor], grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        branches, targets = len(embedded), positions.targets.shape[1]
        positions = positions.repeat(branches)
        encoded = self.encode(tokens.repeat(branches, 1, 1), positions.known, torch.cat(list(embedded)))
        decoded = self.decode(encoded, positions.known, positions.masked)
        masked = decoded[:, self.spec.buffer + positions.known.shape[1] :]
        return self._with_diffusion_positions(masked, positions.masked)[:, :targets].chunk(branches)

    def _with_diffusion_positions(self, z: Tensor, positions: Tensor) -> Tensor:
        return z + self.diffusion_pos_embed_learned[0].to(z)[positions]

    def _positions(self, table: Tensor, positions: Tensor, like: Tensor, *, buffer: bool = True) -> Tensor:
        """Rows of a position table for [buffer, positions]: (B, buffer + n, D), or without the buffer."""
        table, count = table[0].to(like), self.spec.buffer
        rows = table[count + positions]
        return torch.cat([table[:count].expand(len(positions), -1, -1), rows], dim=1) if buffer else rows


def mar_latent(shapes: Shapes, traces: Traces = Traces()) -> LatentSpec:
    """What the latents of a file are that does not say so: shapes do not tell KL-16's from others.

    Raises GtRError where they cannot be KL-16's nor l-DeTok's.
    """
    values = shape_of(shapes, "diffloss.net.input_proj.weight", 2)[1]
    tokens = shape_of(shapes, "diffusion_pos_embed_learned", 3)[1]
    if (tokens, values) == MAETOK:
        raise GtRError(
            f"{tokens} tokens of {values} values: a MAR on the latents of MAETok, which lie in one row and make no "
            "grid; it is not supported, choose a MAR on KL-16 or l-DeTok"
        )
    ours = {f"encoder_blocks.0.{name}": name for name in DETOK_ORDER}
    order = tuple(ours[name] for name in shapes if name in ours)
    found = {name: traces.arguments.get(name, usual) for name, usual in LATENT_ARGUMENTS.items()}
    if found != LATENT_ARGUMENTS:
        channels, stride, patch = found.values()
        raise GtRError(
            f"trained on latents of {channels} channels at 1/{stride} size in patches of {patch} x {patch}, which are "
            "not KL-16's: convert the file with --latent SCALE or SCALE,SHIFT, as its training scaled them (0.18215 is "
            "usual for Stable Diffusion's VAE)"
        )
    if values != LatentSpec.channels:
        raise GtRError(
            f"tokens have {values} values, where KL-16's have {LatentSpec.channels}, and the file does not say what "
            "they stand for: convert it with --latent normalised and its VAE with --stats FILE (mean and deviation per "
            "channel), or with --latent SCALE"
        )
    if order == DETOK_ORDER or traces.saver == DETOK_SAVER:
        return LatentSpec(scale=1.0, kind=DETOK, assumed=ASSUMED_DETOK)
    said = all(name in traces.arguments for name in LATENT_ARGUMENTS)
    return LatentSpec(assumed="" if said else ASSUMED_KL16)


def infer_mar_spec(shapes: Shapes, *, heads: int | None = None, **overrides) -> MARSpec:
    """Read a :class:`MARSpec` off tensor names and shapes (docs/upstream.md 1.1).

    ``heads`` must be given for widths other than 768, 1024 and 1280. ``overrides`` replace inferred fields.
    Raises GtRError naming the tensor that does not fit.
    """
    if not MAR_FAMILY.matches(shapes):
        raise GtRError(
            f"not a MAR checkpoint: expected tensors such as 'class_emb.weight' and "
            f"'diffloss.net.input_proj.weight', found {describe_names(shapes)}; choose a MAR file"
        )
    classes, dim = shape_of(shapes, "class_emb.weight", 2)
    heads = head_count(dim, heads)
    tokens = shape_of(shapes, "diffusion_pos_embed_learned", 3)[1]
    buffer = shape_of(shapes, "encoder_pos_embed_learned", 3)[1] - tokens
    head = infer_head_spec(shapes, dim)
    side = math.isqrt(tokens)
    if buffer < 1:
        raise GtRError(
            f"the encoder's position table leaves {buffer} buffer tokens for {tokens} tokens: "
            "expected at least 1; the file is not a MAR checkpoint"
        )
    if "grid" not in overrides and side * side != tokens:
        raise GtRError(f"{tokens} tokens are not a square grid: convert the file with --grid ROWSxCOLUMNS")
    encoder, decoder = count_blocks(shapes, "encoder_blocks"), count_blocks(shapes, "decoder_blocks")
    latent = overrides.pop("latent", None) or mar_latent(shapes)
    check_latent(latent, head)
    spec = MARSpec(
        name=VARIANTS.get((dim, encoder, decoder, head.depth, head.width), f"mar-{dim}x{encoder}+{decoder}"),
        grid=(side, side),
        dim=dim,
        heads=heads,
        encoder_depth=encoder,
        decoder_depth=decoder,
        classes=classes,
        buffer=buffer,
        latent=latent,
        head=head,
    )
    check_depths(spec, stated=overrides.pop("depths", None))
    spec = replace(spec, **overrides)
    if len(spec.class_names) not in (0, classes):
        raise GtRError(
            f"{len(spec.class_names)} class names for {classes} classes: convert the file with --class-names FILE, "
            "one name per class"
        )
    if spec.tokens != tokens:
        raise GtRError(
            f"a grid of {spec.grid[0]} x {spec.grid[1]} needs {spec.tokens} positions, found {tokens}: "
            "convert the file with the right --grid ROWSxCOLUMNS"
        )
    return spec


MAR_FAMILY = Family(
    spec=MARSpec,
    model=MAR,
    anchors=ANCHORS,
    infer=infer_mar_spec,
    latent_of=mar_latent,
    published={name: mar_spec(name) for name in VARIANTS.values()},
)
