"""ReCAP: cheap local AR steps between full ones (arXiv 2505.19089).

A full step evaluates everything and keeps keys and values of every block. The local steps after it compute only the
tokens that were decoded since, and those that their group decodes; all other rows keep the keys and values of the full
step. A local step depends on what the full step kept and on the values decoded since, on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..device import upload
from ..diffusion.chain import Chains, OnStep
from ..errors import GtRError
from ..models.layers import Block, block_flops
from ..models.model import Memory, Positions
from ..models.spec import Flops, ModelSpec
from ..plans.plan import Plan, Step
from .evaluator import DirectEvaluator, Run, joined

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ReCAP:
    """Settings. The first ``start_step`` AR steps are full, then ``local_steps`` local ones follow every full one.

    ``keep_buffer`` keeps the buffer rows' keys and values as well; off, every local step computes the buffer again: a
    little more exact, several times as expensive (the original code's scripts do that). A step is full all the same
    where guidance begins inside a group, where it is a revision, and where the stage changes if the decoder sees the
    present stage only.
    """

    accelerated: ClassVar[bool] = True
    own_head: ClassVar[bool] = False

    start_step: int = 4
    local_steps: int = 1
    keep_buffer: bool = True

    def __post_init__(self) -> None:
        if self.start_step < 0 or self.local_steps < 0:
            raise GtRError(f"ReCAP start {self.start_step}, local steps {self.local_steps}: expected 0 or more of each")

    def groups(self, plan: Plan) -> list[list[Step]]:
        """The plan's steps as groups of a full step and its local ones."""
        groups: list[list[Step]] = []
        for step in plan.steps:
            if groups and self._is_local(plan, groups[-1], step):
                groups[-1].append(step)
            else:
                groups.append([step])
        return groups

    def _is_local(self, plan: Plan, group: list[Step], step: Step) -> bool:
        """Whether a step can use what the full step of the ``group`` before it kept."""
        full = group[0]
        if step.revision or full.index < self.start_step:
            return False
        if len(group) > self.local_steps or step.branches > full.branches:
            return False
        return plan.schedule.decoder_scope == "full" or step.stage == full.stage

    def start(self, run: Run) -> ReCAPEvaluator:
        """The state of one run. Raises GtRError for a model without what it takes."""
        spec = run.model.spec
        if not spec.supports_recap:
            raise GtRError(f"ReCAP does not work with {spec.name}: disconnect the cache")
        groups = {}
        for steps in self.groups(run.plan):
            group = Group.of(steps, spec.buffer, keep_buffer=self.keep_buffer, device=run.runtime.device)
            groups |= {step.index: group for step in steps}
        return ReCAPEvaluator(self, run, DirectEvaluator.start(run), groups)

    def flops(self, plan: Plan, step: Step, spec: ModelSpec) -> Flops | None:
        """Of a local step: the rows that it computes, attending to all; cross-attention at its group's tokens."""
        group = next(group for group in self.groups(plan) if step in group)
        full = group[0]
        if step is full:
            return None
        decoded = sum(earlier.tokens for earlier in group[: group.index(step)])
        tokens = sum(each.tokens for each in group)
        block = partial(block_flops, spec.dim, spec.mlp_ratio)
        known, buffer = full.known.shape[1], 0 if self.keep_buffer else spec.buffer
        rows, keys = buffer + decoded, spec.buffer + known + decoded
        encoder = 2 * decoded * spec.head.channels * spec.dim + spec.encoder_depth * block(rows, keys, rows)
        decoder = 2 * rows * spec.dim**2 + spec.read_flops(tokens)
        rows, keys = buffer + tokens, spec.buffer + known + full.masked
        decoder += spec.decoder_depth * block(rows, keys, rows)
        evaluations = sum(each.tokens * len(plan.chain(each, spec.diffusion)) for each in step.groups)
        return Flops({"encoder": encoder, "decoder": decoder, "head": evaluations * spec.head.flops}) * step.branches

    def kept_bytes(self, plan: Plan, spec: ModelSpec, itemsize: int) -> int:
        """Keys and values of the largest group that has local steps."""
        buffer, most = spec.buffer if self.keep_buffer else 0, 0
        for group in self.groups(plan):
            if len(group) > 1:
                full, tokens = group[0], sum(step.tokens for step in group)
                known = buffer + full.known.shape[1]
                rows = spec.encoder_depth * known + spec.decoder_depth * (known + full.masked - tokens)
                most = max(most, full.branches * rows)
        return 2 * plan.batch * most * spec.dim * itemsize

    def summary(self, plan: Plan, spec: ModelSpec) -> str:
        """How many steps are local, and what they save of the transformer's FLOPs."""
        groups = self.groups(plan)
        local = [step for group in groups for step in group[1:]]
        full = sum(_transformer(spec.transformer_flops(s.known.shape[1], s.masked) * s.branches) for s in plan.steps)
        saved = sum(
            _transformer(spec.transformer_flops(step.known.shape[1], step.masked) * step.branches)
            - _transformer(self.flops(plan, step, spec))
            for step in local
        )
        share = saved / full if full else 0.0
        return (
            f"ReCAP: {len(groups)} full and {len(local)} local AR steps, {share:.0%} of the transformer's FLOPs saved"
        )


def _transformer(flops: Flops) -> int:
    return flops.total - flops.parts.get("head", 0)


@dataclass(frozen=True, eq=False)
class Group:
    """A full step and its local ones, with the index tables that they need on the device.

    ``kept_rows`` (B, n) are the decoder rows [buffer, known, targets, context] of the full step whose keys and values
    stay: all but those of the group's own tokens. ``decoded`` (B, d) and ``masked`` (B, g - d) are per local step the
    group's positions decoded before it, and its targets followed by those of later steps.
    """

    steps: list[Step]
    kept_rows: Tensor | None = None
    decoded: list[Tensor] = field(default_factory=list)
    masked: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, steps: list[Step], buffer: int, *, keep_buffer: bool, device: torch.device | str) -> Group:
        if len(steps) == 1:
            return cls(steps)
        full = steps[0]
        batch, known = full.known.shape
        own = np.concatenate([step.targets for step in steps], axis=1)
        visible = np.concatenate([full.targets, full.context], axis=1)
        foreign = np.stack([~np.isin(row, mine) for row, mine in zip(visible, own)])
        places = np.nonzero(foreign)[1].reshape(batch, -1) + buffer + known
        front = np.arange(0 if keep_buffer else buffer, buffer + known)
        rows = np.concatenate([np.broadcast_to(front, (batch, len(front))), places], axis=1)

        def table(parts: list[np.ndarray]) -> Tensor:
            return upload(torch.from_numpy(np.concatenate(parts, axis=1)), device)

        local = range(1, len(steps))
        return cls(
            steps,
            upload(torch.from_numpy(rows), device),
            [table([step.targets for step in steps[:j]]) for j in local],
            [table([step.targets for step in steps[j:]]) for j in local],
        )


