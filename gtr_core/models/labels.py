"""Class labels as people write them: indices, names, entries of the node's menu, WordNet ids."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from ..errors import GtRError, nearest
from .spec import ModelSpec

# What separates the entries of a list; the wide ones come from Chinese and Japanese keyboards.
SEPARATORS = re.compile("[,;\n\uff0c\uff1b\u3001]")
# '207: golden retriever', as the menu of Class Label writes it, and 'demo 3: pizza'.
MENU_ENTRY = re.compile(r"(?:demo )?(\d{1,9})\s*[:\uff1a]\s*(.+)", re.IGNORECASE)


@cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 ImageNet class names in label order; names that ImageNet uses twice say which one they are."""
    return _lines("imagenet_classes.txt")


@cache
def wordnet_ids() -> dict[str, int]:
    """The label of every ImageNet class by its WordNet id, such as n02099601."""
    return {name: label for label, name in enumerate(_lines("imagenet_wordnet_ids.txt"))}


def class_names(spec: ModelSpec) -> tuple[str, ...]:
    """The names of a model's classes: its own, ImageNet's for 1000 classes, else the indices."""
    if spec.class_names:
        return spec.class_names
    return imagenet_names() if spec.classes == 1000 else tuple(map(str, range(spec.classes)))


def parse_labels(text: str, spec: ModelSpec) -> tuple[int, ...]:
    """Labels of a list of indices, names, menu entries and WordNet ids; case does not matter. Raises GtRError."""
    by_name = {name.lower(): label for label, name in enumerate(class_names(spec))}
    if text.strip().lower() in by_name:  # a name that holds a comma
        return (by_name[text.strip().lower()],)
    entries = [entry.strip() for entry in SEPARATORS.split(text) if entry.strip()]
    if not entries:
        raise GtRError("no class given: expected indices or names, such as '207, 360'")
    return tuple(_label(entry, by_name, spec) for entry in entries)


def _label(entry: str, by_name: dict[str, int], spec: ModelSpec) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,9}", entry):
        label = int(entry)
        if not 0 <= label < spec.classes:
            raise GtRError(f"class {label} is out of range: {spec.name} has classes 0 to {spec.classes - 1}")
        return label
    name = entry.lower()
    if name in by_name:
        return by_name[name]
    if spec.classes == 1000 and not spec.class_names and name in wordnet_ids():
        return wordnet_ids()[name]
    menu = MENU_ENTRY.fullmatch(entry)
    if menu and by_name.get(menu[2].strip().lower()) == int(menu[1]):
        return int(menu[1])
    names = class_names(spec)
    some = ", ".join(f"'{known}'" for known in nearest(entry, names) or names[:4])
    raise GtRError(
        f"{spec.name} has no class '{entry}': expected an index from 0 to {spec.classes - 1} or a name such as {some}"
    )


def _lines(name: str) -> tuple[str, ...]:
    return tuple(Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines())
