"""LazyMAR: caches for guided MAR runs (arXiv 2503.12450; docs/upstream.md 4).

Token cache: in lazy AR steps only new and changing tokens are computed, the others keep old keys and values.
Condition cache: the unconditional branch is the conditional one plus the difference stored at the last fresh step.
Head cache: between key diffusion steps the middle blocks' contributions are reused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..diffusion.chain import Chains, OnStep, denoise_in_turn
from ..diffusion.head import DiffusionHead, HeadSpec
from ..errors import GtRError
from ..models.layers import Block, block_flops
from ..models.mar import EmbeddedLabels
from ..models.model import Model, Positions
from ..models.spec import Flops, ModelSpec
from ..plans.plan import Plan, Step
from .evaluator import Run

# Head blocks whose contributions are reused whole between key diffusion steps.
MIDDLE = range(1, 5)

# Share of the decoder's tokens that lazy step k of 64 computes: 1 up to step 19, then falling.
KEEP = [1.0] * 20 + [0.6] + [0.5] * 4 + [0.4] * 5 + [0.15] * 5 + [0.12] * 5 + [0.05] * 24


@dataclass(frozen=True)
class LazyMAR:
    """Settings; the defaults are upstream's. Fresh are the first ``start_step`` AR steps and every ``period``-th after.

    ``prune_block`` is the decoder block whose values decide which tokens go on, ``extra`` tokens more than needed are
    kept, and key diffusion steps are ``head_period`` apart. Runs of other than 64 AR steps take the shares of the
    corresponding one of 64.
    """

    accelerated: ClassVar[bool] = True
    own_head: ClassVar[bool] = True

    start_step: int = 5
    period: int = 9
    prune_block: int = 3
    extra: int = 15
    head_period: int = 7

    def __post_init__(self) -> None:
        if min(self.start_step, self.period, self.head_period) < 1 or min(self.prune_block, self.extra) < 0:
            raise GtRError(
                f"LazyMAR settings {self}: expected start, period and head period of at least 1, the others "
                "not negative"
            )

    def fresh(self, step: Step) -> bool:
        """Whether an AR step computes everything; a revision does, because tokens that were known are no longer."""
        return step.revision or step.index < self.start_step or (step.index - self.start_step) % self.period == 0

    def kept(self, index: int, steps: int, sequence: int, needed: int) -> int:
        """How many of ``sequence`` decoder tokens lazy step ``index`` of ``steps``, a revision not counted, computes to
        the end."""
        return min(sequence, max(needed + self.extra, int(sequence * KEEP[index * len(KEEP) // steps])))

    def pruning_block(self, depth: int) -> int:
        """``prune_block``, or the last of ``depth`` decoder blocks where there are fewer."""
        return min(self.prune_block, depth - 1)

    def start(self, run: Run) -> LazyEvaluator:
        """The state of one run. Raises GtRError where the method does not apply."""
        spec, guidance, schedule = run.model.spec, run.plan.method.guidance, run.plan.schedule
        if not spec.supports_lazymar:
            raise GtRError(f"LazyMAR works with MAR models, found {spec.name}: disconnect the cache")
        if not guidance.enabled:
            raise GtRError("LazyMAR needs guidance, found a scale of 1: raise cfg or disconnect the cache")
        if guidance.start:
            raise GtRError("LazyMAR needs guidance from the first step on: set its start to 0 or disconnect the cache")
        if schedule.decoder_scope != "full":
            raise GtRError(
                f"LazyMAR needs the full decoder scope, {schedule.name} has '{schedule.decoder_scope}': use gtr-full "
                "or origin, or disconnect the cache"
            )
        settings = replace(self, prune_block=self.pruning_block(spec.decoder_depth))
        memory = run.model.start(run.conditions, run.runtime.device, run.runtime.dtype)
        return LazyEvaluator(settings, run.model, run.plan, memory)

    def flops(self, plan: Plan, step: Step, spec: ModelSpec) -> Flops:
        """FLOPs of one AR step of a guided plan, for one image."""
        head = sum(
            group.tokens * self._head_flops(spec.head, len(plan.chain(group, spec.diffusion))) for group in step.groups
        )
        if self.fresh(step) or step.index == 0:
            transformer = spec.transformer_flops(step.known.shape[1], step.masked) * 2
            return transformer + Flops({"head": head})
        previous, sequence = plan.steps[step.index - 1].tokens, spec.buffer + plan.tokens
        new, known = spec.buffer + previous, spec.buffer + step.known.shape[1]
        kept = self.kept(step.index, plan.first_steps, sequence, step.tokens + previous)
        block = partial(block_flops, spec.dim, spec.mlp_ratio)
        encoder = 2 * previous * spec.head.channels * spec.dim + spec.encoder_depth * block(new, known, new)
        prune = self.pruning_block(spec.decoder_depth)
        decoder = 2 * new * spec.dim**2 + prune * block(sequence) + block(sequence, sequence, kept)
        decoder += (spec.decoder_depth - prune - 1) * block(kept, sequence, kept)
        return Flops({"encoder": encoder, "decoder": decoder, "head": head})

    def _head_flops(self, head: HeadSpec, steps: int) -> int:
        """One token through a whole chain: both branches at key steps, else one, in part."""
        square, total = head.width**2, 0
        outer = sum(block not in MIDDLE for block in range(head.depth))
        for i in range(steps):
            if i == steps - 1 or i % self.head_period == 0:
                total += 2 * head.flops
            else:
                skipped = 5 * (head.depth - outer) + (0 if i > 0.9 * steps else 2 * outer)
                total += head.flops - 2 * skipped * square
        return total

    def kept_bytes(self, plan: Plan, spec: ModelSpec, itemsize: int) -> int:
        """Keys and values of the conditional branch, of every block and position."""
        blocks, positions = spec.encoder_depth + spec.decoder_depth, spec.buffer + plan.tokens
        return 2 * plan.batch * blocks * positions * spec.dim * itemsize

    def summary(self, plan: Plan, spec: ModelSpec) -> str:
        fresh = sum(map(self.fresh, plan.steps))
        return f"LazyMAR: {fresh} of {len(plan.steps)} AR steps computed in full"


@dataclass(eq=False)
class LazyEvaluator:
    """State of one run. Key and value caches are (batch, heads, positions, head_dim), one pair per block."""

    settings: LazyMAR
    model: Model
    plan: Plan
    memory: EmbeddedLabels
    encoder: list[list[Tensor]] = field(default_factory=list)
    decoder: list[list[Tensor]] = field(default_factory=list)
    sequence: Tensor | None = None  # decoder input (B, buffer + L, D) of the last step, conditional branch
    difference: Tensor | None = None  # unconditional minus conditional decoder output of the last fresh step
    previous: Tensor | None = None  # positions that the last step decoded
    kept: Tensor | None = None  # sequence positions that the last lazy step computed to the end

    def conditioning(self, step: Step, tokens: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        if self.settings.fresh(step) or self.previous is None:
            out = self._fresh(tokens, positions.known)
        else:
            out = self._lazy(step.index, tokens, positions.targets)
        self.previous = positions.targets
        return tuple(self._read(branch, positions.targets) for branch in (out, out + self.difference))

    def diffuse(self, step: Step, z: tuple[Tensor, ...], chains: Chains, on_step: OnStep) -> Tensor:
        period = self.settings.head_period
        return denoise_in_turn(
            lambda rows, steps: LazyHead(self.model.head, rows, step.scale, steps, period), z, chains, on_step
        )

    def _read(self, out: Tensor, targets: Tensor) -> Tensor:
        """Last norm and diffusion positions for the targets: (B, T, D)."""
        rows = (targets + self.model.spec.buffer)[..., None].expand(-1, -1, out.shape[-1])
        z = self.model.decoder_norm(out.gather(1, rows))
        return z + self.model.diffusion_pos_embed_learned[0].to(z)[targets]

    def _fresh(self, tokens: Tensor, known: Tensor) -> Tensor:
        """Everything for both branches; keys and values of the conditional branch are kept."""
        model, batch = self.model, tokens.shape[0]
        both = torch.cat(self.memory.rows)
        x = model.embed_known(tokens.repeat(2, 1, 1), known.repeat(2, 1), both)
        self.encoder = []
        for block in model.encoder_blocks:
            x, k, v = full_block(block, x)
            self.encoder.append([k[:batch], v[:batch]])
        encoded = model.encoder_norm(x)
        x = self._decoder_input(encoded, known.repeat(2, 1))
        self.sequence, self.decoder = x[:batch], []
        for block in model.decoder_blocks:
            x, k, v = full_block(block, x)
            self.decoder.append([k[:batch], v[:batch]])
        out, uncond = x.chunk(2)
        self.difference = uncond - out
        return out

    def _decoder_input(self, encoded: Tensor, known: Tensor) -> Tensor:
        """Encoder output at its places among mask tokens, with positions: (B, buffer + L, D)."""
        model = self.model
        x = model.decoder_embed(encoded)
        length = model.spec.buffer + model.spec.tokens
        sequence = model.mask_token.to(x).expand(x.shape[0], length, -1)
        sequence = sequence.scatter(1, self._places(known)[..., None].expand_as(x), x)
        return sequence + model.decoder_pos_embed_learned.to(x)

    def _places(self, positions: Tensor) -> Tensor:
        """Sequence indices of [buffer, positions]."""
        buffer = torch.arange(self.model.spec.buffer, device=positions.device).expand(positions.shape[0], -1)
        return torch.cat([buffer, positions + self.model.spec.buffer], dim=1)

    def _lazy(self, index: int, tokens: Tensor, targets: Tensor) -> Tensor:
        """The conditional branch only: new tokens in the encoder, changing ones in the decoder."""
        model, previous = self.model, self.previous
        x = model.embed_known(tokens, previous, self.memory.rows[0])
        for block, cache in zip(model.encoder_blocks, self.encoder):
            x = self._grow(block, x, cache)
        places = self._places(previous)
        new = model.decoder_embed(model.encoder_norm(x)) + model.decoder_pos_embed_learned[0].to(x)[places]
        self.sequence = self.sequence.scatter(1, places[..., None].expand_as(new), new)
        x = self.sequence
        prune = self.settings.prune_block
        for block in model.decoder_blocks[:prune]:
            x = block(x)
        x = self._prune(index, x, targets)
        for block, cache in zip(model.decoder_blocks[prune + 1 :], self.decoder[prune + 1 :]):
            x = update_block(block, x, cache, self.kept)
        return torch.zeros_like(self.sequence).scatter(1, self.kept[..., None].expand_as(x), x)

    def _grow(self, block: Block, x: Tensor, cache: list[Tensor]) -> Tensor:
        """An encoder block for [buffer, new]: the buffer's keys and values are renewed, new ones appended."""
        buffer = self.model.spec.buffer
        q, k, v = block.project(x)
        for slot, fresh in enumerate((k, v)):
            cache[slot] = torch.cat([fresh[:, :, :buffer], cache[slot][:, :, buffer:], fresh[:, :, buffer:]], dim=2)
        return block.feed_forward(x + block.attn.attend(q, *cache))

    def _prune(self, index: int, x: Tensor, targets: Tensor) -> Tensor:
        """The block that attends over everything and lets only the tokens with the least similar values go on."""
        block, cache = self.model.decoder_blocks[self.settings.prune_block], self.decoder[self.settings.prune_block]
        q, k, v = block.project(x)
        similarity = F.cosine_similarity(v, cache[1], dim=-1).mean(1)
        needed = torch.cat([targets, self.previous], dim=1) + self.model.spec.buffer
        similarity = similarity.scatter(1, needed, 0.0)
        cache[:] = [k, v]
        count = self.settings.kept(index, self.plan.first_steps, x.shape[1], needed.shape[1])
        self.kept = similarity.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values
        x = x + block.attn.attend(q, k, v)
        return block.feed_forward(x.gather(1, self.kept[..., None].expand(-1, -1, x.shape[-1])))


