"""What a model does for a run: it remembers the conditions once, then evaluates AR steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..diffusion.head import DiffusionHead
from .prompts import Condition
from .spec import ModelSpec

Conditions = Sequence[Condition | None]
# (images, tokens of each, guidance branches, evaluate) -> z per branch, of as many images at a time as pay.
InParts = Callable[[int, int, int, Callable[[slice], tuple[Tensor, ...]]], tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class Positions:
    """Raster positions k = row * width + column of one AR step, int64: ``known`` (B, K) hold values, ``targets`` (B, T)
    are decoded now, ``context`` (B, M) are the other masked positions that the decoder sees. K and M may be 0."""

    known: Tensor
    targets: Tensor
    context: Tensor

    @property
    def masked(self) -> Tensor:
        """Targets, then context: (B, T + M)."""
        return torch.cat([self.targets, self.context], dim=1)

    @property
    def count(self) -> int:
        """Positions that an evaluation sees."""
        return self.known.shape[1] + self.targets.shape[1] + self.context.shape[1]

    def images(self, rows: slice) -> Positions:
        """Those of some images of the batch."""
        return Positions(self.known[rows], self.targets[rows], self.context[rows])

    def repeat(self, branches: int) -> Positions:
        """The batch once per guidance branch."""
        return Positions(*(t.repeat(branches, 1) for t in (self.known, self.targets, self.context)))


class Memory(Protocol):
    """What :meth:`Model.start` makes of a run's conditions: all that does not change between AR steps."""

    @property
    def branches(self) -> int:
        """Guidance branches: 1, or 2 with the unconditional one second."""

    def first(self, branches: int) -> Memory:
        """The first branches only."""

    def images(self, rows: slice) -> Memory:
        """Of some images of the batch."""


class Model(nn.Module):
    """Base of every family's model. Parameter names are those of the published checkpoints.

    Constructors take ``operations`` (a namespace with Linear, LayerNorm, RMSNorm, Embedding), ``attention``,
    ``device`` and ``dtype``, and initialise nothing of their own. The head is float32 whatever ``dtype`` the
    transformer has: the first reverse step amplifies errors of eps 316 times and more (docs/upstream.md 1.7).
    """

    spec: ModelSpec
    diffloss: nn.ModuleDict

    @property
    def head(self) -> DiffusionHead:
        return self.diffloss["net"]

    def with_head(self, head: DiffusionHead) -> Model:
        """The same model with another head; all else is shared."""
        twin = copy.copy(self)
        twin._modules = self._modules | {"diffloss": nn.ModuleDict({"net": head})}
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """The transformer's."""
        inside_head = {id(parameter) for parameter in self.head.parameters()}
        return next(parameter.dtype for parameter in self.parameters() if id(parameter) not in inside_head)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def embed(self, conditions: Conditions, device: torch.device | str, dtype: torch.dtype) -> tuple[Any, ...]:
        """The conditions (B, ...), one per guidance branch, embedded in ``dtype`` as :meth:`reference` takes them; None
        is the learned null one."""
        raise NotImplementedError

    def start(
        self, conditions: Conditions, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Memory:
        """What a run remembers of its conditions, computed once."""
        raise NotImplementedError

    def forward(
        self, tokens: Tensor, positions: Positions, memory: Memory, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Conditioning vectors z (B, T, D) of the targets, one tensor per guidance branch.

        ``tokens`` (B, L, C) holds values at the known positions; the others are not read.
        """
        raise NotImplementedError

    def first_step(
        self, tokens: Tensor, masked: Tensor, places: Tensor, memory: Memory, grid: tuple[int, int], in_parts: InParts
    ) -> tuple[Tensor, ...] | None:
        """:meth:`forward` before anything is known: images of a batch then share what does not depend on them.

        All have the positions ``masked`` (1, M); ``places`` (B, T) are the targets' among them. None where nothing
        would be saved.
        """
        return None

    # What a cache needs that goes through the blocks itself; ``encoder_blocks``, ``encoder_norm``, ``decoder_blocks``
    # and ``decoder_norm`` lie between these three.

    def encoder_rows(
        self, tokens: Tensor, known: Tensor, memory: Memory, grid: tuple[int, int], *, buffer: bool
    ) -> Tensor:
        """Encoder input of the positions ``known`` (B, n), after the ``buffer`` rows if asked for: (copies * B, n, D).

        There is a copy per guidance branch where the encoder sees the condition, else one.
        """
        raise NotImplementedError

    def decoder_rows(
        self, encoded: Tensor, known: Tensor, masked: Tensor, grid: tuple[int, int], *, buffer: bool
    ) -> Tensor:
        """Decoder input [buffer, known, masked] of encoder output, with buffer rows if that has them."""
        raise NotImplementedError

    def conditioning_of(
        self, decoded: Tensor, targets: Tensor, memory: Memory, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """z (B, T, D) per guidance branch of decoder output (copies * B, T, D) at the targets (B, T)."""
        raise NotImplementedError

    def reference(
        self, tokens: Tensor, positions: Positions, embedded: Sequence[Any], grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """The same numbers as :meth:`forward`, computed as the original code does: every block at every position,
        nothing remembered and nothing shared. ``embedded`` comes from :meth:`embed`."""
        raise NotImplementedError


def at_all_positions(
    model: Model, tokens: Tensor, masked: Tensor, memory: Memory, count: int, grid: tuple[int, int], in_parts: InParts
) -> Tensor:
    """z (count, M, D) before anything is known of ``count`` images of one guidance branch, at all positions ``masked``
    (1, M): what :meth:`Model.first_step` computes once for images that share their condition."""
    nothing = masked[:, :0].expand(count, -1)
    everything = Positions(nothing, masked.expand(count, -1), nothing)
    tokens = tokens[:1].expand(count, -1, -1)
    (z,) = in_parts(
        count, everything.count, 1, lambda rows: model(tokens[rows], everything.images(rows), memory.images(rows), grid)
    )
    return z


def pick(values: Tensor, places: Tensor) -> Tensor:
    """Rows ``places`` (B, T) of values (B or 1, M, D): (B, T, D)."""
    return values.expand(len(places), -1, -1).gather(1, places[..., None].expand(-1, -1, values.shape[-1]))
