"""Conditioning nodes, and what the sampler reads from a CONDITIONING wire."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ..gtr_core.demo import CLASS_NAMES as DEMO_NAMES
from ..gtr_core.errors import GtRError
from ..gtr_core.models.labels import class_names, imagenet_names, parse_labels
from ..gtr_core.models.mar import MARSpec
from ._api import MarModel, io
from ._models import ModelHandle

logger = logging.getLogger("gtr_mar")

LABELS = "gtr_labels"
DEMO_PREFIX = "demo "
CLASS_OPTIONS = [
    *(f"{label}: {name}" for label, name in enumerate(imagenet_names())),
    *(f"{DEMO_PREFIX}{label}: {name}" for label, name in enumerate(DEMO_NAMES)),
]


class ClassCondition(io.ComfyNode):
    """Class labels -> CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_ClassCondition",
            display_name="Class Label",
            category="GtR/conditioning",
            description="What a class-conditional model draws: one class, or a list with one class per image.",
            search_aliases=["imagenet class", "mar class", "gtr"],
            inputs=[
                MarModel.Input("model"),
                io.Combo.Input(
                    "class_name",
                    options=CLASS_OPTIONS,
                    default="207: golden retriever",
                    tooltip="One of the 1000 ImageNet classes, or a class of the demo model.",
                ),
                io.String.Input(
                    "class_list",
                    default="",
                    optional=True,
                    tooltip="Indices or names, separated by commas, one per image of the batch, such as "
                    "'207, 360, 388'. Used instead of class_name when not empty.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="positive")],
        )

    @classmethod
    def execute(cls, model: ModelHandle, class_name: str, class_list: str = "") -> io.NodeOutput:
        if model.spec.condition != "label":
            raise GtRError(f"{model.spec.name} has no classes: use 'LightGen Text Encode' for it")
        labels = parse_labels(class_list, model.spec) if class_list.strip() else (chosen_label(class_name, model.spec),)
        return io.NodeOutput(
            [[torch.tensor(labels, dtype=torch.float32)[:, None, None], {"pooled_output": None, LABELS: labels}]]
        )


def chosen_label(option: str, spec: MARSpec) -> int:
    """The label of a combo entry, checked against the model's own classes."""
    number, _, name = option.removeprefix(DEMO_PREFIX).partition(": ")
    names = class_names(spec)
    if not number.isdecimal() or int(number[:9]) >= len(names) or names[int(number)] != name:
        raise GtRError(
            f"class '{option}' is not one of {spec.name}'s {len(names)} classes (0: {names[0]}, ...): "
            + (
                f"choose an entry that begins with '{DEMO_PREFIX.strip()}'"
                if names == DEMO_NAMES
                else "choose another entry, or give indices in class_list"
            )
        )
    return int(number)


def labels_for_batch(
    conditioning: io.Conditioning.Type, images: Sequence[int], spec: MARSpec, what: str
) -> torch.Tensor:
    """Labels (B,) int64: image k of the original batch gets the k-th class, in turn when there are fewer.

    ``images`` are the images' indices in that batch. Raises GtRError.
    """
    labels = only_entry(conditioning, what)[1].get(LABELS)
    if labels is None:
        raise GtRError(
            f"{what} is not a class label: expected the output of 'Class Label'; a MAR model is "
            "class-conditional and cannot use a text prompt"
        )
    if not all(0 <= label < spec.classes for label in labels):
        raise GtRError(
            f"{what} has the classes {list(labels)}, {spec.name} has 0 to {spec.classes - 1}: connect the same "
            "model to Class Label and to the sampler"
        )
    check_count("classes", len(labels), images)
    return torch.tensor([labels[k % len(labels)] for k in images])


def check_count(what: str, count: int, images: Sequence[int]) -> None:
    """Raises GtRError when a whole batch has fewer images than there are conditions for it."""
    if count > len(images) and list(images) == list(range(len(images))):
        raise GtRError(
            f"{count} {what} for a batch of {len(images)}: set batch_size to {count} in the empty latent, or "
            f"give fewer {what}"
        )


def only_entry(conditioning: io.Conditioning.Type, what: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """The tensor and the extras of a CONDITIONING; of combined ones the first is used, with a warning."""
    if not conditioning:
        raise GtRError(f"{what} is empty: connect a condition")
    if len(conditioning) > 1:
        logger.warning("%s combines %d conditions, only the first is used", what, len(conditioning))
    return conditioning[0][0], conditioning[0][1]
