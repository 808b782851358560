"""Harmon and UniPic: a masked autoregressive model whose known tokens a language model reads behind the prompt, in
every AR step (docs/upstream.md 9)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..diffusion.chain import DiffusionSpec
from ..diffusion.head import DiffusionHead, HeadSpec
from ..errors import GtRError
from .latents import LatentSpec
from .layers import Attention, block_flops, empty_parameter, sdpa
from .masked import MaskedAutoencoder
from .model import Conditions, InParts, Model, Positions, at_all_positions, pick
from .position_tables import bilinear_weights, resized_table
from .prompts import PAD, PICTURE, Condition, EditCondition, check_ids, ids_of, pad_prompts
from .qwen import Prefix, Qwen, QwenSpec
from .shapes import Shapes, check_latent, count_blocks, describe_names, head_count, infer_head_spec, shape_of
from .spec import Family, Flops, ModelSpec, check_depths, uneven_depths

ANCHORS = ("llm.model.embed_tokens.weight", "mar.diffloss.net.input_proj.weight", "proj_in.0.weight")
# What the published files hold beside it: the language model's head, the encoder of pictures for understanding, an
# embedding of classes that nothing reads.
UNUSED = r"llm\.lm_head\.|siglip2|vae\.|mar\.class_emb\.|llm\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\."
KV_HEADS = 2  # of Qwen2.5 up to 3B; shapes do not tell
# The chat template around a prompt, and the ids of the unconditional one, "Generate an image."
BEFORE, AFTER = "<|im_start|>user\nGenerate an image: ", "<|im_end|>\n<|im_start|>assistant\n"
UNCONDITIONAL = (151644, 872, 198, 31115, 458, 2168, 13, 151645, 198, 151644, 77091, 198)
# The same of UniPic's editing, whose instruction follows the picture; "Repeat this image." is the unconditional one.
BEFORE_PICTURE, AFTER_PICTURE = "<|im_start|>user\n", "\n{}<|im_end|>\n<|im_start|>assistant\n"
REPEAT = (151644, 872, 198, PICTURE, 198, 38718, 419, 2168, 13, 151645, 198, 151644, 77091, 198)
# Trained with 128 ids, template included; longer ones work, and cost memory in every layer.
USUAL_PROMPT, LONGEST_PROMPT = 128, 1024
# Of the FLOPs: a prompt of 24 ids in one branch and the 12 unconditional ones in the other.
COUNTED_PROMPT = 18


@dataclass(frozen=True)
class HarmonSpec(ModelSpec):
    """A Harmon or UniPic model. Position tables have ``table`` x ``table`` entries and are resized to other grids.

    ``empty_prompt`` are the ids that guidance leads away from, ``empty_edit`` those where pictures are changed, which
    UniPic was trained to do (``edits``).
    """

    family: ClassVar[str] = "Harmon"
    condition: ClassVar[str] = "prompt"
    classes: ClassVar[int] = 0
    text_length: ClassVar[int] = USUAL_PROMPT
    caption_dim: ClassVar[int] = 0
    stored: ClassVar[tuple[str, ...]] = (*ModelSpec.stored, "empty_prompt", "empty_edit")

    name: str
    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    llm: QwenSpec
    head: HeadSpec
    grid: tuple[int, int] = (32, 32)
    table: int = 16
    latent: LatentSpec = LatentSpec()
    diffusion: DiffusionSpec = DiffusionSpec()
    buffer: int = 64
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    empty_prompt: tuple[int, ...] = UNCONDITIONAL
    empty_edit: tuple[int, ...] = REPEAT
    edits: bool = False

    @property
    def assumptions(self) -> tuple[str, ...]:
        return super().assumptions + uneven_depths(self)

    @property
    def origin(self) -> str:
        """UniPic draws in 32 AR steps, Harmon in 64."""
        return "unipic-origin" if self.table >= 32 else "harmon-origin"

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of blocks: encoder, decoder, head, language model."""
        return *super().depths, self.llm.depth

    def can_draw(self, grid: tuple[int, int]) -> bool:
        """Position tables are resized to any grid."""
        return min(grid) >= 1

    def check_grid(self, grid: tuple[int, int]) -> None:
        if not self.can_draw(grid):
            raise GtRError(f"{self.name} needs at least 1 x 1 tokens, found {grid[0]} x {grid[1]}")

    def check_condition(self, condition: Condition) -> None:
        if not isinstance(condition, EditCondition):
            check_ids(condition, self.llm.vocabulary, self.name)
            return
        check_ids(condition.prompts, self.llm.vocabulary, self.name, lowest=PICTURE)
        if not self.edits:
            raise GtRError(f"{self.name} was not trained to change pictures: load UniPic for that")
        if ((condition.prompts == PICTURE).sum(1) != 1).any():
            raise GtRError("an edit needs one picture in every prompt")
        if condition.pictures.ndim != 4 or condition.pictures.shape[-1] != self.head.channels:
            raise GtRError(
                f"pictures to change are tokens (images, rows, columns, {self.head.channels}), found shape "
                f"{tuple(condition.pictures.shape)}"
            )

    def random_condition(self, batch: int) -> Tensor:
        """Prompts of 24 ids, another one for every image."""
        return (torch.arange(24) + torch.arange(batch)[:, None]) % self.llm.vocabulary

    def transformer_flops(self, known: int, masked: int) -> Flops:
        """As the original code runs it: the encoder in both guidance branches, though it does not see the prompt.

        The prompts' own rows, which go through the language model once per run, are left out.
        """
        rows = self.buffer + known
        encoder = 2 * known * self.head.channels * self.dim
        encoder += self.encoder_depth * block_flops(self.dim, self.mlp_ratio, rows)
        llm = rows * (self.llm.row_flops + 4 * self.llm.dim * (self.dim + self.llm.dim))
        llm += self.llm.attention_flops(rows, COUNTED_PROMPT)
        decoder = 2 * rows * self.dim**2
        decoder += self.decoder_depth * block_flops(self.dim, self.mlp_ratio, rows + masked)
        return Flops({"encoder": encoder, "llm": llm, "decoder": decoder})

    def condition_bytes(self, itemsize: int) -> int:
        """Keys and values of a prompt of the usual length, in every layer of the language model."""
        return USUAL_PROMPT * self.llm.row_bytes(itemsize)

    def reader_bytes(self, known: int, itemsize: int) -> int:
        """A layer of the language model: its rows, its MLP, all heads' keys and values and their scores."""
        rows, seen = self.buffer + known, USUAL_PROMPT + self.buffer + known
        values = rows * (6 * self.llm.dim + 3 * self.llm.hidden) + seen * 6 * self.llm.dim
        return (values + self.llm.heads * seen**2) * itemsize

    def encode_prompts(self, prompts: Sequence[str], tokenize: Callable[[str], Sequence[int]]) -> Tensor:
        """In the chat template; ``tokenize`` makes ids of Qwen2.5, special tokens included."""
        return self._padded([tuple(tokenize(f"{BEFORE}{prompt}{AFTER}")) for prompt in prompts])

    def length_note(self, condition: Tensor) -> str | None:
        longest = int((condition != PAD).sum(1).max())
        if longest <= self.text_length:
            return None
        return f"a prompt has {longest} tokens, {self.name} was trained with at most {self.text_length}"

    def encode_edits(self, instructions: Sequence[str], tokenize: Callable[[str], Sequence[int]]) -> Tensor:
        before = tokenize(BEFORE_PICTURE)
        afters = [tokenize(AFTER_PICTURE.replace("{}", instruction.strip())) for instruction in instructions]
        return self._padded([(*before, PICTURE, *after) for after in afters])

    def _padded(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """Prompts as a condition. Raises GtRError for one that is too long."""
        longest = max(map(len, rows), default=0)
        if longest > LONGEST_PROMPT:
            raise GtRError(
                f"a prompt has {longest} tokens, {self.name} reads at most {LONGEST_PROMPT} and was trained with "
                f"{USUAL_PROMPT}: shorten it"
            )
        return pad_prompts(rows)


QWEN_05B = QwenSpec(dim=896, depth=24, heads=14, hidden=4864)
QWEN_15B = QwenSpec(dim=1536, depth=28, heads=12, hidden=8960)
HARMON_05B = HarmonSpec("harmon-0.5b", 768, 12, 12, 12, QWEN_05B, HeadSpec(16, 768, 1024, 6))
HARMON_15B = HarmonSpec("harmon-1.5b", 1280, 16, 20, 20, QWEN_15B, HeadSpec(16, 1280, 1536, 12))
UNIPIC = replace(HARMON_15B, name="unipic", grid=(64, 64), table=32, diffusion=DiffusionSpec(beta_cap=0.2), edits=True)
PUBLISHED = {spec.name: spec for spec in (HARMON_05B, HARMON_15B, UNIPIC)}


class MaskedTransformer(MaskedAutoencoder):
    """The masked autoencoder with position tables that are resized, and without classes: all buffer rows hold the
    learned null embedding."""

    def __init__(self, spec: HarmonSpec, *, operations, attention: Attention, **factory):
        positions = spec.table**2
        super().__init__(spec, spec.buffer + positions, operations=operations, attention=attention, **factory)
        self.spec = spec
        self.fake_latent = empty_parameter(1, spec.dim, **factory)
        self.diffusion_pos_embed_learned = empty_parameter(1, positions, spec.dim, **factory)

    def encode(self, tokens: Tensor, known: Tensor, grid: tuple[int, int]) -> Tensor:
        """tokens (B, L, C), known (B, K) positions -> [buffer, known] (B, buffer + K, D)."""
        x = self.z_proj(tokens.gather(1, known[..., None].expand(-1, -1, tokens.shape[-1])))
        buffer = self.fake_latent.to(x).expand(len(x), self.spec.buffer, -1)
        x = torch.cat([buffer, x], dim=1) + self._rows(self.encoder_pos_embed_learned, known, grid, x)
        return self.through_encoder(self.z_proj_ln(x))

    def decode(
        self,
        encoded: Tensor,
        known: Tensor,
        masked: Tensor,
        grid: tuple[int, int],
        *,
        placeholders: Tensor | None = None,
        rows: slice = slice(None),
    ) -> Tensor:
        """encoded (B, buffer + K, D), masked (B, M) positions -> [buffer, known, masked] after the last norm; the last
        block computes ``rows`` of it only. Masked positions hold the mask token, or their row of
        ``placeholders`` (B, L, D)."""
        x = self.decoder_embed(encoded)
        if placeholders is None:
            hidden = self.mask_token.to(x).expand(len(x), masked.shape[1], -1)
        else:
            hidden = pick(placeholders, masked)
        x = torch.cat([x, hidden], dim=1)
        x = x + self._rows(self.decoder_pos_embed_learned, torch.cat([known, masked], dim=1), grid, x)
        return self.through_decoder(x, rows)

    def finish(self, decoded: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
        """z (B, n, D) of decoder output at ``positions`` (B, n)."""
        return decoded + self.positions(self.diffusion_pos_embed_learned, grid, decoded)[positions]

    def positions(self, table: Tensor, grid: tuple[int, int], like: Tensor) -> Tensor:
        """A position table, without its buffer rows, resized to ``grid``: (h * w, D) by raster position."""
        side = self.spec.table
        image = table[:, table.shape[1] - side**2 :]
        if tuple(grid) == (side, side):
            return image[0].to(like)
        return resized_table(image[0].to(like.device, torch.float32), grid, bilinear_weights).to(like.dtype)

    def _rows(self, table: Tensor, positions: Tensor, grid: tuple[int, int], like: Tensor) -> Tensor:
        """Rows of a position table for [buffer, positions]: (B, buffer + n, D)."""
        buffer = table[0, : self.spec.buffer].to(like).expand(len(positions), -1, -1)
        return torch.cat([buffer, self.positions(table, grid, like)[positions]], dim=1)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to be changed: its ``rows`` (L + buffer, h) for the language model, and the ``placeholders`` (L, D)
    that the decoder sees at masked positions."""

    rows: Tensor
    placeholders: Tensor


@dataclass(frozen=True, eq=False)
class PromptMemory:
    """Harmon's memory: every distinct prompt once, and per guidance branch the prompt of each image. Where pictures are
    changed, ``placeholders`` (B, L, D) is what the decoder sees of them instead of mask tokens."""

    prompts: tuple[Prefix, ...]
    rows: tuple[tuple[int, ...], ...]
    placeholders: Tensor | None = None

    @property
    def branches(self) -> int:
        return len(self.rows)

    def first(self, branches: int) -> PromptMemory:
        return replace(self, rows=self.rows[:branches])

    def images(self, rows: slice) -> PromptMemory:
        placeholders = None if self.placeholders is None else self.placeholders[rows]
        return PromptMemory(self.prompts, tuple(branch[rows] for branch in self.rows), placeholders)

    def each(self) -> tuple[PromptMemory, ...]:
        """The branches, each by itself."""
        return tuple(replace(self, rows=(branch,)) for branch in self.rows)

    def placeholders_of_all(self) -> Tensor | None:
        """Those of all branches, one after another in the batch."""
        return None if self.placeholders is None else self.placeholders.repeat(self.branches, 1, 1)

    def groups(self) -> dict[int, list[int]]:
        """Which rows, branch after branch, have which prompt."""
        found: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompt for branch in self.rows for prompt in branch):
            found.setdefault(prompt, []).append(row)
        return found


class Harmon(Model):
    """Encoder over known tokens, a language model that reads its output behind the prompt, decoder, diffusion head.

    The encoder does not see the prompt: it runs once for all guidance branches. A prompt's keys and values are computed
    once per run, and once for all images that share it.
    """

    def __init__(
        self,
        spec: HarmonSpec,
        *,
        operations=nn,
        attention: Attention = sdpa,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.spec = spec
        factory = {"device": device, "dtype": dtype}

        def connector(inputs: int, outputs: int) -> nn.Sequential:
            """Two layers, as wide as the language model between them."""
            first, second = ((inputs, spec.llm.dim), (spec.llm.dim, outputs))
            return nn.Sequential(operations.Linear(*first, **factory), nn.SiLU(), operations.Linear(*second, **factory))

        self.llm = nn.ModuleDict({"model": Qwen(spec.llm, operations=operations, **factory)})
        self.mar = MaskedTransformer(spec, operations=operations, attention=attention, **factory)
        self.proj_in = connector(spec.dim, spec.llm.dim)
        self.proj_out = connector(spec.llm.dim, spec.dim)

    @property
    def head(self) -> DiffusionHead:
        return self.mar.diffloss["net"]

    def with_head(self, head: DiffusionHead) -> Harmon:
        """The head is MAR's."""
        twin, mar = copy.copy(self), copy.copy(self.mar)
        mar._modules = self.mar._modules | {"diffloss": nn.ModuleDict({"net": head})}
        twin._modules = self._modules | {"mar": mar}
        return twin

    def start(
        self, conditions: Conditions, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> PromptMemory:
        given = [self._prompts(condition, conditions[0]) for condition in conditions]
        edits = [condition for condition in conditions if isinstance(condition, EditCondition)]
        pictures = {key: picture for edit in edits for key, picture in distinct_pictures(edit).items()}
        seen = {key: self.see(picture, device, dtype) for key, picture in pictures.items()}
        distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(p for branch in given for p in branch))}
        return PromptMemory(
            tuple(self.remember(ids, seen.get(picture), device, dtype) for ids, picture in distinct),
            tuple(tuple(distinct[prompt] for prompt in branch) for branch in given),
            torch.stack([seen[picture].placeholders for _, picture in given[0]]) if edits else None,
        )

    def embed(self, conditions: Conditions, device: torch.device | str, dtype: torch.dtype) -> tuple[PromptMemory, ...]:
        """As the original code, which keeps the prompts' keys and values too."""
        return self.start(conditions, device, dtype).each()

    def see(self, picture: Tensor, device: torch.device | str, dtype: torch.dtype) -> Picture:
        """A picture to be changed (h, w, C), as the encoder sees it with nothing masked."""
        grid = tuple(picture.shape[:2])
        tokens = picture.flatten(0, 1)[None].to(device, dtype)
        everywhere = torch.arange(tokens.shape[1], device=device)[None]
        encoded = self.mar.encode(tokens, everywhere, grid)
        return Picture(self.to_llm(encoded)[0], self.mar.decoder_embed(encoded)[0, self.spec.buffer :])

    def remember(
        self, ids: Sequence[int], picture: Picture | None, device: torch.device | str, dtype: torch.dtype
    ) -> Prefix:
        """What the language model's rows see of a prompt, with a picture's rows where its PICTURE stands."""
        qwen = self.llm["model"]
        if picture is None:
            return qwen.remember(qwen.embed_tokens(torch.tensor(ids).to(device)).to(dtype))
        place = ids.index(PICTURE)
        before, after = (qwen.embed_tokens(torch.tensor(part).to(device)) for part in (ids[:place], ids[place + 1 :]))
        return qwen.remember(torch.cat([before.to(dtype), picture.rows, after.to(dtype)]))

    def to_llm(self, encoded: Tensor) -> Tensor:
        """[buffer, known] (B, buffer + K, D) -> [known, buffer] (B, K + buffer, h): the language model sees the buffer
        last."""
        rows = self.proj_in(encoded)
        return torch.cat([rows[:, self.spec.buffer :], rows[:, : self.spec.buffer]], dim=1)

    def read(self, encoded: Tensor, memory: PromptMemory) -> Tensor:
        """encoded [buffer, known] (B, buffer + K, D) -> the same rows, as read behind each image's prompt, one branch
        after another: (branches * B, buffer + K, D)."""
        buffer, images, rows = self.spec.buffer, len(encoded), self.to_llm(encoded)
        groups = memory.groups()
        order = [row for members in groups.values() for row in members]
        behind = [(len(members), memory.prompts[prompt]) for prompt, members in groups.items()]
        rows = self.llm["model"](torch.stack([rows[row % images] for row in order]), behind)
        rows = self.proj_out(rows)
        places = {row: place for place, row in enumerate(order)}
        rows = torch.stack([rows[places[row]] for row in range(len(order))])
        return encoded.repeat(memory.branches, 1, 1) + torch.cat([rows[:, -buffer:], rows[:, :-buffer]], dim=1)

    def forward(
        self, tokens: Tensor, positions: Positions, memory: PromptMemory, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        check_picture(memory.placeholders, grid)
        encoded = self.read(self.mar.encode(tokens, positions.known, grid), memory)
        positions = positions.repeat(memory.branches)
        start = self.spec.buffer + positions.known.shape[1]
        rows = slice(start, start + positions.targets.shape[1])
        placeholders = memory.placeholders_of_all()
        masked = positions.masked
        decoded = self.mar.decode(encoded, positions.known, masked, grid, placeholders=placeholders, rows=rows)
        return self.mar.finish(decoded, positions.targets, grid).chunk(memory.branches)

    def first_step(
        self,
        tokens: Tensor,
        masked: Tensor,
        places: Tensor,
        memory: PromptMemory,
        grid: tuple[int, int],
        in_parts: InParts,
    ) -> tuple[Tensor, ...] | None:
        """Every distinct prompt once, at all masked positions."""
        prompts = tuple(memory.groups())
        if memory.placeholders is not None or len(prompts) == memory.branches * len(places):
            return None
        alone = PromptMemory(memory.prompts, (prompts,))
        z = at_all_positions(self, tokens, masked, alone, len(prompts), grid, in_parts)
        return tuple(
            pick(torch.stack([z[prompts.index(prompt)] for prompt in branch]), places) for branch in memory.rows
        )

    def reference(
        self, tokens: Tensor, positions: Positions, embedded: Sequence[PromptMemory], grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """Every branch goes through everything separately, but for the prompts' keys and values."""
        buffer, targets = self.spec.buffer, positions.targets.shape[1]

        def branch(memory: PromptMemory) -> Tensor:
            encoded = self.read(self.mar.encode(tokens, positions.known, grid), memory)
            decoded = self.mar.decode(
                encoded, positions.known, positions.masked, grid, placeholders=memory.placeholders
            )
            masked = decoded[:, buffer + positions.known.shape[1] :]
            return self.mar.finish(masked, positions.masked, grid)[:, :targets]

        return tuple(map(branch, embedded))

    def _prompts(self, condition: Condition | None, first: Condition) -> list[tuple[tuple[int, ...], bytes]]:
        """Every image's prompt: its ids, and which picture it reads (empty: none). None is the unconditional one, with
        the ``first`` condition's pictures. Raises GtRError where only one of the two has pictures."""
        edited = isinstance(first, EditCondition)
        if condition is not None and isinstance(condition, EditCondition) != edited:
            raise GtRError(
                "one of the condition and the negative changes a picture, the other does not: make both the same way, "
                "or leave out the negative"
            )
        if edited:
            ids = [self.spec.empty_edit] * len(first) if condition is None else ids_of(condition.prompts)
            return list(zip(ids, map(picture_key, (condition or first).pictures), strict=True))
        ids = [self.spec.empty_prompt] * len(first) if condition is None else ids_of(condition)
        return [(prompt, b"") for prompt in ids]


def picture_key(picture: Tensor) -> bytes:
    """Equal for equal pictures."""
    return picture.float().cpu().contiguous().numpy().tobytes()


def distinct_pictures(condition: EditCondition) -> dict[bytes, Tensor]:
    """The pictures of a condition, equal ones once."""
    return {picture_key(picture): picture for picture in condition.pictures}


def check_picture(placeholders: Tensor | None, grid: tuple[int, int]) -> None:
    """Raises GtRError where pictures of another size are to be changed."""
    if placeholders is not None and placeholders.shape[1] != grid[0] * grid[1]:
        raise GtRError(
            f"the picture to change has {placeholders.shape[1]} tokens, the latent {grid[0]} x {grid[1]}: make them "
            "the same size"
        )


def infer_harmon_spec(shapes: Shapes, *, heads: int | None = None, **stored) -> HarmonSpec:
    """Read a :class:`HarmonSpec` off tensor names and shapes (docs/upstream.md 9.1). Raises GtRError."""
    if not all(anchor in shapes for anchor in ANCHORS):
        raise GtRError(f"not a Harmon checkpoint, found {describe_names(shapes)}; choose a Harmon or UniPic file")
    own = {name.removeprefix("mar."): shape for name, shape in shapes.items() if name.startswith("mar.")}
    width, dim = shape_of(shapes, "proj_in.0.weight", 2)
    llm = infer_qwen_spec({name.removeprefix("llm.model."): shape for name, shape in shapes.items()})
    if llm.dim != width:
        raise GtRError(f"the language model is {llm.dim} wide, 'proj_in.0.weight' makes {width}: the file is damaged")
    head, tokens = infer_head_spec(own, dim), shape_of(own, "diffusion_pos_embed_learned", 3)[1]
    side, buffer = math.isqrt(tokens), shape_of(own, "encoder_pos_embed_learned", 3)[1] - tokens
    if side**2 != tokens or buffer < 1:
        raise GtRError(
            f"position tables of {tokens} entries and {buffer} buffer rows: expected a square and at least 1; the file "
            "is not a Harmon checkpoint"
        )
    latent = stored.pop("latent", LatentSpec(channels=head.channels))
    check_latent(latent, head)
    usual = HARMON_15B if side < UNIPIC.table else UNIPIC
    spec = HarmonSpec(
        name="harmon",
        dim=dim,
        heads=head_count(dim, heads),
        encoder_depth=count_blocks(own, "encoder_blocks"),
        decoder_depth=count_blocks(own, "decoder_blocks"),
        llm=llm,
        head=head,
        grid=(2 * side, 2 * side),
        table=side,
        latent=latent,
        diffusion=usual.diffusion,
        buffer=buffer,
        edits=usual.edits,
    )
    named = next((known.name for known in PUBLISHED.values() if replace(known, name=spec.name) == spec), None)
    check_depths(spec, stated=stored.pop("depths", None))
    spec = replace(spec, **{"name": named or spec.name, **stored})
    if max(*spec.empty_prompt, *(spec.empty_edit if spec.edits else ())) >= llm.vocabulary:
        raise GtRError(
            f"a vocabulary of {llm.vocabulary} tokens lacks those of the unconditional prompt: expected Qwen2.5's "
            f"{QwenSpec.vocabulary}; the file is of another model"
        )
    return spec


def infer_qwen_spec(shapes: Shapes) -> QwenSpec:
    """The language model's sizes. Raises GtRError."""
    vocabulary, dim = shape_of(shapes, "embed_tokens.weight", 2)
    shared = shape_of(shapes, "layers.0.self_attn.k_proj.weight", 2)[0]
    if shared % KV_HEADS or dim % (shared // KV_HEADS):
        raise GtRError(f"keys of {shared} values do not make {KV_HEADS} heads of a model {dim} wide: use Qwen2.5's")
    return QwenSpec(
        dim=dim,
        depth=count_blocks(shapes, "layers"),
        heads=dim // (shared // KV_HEADS),
        hidden=shape_of(shapes, "layers.0.mlp.gate_proj.weight", 2)[0],
        vocabulary=vocabulary,
        kv_heads=KV_HEADS,
    )


def _parse_ids(values: Iterable) -> tuple[int, ...]:
    """A prompt's ids in a file's metadata."""
    ids = tuple(values)
    if not 1 <= len(ids) <= LONGEST_PROMPT or not all(type(token) is int and token >= PICTURE for token in ids):
        raise ValueError(f"a prompt is not 1 to {LONGEST_PROMPT} ids")
    return ids


HARMON_FAMILY = Family(
    spec=HarmonSpec,
    model=Harmon,
    anchors=ANCHORS,
    infer=infer_harmon_spec,
    published=PUBLISHED,
    weights="model",
    parts=("mar.",),
    unused=UNUSED,
    parsers={"empty_prompt": _parse_ids, "empty_edit": _parse_ids},
)