def full_block(block: Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block and its keys and values."""
    q, k, v = block.project(x)
    return block.feed_forward(x + block.attn.attend(q, k, v)), k, v


def update_block(block: Block, x: Tensor, cache: list[Tensor], places: Tensor) -> Tensor:
    """A block for the rows at ``places``: their keys and values are renewed, all are attended to."""
    q, k, v = block.project(x)
    rows = places[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
    cache[:] = [old.scatter(2, rows, new) for old, new in zip(cache, (k, v))]
    return block.feed_forward(x + block.attn.attend(q, *cache))


class LazyHead:
    """The head's evaluations of one chain (docs/upstream.md 4.4); state lives as long as the chain."""

    def __init__(self, head: DiffusionHead, z: tuple[Tensor, ...], scale: float, steps: int, period: int):
        self.head = head
        self.conditional = z[0]
        self.both = torch.cat(z)
        self.scale = scale
        self.steps = steps
        self.period = period
        self.difference: Tensor | None = None  # conditional minus unconditional eps of the last key step
        self.outputs: list[Tensor] = []  # of every block at its last evaluation, conditional rows
        self.contributions: list[Tensor] = []  # what every block added to h at the last key step

    def __call__(self, i: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if i == self.steps - 1 or i % self.period == 0:
            out = self._key(torch.cat([x, x]), torch.cat([t, t]))
            (eps, v), (eps_uncond, _) = (branch.chunk(2, dim=-1) for branch in out.float().chunk(2))
            self.difference = eps - eps_uncond
        else:
            eps, v = self._reuse(i, x, t).float().chunk(2, dim=-1)
        return eps + (self.scale - 1) * self.difference, v

    def _key(self, x: Tensor, t: Tensor) -> Tensor:
        """Both branches in full; outputs and contributions of the conditional rows are stored."""
        y = self.head.time_embed(t, x.dtype) + self.head.cond_embed(self.both)
        h, rows = self.head.input_proj(x), len(self.conditional)
        self.outputs, self.contributions = [], []
        for block in self.head.res_blocks:
            gate, output = block.branch(h, y)
            after = h + gate * output
            self.outputs.append(output[:rows])
            self.contributions.append((after - h)[:rows])
            h = after
        return self.head.final_layer(h, y)

    def _reuse(self, i: int, x: Tensor, t: Tensor) -> Tensor:
        """Conditional rows; the middle blocks are not computed, the outer ones only in the noisy first tenth."""
        y = self.head.time_embed(t, x.dtype) + self.head.cond_embed(self.conditional)
        h = self.head.input_proj(x)
        for j, block in enumerate(self.head.res_blocks):
            if j in MIDDLE:
                h = h + self.contributions[j]
                continue
            if i > 0.9 * self.steps:
                gate, self.outputs[j] = block.branch(h, y)
            else:
                gate = block.modulation(y)[2]
            h = h + gate * self.outputs[j]
        return self.head.final_layer(h, y)
