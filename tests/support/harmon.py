"""A small Harmon and a small UniPic with seeded weights, and what tests/golden has of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec
from gtr_pack.gtr_core.diffusion.head import HeadSpec
from gtr_pack.gtr_core.models.harmon import UNCONDITIONAL, Harmon, HarmonSpec
from gtr_pack.gtr_core.models.model import Positions
from gtr_pack.gtr_core.models.prompts import PICTURE, EditCondition
from gtr_pack.gtr_core.models.qwen import QwenSpec
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.schedule import Schedule
from tokenizers import pre_tokenizers
from torch import Tensor

from .runs import run

# 4 x 4 positions for 8 x 8 tokens, as the published models have half of their tokens a side.
SMALL_HARMON = HarmonSpec(
    name="harmon",
    dim=32,
    heads=2,
    encoder_depth=2,
    decoder_depth=2,
    llm=QwenSpec(dim=48, depth=3, heads=6, hidden=80, vocabulary=40),
    head=HeadSpec(16, 32, 32, 2),
    grid=(8, 8),
    table=4,
    buffer=6,
    empty_prompt=(30, 31, 32),
)
SMALL_UNIPIC = replace(
    SMALL_HARMON, name="unipic", diffusion=DiffusionSpec(beta_cap=0.2), edits=True, empty_edit=(33, PICTURE, 34)
)
# As small, with the tables of the published ones and a vocabulary for the real tokenizer.
HOST_HARMON = replace(
    SMALL_HARMON,
    name="small-harmon",
    llm=replace(SMALL_HARMON.llm, vocabulary=QwenSpec.vocabulary),
    table=16,
    grid=(32, 32),
    empty_prompt=UNCONDITIONAL,
)
HOST_UNIPIC = replace(
    HOST_HARMON, name="small-unipic", table=32, grid=(64, 64), diffusion=DiffusionSpec(beta_cap=0.2), edits=True
)
PROMPTS = torch.tensor([[3, 14, 15, 9, 2, 6, 5], [35, 8, 9, 7, -1, -1, -1]])


def seeded_harmon(spec: HarmonSpec = SMALL_HARMON, seed: int = 1) -> Harmon:
    """Weights that keep what goes through the layers at about its size; the head predicts little noise."""
    model, generator = Harmon(spec), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight", "_ln.weight")):
                parameter.copy_(1 + 0.1 * values)
            elif parameter.ndim == 2 and "embed_tokens" not in name:
                parameter.copy_(values * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(values * 0.5)
    return model.eval().requires_grad_(False)


# Whole runs by name.
LOOPS = {
    "random": (SMALL_HARMON, Method(Schedule("random", "random", (4,), diffusion=(20, 20, 20)), Guidance(3.0))),
    "gtr": (
        SMALL_UNIPIC,
        Method(
            Schedule("gtr", "gtr", (3, 2, 2), diffusion=(9, 6, 6), decoder_scope="stage"), Guidance(3.0), FTS(0.2, 12)
        ),
    ),
    "unguided": (SMALL_UNIPIC, Method(Schedule("two", "random", (2,), diffusion=(12, 12, 12)), Guidance(1.0))),
}
STEPS = {"some": ((8, 8), 40), "first": ((8, 8), 64), "last": ((8, 8), 1), "wide": ((6, 10), 25)}


def prefixes(model: Harmon) -> dict[str, Tensor]:
    """Keys and values of two prompts and of the unconditional one, in every layer."""
    found = {}
    for index, prompt in enumerate(model.start((PROMPTS, None)).prompts):
        for layer, (k, v) in enumerate(prompt.layers):
            found |= {f"prompt{index}_k{layer}": k, f"prompt{index}_v{layer}": v}
    return found


def step_inputs(case: str) -> tuple[Tensor, Positions, tuple[int, int]]:
    """Tokens, positions and grid of one AR step of two images; half of the masked positions are targets."""
    grid, unknown = STEPS[case]
    count, generator = grid[0] * grid[1], torch.Generator().manual_seed(unknown)
    tokens = torch.randn(2, count, 16, generator=generator)
    order = torch.stack([torch.randperm(count, generator=generator) for _ in range(2)])
    known, masked = order[:, unknown:].sort(dim=1).values, order[:, :unknown]
    targets = (unknown + 1) // 2
    return tokens, Positions(known, masked[:, :targets], masked[:, targets:]), grid


def step(model: Harmon, case: str) -> dict[str, Tensor]:
    """What the language model makes of the encoder's rows, and z, both with both branches one after another."""
    tokens, positions, grid = step_inputs(case)
    memory = model.start((PROMPTS, None))
    read = model.read(model.mar.encode(tokens, positions.known, grid), memory)
    return {f"{case}_read": read, f"{case}_z": torch.cat(model(tokens, positions, memory, grid))}


def tables(model: Harmon) -> dict[str, Tensor]:
    """A position table as stored, enlarged and made smaller."""
    table = model.mar.decoder_pos_embed_learned
    grids = ((4, 4), (8, 8), (6, 10), (2, 3))
    return {f"{h}x{w}_positions": model.mar.positions(table, (h, w), torch.zeros(1)) for h, w in grids}


def loop(model: Harmon, name: str) -> dict[str, Tensor]:
    """The tokens of a whole run."""
    spec, method = LOOPS[name]
    changed = Harmon(spec).requires_grad_(False)
    changed.load_state_dict(model.state_dict())
    return {f"{name}_tokens": run(changed, method, PROMPTS if method.guidance.enabled else PROMPTS.flip(0))}


def edit_condition() -> EditCondition:
    """Two pictures of 8 x 8 tokens and what to do with them."""
    pictures = torch.randn(2, 8, 8, 16, generator=torch.Generator().manual_seed(9))
    return EditCondition(torch.tensor([[3, 1, PICTURE, 4, 1, 5], [9, PICTURE, 2, 6, -1, -1]]), pictures)


def edit(model: Harmon) -> dict[str, Tensor]:
    """What the last layer sees of the prompts with their pictures, and the tokens of a whole run."""
    changed = Harmon(SMALL_UNIPIC).requires_grad_(False)
    changed.load_state_dict(model.state_dict())
    prompts = changed.start((edit_condition(), None)).prompts
    found = {f"edit{index}_k": prompt.layers[-1][0] for index, prompt in enumerate(prompts)}
    return found | {"edit_tokens": run(changed, LOOPS["gtr"][1], edit_condition())}


def record(model: Harmon) -> dict[str, Tensor]:
    """All of it."""
    parts = [
        prefixes(model),
        tables(model),
        edit(model),
        *(step(model, case) for case in STEPS),
        *(loop(model, n) for n in LOOPS),
    ]
    return {name: tensor for part in parts for name, tensor in part.items()}


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tokenizer(folder: Path) -> Path:
    """Files of a tokenizer that knows letters, one word and the special tokens of Qwen2.5."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, "ca", "cat"])}
    added = {str(len(vocabulary) + index): {"content": token, "special": True} for index, token in enumerate(SPECIAL)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}), encoding="utf-8")
    return folder


# With the vocabulary of that tokenizer; at 128 px.
SPOKEN = replace(
    SMALL_UNIPIC,
    name="spoken",
    llm=replace(SMALL_UNIPIC.llm, vocabulary=256 + 2 + len(SPECIAL)),
    table=32,
    empty_prompt=(3, 4, 5),
)
