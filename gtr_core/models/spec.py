"""What a family of models registers, and what its specs answer: no other file asks which family it has before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..diffusion.chain import DiffusionSpec
from ..diffusion.head import HeadSpec
from ..errors import GtRError
from .latents import LatentSpec
from .prompts import Condition
from .shapes import Shapes


@dataclass(frozen=True)
class Flops:
    """Floating point operations by part of the model: encoder, decoder, head, and what else a family has."""

    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __add__(self, other: Flops) -> Flops:
        return Flops({part: self.parts.get(part, 0) + other.parts.get(part, 0) for part in self.parts | other.parts})

    def __mul__(self, times: int) -> Flops:
        return Flops({part: times * count for part, count in self.parts.items()})

    def tera(self) -> dict[str, float]:
        """TFLOPs per part and in total."""
        return {part: count / 1e12 for part, count in (self.parts | {"total": self.total}).items()}


@dataclass(frozen=True)
class Traces:
    """What a file tells beside its tensors: whose training code saved it, and numbers among its arguments."""

    saver: str = ""
    arguments: Mapping[str, int] = field(default_factory=dict)


class ModelSpec:
    """A frozen description of a model, which answers what the rest of the library has to know about it.

    Families derive a frozen dataclass from it, in their own file.
    """

    family: ClassVar[str]
    """The family's name, as in FAMILIES and for people."""
    origin: ClassVar[str]
    """The preset that a model's speed is compared with: what the original code does by default."""
    condition: ClassVar[str]
    """What the model is conditioned on: 'label' (int64, -1 = none), 'text' (states of a text encoder) or 'prompt' (ids
    of its tokens, int64, -1 = no more)."""
    supports_lazymar: ClassVar[bool] = False
    supports_recap: ClassVar[bool] = False
    stored: ClassVar[tuple[str, ...]] = ("name", "grid", "heads", "latent", "diffusion", "norm_eps")
    """Fields that shapes do not tell: they travel in a file's metadata."""

    name: str
    grid: tuple[int, int]  # the usual one
    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    head: HeadSpec
    latent: LatentSpec
    diffusion: DiffusionSpec
    buffer: int
    mlp_ratio: int
    classes: int  # 0 where there are none
    text_length: int  # of what is conditioned on text: its positions,
    caption_dim: int  # and the values of each

    @property
    def tokens(self) -> int:
        """Tokens of the usual grid."""
        return self.grid[0] * self.grid[1]

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of blocks, of all kinds that a family has: encoder, decoder, head, ..."""
        return self.encoder_depth, self.decoder_depth, self.head.depth

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was assumed because the file does not say it, for `info` and reports."""
        return (self.latent.assumed,) if self.latent.assumed else ()

    @property
    def raw_weights(self) -> str | None:
        """What a training checkpoint's raw weights give instead of its averaged ones; None where that is no loss."""
        return "worse images"

    def can_draw(self, grid: tuple[int, int]) -> bool:
        """Whether the model decodes a grid at once."""
        raise NotImplementedError

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raises GtRError for a grid that the model cannot draw at once."""
        raise NotImplementedError

    def check_condition(self, condition: Condition) -> None:
        """Raises GtRError for a condition that the model does not know; meta tensors pass."""
        raise NotImplementedError

    def random_condition(self, batch: int) -> Tensor:
        """Conditions for a benchmark."""
        raise NotImplementedError

    def encode_prompts(self, prompts: Sequence[str], tokenize: Callable[[str], Sequence[int]]) -> Tensor:
        """The condition (prompts, ids) int64 of texts, for a model that is conditioned on prompts.

        ``tokenize`` makes ids of a text. Raises GtRError for a prompt that is too long.
        """
        raise NotImplementedError

    def length_note(self, condition: Tensor) -> str | None:
        """One line where a prompt is longer than those that the model was trained with."""
        raise NotImplementedError

    def encode_edits(self, instructions: Sequence[str], tokenize: Callable[[str], Sequence[int]]) -> Tensor:
        """The same of instructions to change a picture, for an ``EditCondition``."""
        raise NotImplementedError

    def transformer_flops(self, known: int, masked: int) -> Flops:
        """FLOPs of one evaluation for one image and one guidance branch, ``masked`` counting targets and context."""
        raise NotImplementedError

    def read_flops(self, tokens: int) -> int:
        """What of :meth:`transformer_flops` comes after the decoder, for so many positions."""
        return 0

    def condition_bytes(self, itemsize: int) -> int:
        """Bytes that a run keeps of the condition of one image and one guidance branch."""
        return self.dim * itemsize

    def reader_bytes(self, known: int, itemsize: int) -> int:
        """Bytes of activations in layers that are no blocks of the transformer, of one image in one guidance branch."""
        return 0


@dataclass(frozen=True)
class Family:
    """One entry of FAMILIES: how the family's files are recognised and read, and what runs them.

    ``anchors`` are names that together only this family's state dicts have: they recognise one, and find it behind
    whatever a training script put before its names. ``infer(shapes, heads=None, **stored)`` reads the spec off it,
    completed by what the file's metadata stores, and raises GtRError. ``published`` are specs that people name.
    ``weights`` says which of a training checkpoint's weights the original code samples with: ``ema`` or ``model``.
    ``latent_of(shapes, traces)`` says what the latents are where the metadata does not; families whose latents are
    always the same have none. ``parts`` are prefixes of what alone looks like another family's model, ``unused``
    matches the names of what files hold beside the model: it is not loaded.
    """

    spec: type[ModelSpec]
    model: type
    anchors: tuple[str, ...]
    infer: Callable[..., ModelSpec]
    published: Mapping[str, ModelSpec] = field(default_factory=dict)
    weights: str = "ema"
    latent_of: Callable[[Shapes, Traces], LatentSpec] | None = None
    parts: tuple[str, ...] = ()
    unused: str | None = None
    parsers: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """How metadata fields of this family alone are read; they raise ValueError."""

    @property
    def name(self) -> str:
        return self.spec.family

    def matches(self, shapes: Shapes) -> bool:
        """Whether names belong to a state dict of this family."""
        return all(anchor in shapes for anchor in self.anchors)


def check_depths(spec: ModelSpec, stated: tuple[int, ...] | None) -> None:
    """A file that lost its last blocks still looks like a model, of fewer blocks. Raises GtRError.

    Compares with the depths stored in the metadata.
    """
    if min(spec.depths) < 1 or (stated is not None and spec.depths != tuple(stated)):
        raise GtRError(
            f"{spec.depths} blocks (encoder, decoder, head, ...), expected "
            f"{tuple(stated) if stated else 'at least 1 each'}: blocks are missing; the file is incomplete"
        )


def uneven_depths(spec: ModelSpec) -> tuple[str, ...]:
    """What was assumed of a file whose encoder and decoder differ in depth, which no published model's do."""
    if spec.encoder_depth == spec.decoder_depth:
        return ()
    return (
        f"{spec.encoder_depth} encoder and {spec.decoder_depth} decoder blocks, taken for a pruned model: if it is not "
        "one, blocks are missing",
    )


def check_finite(condition: Tensor, what: str) -> None:
    """Raises GtRError naming the first row of a condition (B, ...) that holds NaN or infinite values."""
    if condition.is_meta:
        return
    rows = torch.isfinite(condition).flatten(1).all(1)
    if not rows.all():
        row = int((~rows).nonzero()[0, 0])
        raise GtRError(
            f"{what} {row} of {len(rows)} holds NaN or infinite values, as text encoders in float16 give: encode it in "
            "bfloat16 or float32"
        )
