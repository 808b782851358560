"""The conditioning node of class-conditional models."""

from __future__ import annotations

from ..gtr_core.demo import CLASS_NAMES as DEMO_NAMES
from ..gtr_core.errors import GtRError
from ..gtr_core.models.labels import class_names, imagenet_names, parse_labels
from ..gtr_core.models.mar import MARSpec
from ._api import MarModel, io
from ._models import ModelHandle
from .conditions import LABELS, label_tensor, one_encoder

DEMO_PREFIX = "demo "
# Follows the model: whatever is loaded, a graph with every value at its default runs.
DEFAULT, EXAMPLE = "default", "golden retriever"
CLASS_OPTIONS = [
    DEFAULT,
    *(f"{label}: {name}" for label, name in enumerate(imagenet_names())),
    *(f"{DEMO_PREFIX}{label}: {name}" for label, name in enumerate(DEMO_NAMES)),
]


class ClassCondition(io.ComfyNode):
    """Class labels -> CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_ClassCondition",
            display_name="Class Label (MAR)",
            category="GtR/conditioning",
            description="What a class-conditional model draws: one class, or a list with one class per image.",
            search_aliases=[
                "imagenet",
                "imagenet class",
                "class conditioning",
                "class to image",
                "prompt",
                "mar class",
                "demo class",
                "gtr",
            ],
            inputs=[
                MarModel.Input("model", tooltip="The model that will draw: its classes are the ones to choose from."),
                io.Combo.Input(
                    "class_name",
                    options=CLASS_OPTIONS,
                    default=DEFAULT,
                    tooltip="A class of the connected model: one of the 1000 of ImageNet, or one of the demo model. "
                    "default: its golden retriever, or its first class.",
                ),
                io.String.Input(
                    "class_list",
                    default="",
                    optional=True,
                    tooltip="Indices or names, separated by commas, one per image of the batch, such as "
                    "'207, 360, 388'. Used instead of class_name when not empty.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="For positive or negative of GtR Sampler.")
            ],
        )

    @classmethod
    def execute(cls, model: ModelHandle, class_name: str, class_list: str = "") -> io.NodeOutput:
        if model.spec.condition != "label":
            raise GtRError(f"{model.spec.name} has no classes: use {one_encoder(model.spec)} for it")
        labels = parse_labels(class_list, model.spec) if class_list.strip() else (chosen_label(class_name, model.spec),)
        return io.NodeOutput([[label_tensor(labels), {"pooled_output": None, LABELS: labels}]])


def chosen_label(option: str, spec: MARSpec) -> int:
    """The label of a combo entry, checked against the model's own classes."""
    names = class_names(spec)
    if option == DEFAULT:
        return names.index(EXAMPLE) if EXAMPLE in names else 0
    number, _, name = option.removeprefix(DEMO_PREFIX).partition(": ")
    if not number.isdecimal() or int(number[:9]) >= len(names) or names[int(number)] != name:
        raise GtRError(
            f"class '{option}' is not one of {spec.name}'s {len(names)} classes (0: {names[0]}, ...): "
            + (
                f"choose 'default' or an entry that begins with '{DEMO_PREFIX.strip()}'"
                if names == DEMO_NAMES
                else "choose 'default' or another entry, or give indices in class_list"
            )
        )
    return int(number)
