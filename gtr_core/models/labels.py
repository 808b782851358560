"""Class labels by name or index."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from ..errors import GtRError
from .mar import MARSpec


@cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 ImageNet class names in label order; names that ImageNet uses twice say which one they are."""
    text = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def class_names(spec: MARSpec) -> tuple[str, ...]:
    """The names of a model's classes: its own, ImageNet's for 1000 classes, else the indices."""
    if spec.class_names:
        return spec.class_names
    return imagenet_names() if spec.classes == 1000 else tuple(map(str, range(spec.classes)))


def parse_labels(text: str, spec: MARSpec) -> tuple[int, ...]:
    """Labels of a comma-separated list of indices and names (case does not matter). Raises GtRError."""
    by_name = {name.lower(): label for label, name in enumerate(class_names(spec))}
    entries = [entry.strip() for entry in text.replace("\n", ",").split(",") if entry.strip()]
    if not entries:
        raise GtRError("no class given: expected indices or names, such as '207, 360'")
    return tuple(_label(entry, by_name, spec) for entry in entries)


def _label(entry: str, by_name: dict[str, int], spec: MARSpec) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,9}", entry):
        label = int(entry)
        if not 0 <= label < spec.classes:
            raise GtRError(f"class {label} is out of range: {spec.name} has classes 0 to {spec.classes - 1}")
        return label
    if entry.lower() not in by_name:
        some = ", ".join(f"'{name}'" for name in class_names(spec)[:4])
        raise GtRError(
            f"{spec.name} has no class '{entry}': expected an index from 0 to {spec.classes - 1} or a "
            f"name such as {some}"
        )
    return by_name[entry.lower()]
