"""Prompts as a condition: rows of token ids, short ones filled up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GtRError

PAD = -1
PICTURE = -2
"""Stands in a prompt where a picture is read."""


@dataclass(frozen=True, eq=False)
class EditCondition:
    """The condition of pictures to be changed: ``prompts`` (B, n) int64 with a PICTURE in each, and the ``pictures``
    (B, h, w, C), tokens in model scale."""

    prompts: Tensor
    pictures: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.prompts.shape

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, images: slice | list[int]) -> EditCondition:
        return EditCondition(self.prompts[images], self.pictures[images])


Condition = Tensor | EditCondition
"""What a run is conditioned on: per image a label, the states of a text, ids of a prompt, or a picture to change."""


def pad_prompts(prompts: Sequence[Sequence[int]]) -> Tensor:
    """Ids of several prompts as one condition (prompts, ids) int64."""
    longest = max(map(len, prompts))
    return torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in prompts])


def ids_of(condition: Tensor) -> list[tuple[int, ...]]:
    """The ids of every prompt of a condition."""
    return [tuple(token for token in row if token != PAD) for row in condition.tolist()]


def check_ids(condition: Tensor, vocabulary: int, name: str, lowest: int = 0) -> None:
    """Raises GtRError for what is no condition of prompts; meta tensors of the right shape pass. ``lowest`` is PICTURE
    where a picture may stand."""
    if condition.is_floating_point() or condition.ndim != 2 or not condition.shape[1]:
        raise GtRError(
            f"{name} is conditioned on the token ids of prompts (images, ids), found {condition.dtype} of shape "
            f"{tuple(condition.shape)}: encode the prompts for this model"
        )
    if condition.is_meta:
        return
    if (((condition < lowest) & (condition != PAD)) | (condition >= vocabulary)).any():
        raise GtRError(f"a token id is out of range: {name} has ids 0 to {vocabulary - 1}")
    given = condition != PAD
    if not given[:, 0].all() or (given[:, 1:] & ~given[:, :-1]).any():
        raise GtRError(f"ids of a prompt are missing: expected 1 or more, then only {PAD} to fill the row")