@dataclass(frozen=True, eq=False)
class Kept:
    """What a full step leaves to its local ones, for some ``images`` of the batch: keys and values
    (copies * B, heads, rows, head_dim) of every block of encoder and decoder."""

    images: slice
    encoder: list[KeysAndValues]
    decoder: list[KeysAndValues]


@dataclass(eq=False)
class ReCAPEvaluator:
    """State of one run: what the last full step kept, per part of the batch that goes through the model at once."""

    settings: ReCAP
    run: Run
    direct: DirectEvaluator
    groups: dict[int, Group]
    kept: list[Kept] = field(default_factory=list)

    def conditioning(self, step: Step, tokens: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        group = self.groups[step.index]
        memory = self.direct.memory.first(step.branches)
        if step is not group.steps[0]:
            return joined([self._local(group, step, tokens, kept, memory) for kept in self.kept])
        self.kept = []
        if len(group.steps) == 1:
            return self.direct.conditioning(step, tokens, positions)
        return self.direct.in_parts(
            len(tokens),
            positions.count,
            step.branches,
            lambda images: self._full(group, tokens, positions, memory, images),
        )

    def diffuse(self, step: Step, z: tuple[Tensor, ...], chains: Chains, on_step: OnStep) -> Tensor:
        return self.direct.diffuse(step, z, chains, on_step)

    def _full(
        self, group: Group, tokens: Tensor, positions: Positions, memory: Memory, images: slice
    ) -> tuple[Tensor, ...]:
        """A full step of some images; keys and values are kept for its local steps."""
        model, grid, buffer = self.run.model, self.run.plan.grid, self.run.model.spec.buffer
        memory, positions = memory.images(images), positions.images(images)
        x = model.encoder_rows(tokens[images], positions.known, memory, grid, buffer=True)
        encoder, decoder = [], []
        first = 0 if self.settings.keep_buffer else buffer
        for block in model.encoder_blocks:
            q, k, v = block.project(x)
            encoder.append((k[:, :, first:], v[:, :, first:]))
            if x.shape[1]:  # LightGen has no buffer: before its first token there is nothing to attend to
                x = block.feed_forward(x + block.attn.attend(q, k, v))
        x = model.decoder_rows(model.encoder_norm(x), positions.known, positions.masked, grid, buffer=True)
        start = buffer + positions.known.shape[1]
        targets = slice(start, start + positions.targets.shape[1])
        rows = group.kept_rows[images].repeat(len(x) // len(positions.targets), 1)
        for block in model.decoder_blocks:
            queries = targets if block is model.decoder_blocks[-1] else slice(None)
            q, k, v = block.project(x)
            decoder.append((_rows(k, rows), _rows(v, rows)))
            x = block.feed_forward(x[:, queries] + block.attn.attend(q[:, :, queries], k, v))
        self.kept.append(Kept(images, encoder, decoder))
        return model.conditioning_of(model.decoder_norm(x), positions.targets, memory, grid)

    def _local(self, group: Group, step: Step, tokens: Tensor, kept: Kept, memory: Memory) -> tuple[Tensor, ...]:
        """A local step of some images: the tokens decoded since the full step, and all that the group decodes."""
        model, grid, images = self.run.model, self.run.plan.grid, kept.images
        again = not self.settings.keep_buffer
        j = group.steps.index(step) - 1
        decoded, masked, memory = group.decoded[j][images], group.masked[j][images], memory.images(images)
        x = model.encoder_rows(tokens[images], decoded, memory, grid, buffer=again)
        for block, cache in zip(model.encoder_blocks, kept.encoder):
            x = _beside(block, x, cache)
        x = model.decoder_rows(model.encoder_norm(x), decoded, masked, grid, buffer=again)
        start = x.shape[1] - masked.shape[1]
        targets = slice(start, start + step.tokens)
        for block, cache in zip(model.decoder_blocks, kept.decoder):
            queries = targets if block is model.decoder_blocks[-1] else slice(None)
            x = _beside(block, x, cache, queries)
        return model.conditioning_of(model.decoder_norm(x), masked[:, : step.tokens], memory, grid)


def _beside(block: Block, x: Tensor, cache: KeysAndValues, queries: slice = slice(None)) -> Tensor:
    """A block for the rows x (B, n, D), or their ``queries``, which attend to the kept rows and to each other."""
    q, k, v = block.project(x)
    k, v = (torch.cat([old, new], dim=2) for old, new in zip(cache, (k, v)))
    return block.feed_forward(x[:, queries] + block.attn.attend(q[:, :, queries], k, v))


def _rows(t: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, n) of t (B, heads, m, head_dim)."""
    return t.gather(2, rows[:, None, :, None].expand(-1, t.shape[1], -1, t.shape[3]))
