"""Which tensors of a file are the model: behind any wrapper, prefix or convention of averaging.

A file is one tree of tables. Its tensors get the joined keys as names, such as ``model_ema.module.class_emb.weight``,
and a state dict is found where all of a family's anchors stand behind the same prefix. The words of that prefix say
whether the weights are averaged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import GtRError
from ..models import AUTOENCODERS, FAMILIES
from ..models.mar import DETOK_SAVER
from ..models.spec import Traces
from ..models.strangers import stranger_of
from .pickles import Name, Opaque, Skipped
from .stored import Stored

MODEL, VAE = "model", "vae"
STATED = ("ema", "model")
MOST_STEPS, MOST_TENSORS, MOST_SETS, MOST_LISTS, DEEPEST = 2_000_000, 100_000, 64, 5_000, 48
LONGEST_NAMES, LONGEST_ENTRY = 32 << 20, 200  # characters of all names together, and of one that is shown
# Words of a prefix that tell which weights stand behind it; the innermost that tells counts.
AVERAGED = frozenset({"ema", "emas", "averaged", "average", "avg", "swa", "polyak", "shadow"})
RAW = frozenset({"online", "raw", "current", "collected", "student", "live", "nonema"})
NEGATED = frozenset({"non", "no", "without"})
# Entries that only one training code leaves beside the weights.
SAVERS = {"loss_scaler": DETOK_SAVER, "last_elapsed_time": DETOK_SAVER}
USUAL = frozenset({"model", "net", "network", "generator", "module", "transformer", "denoiser"})
# What optimizers keep is averaged too, but it is not weights.
OPTIMIZERS = re.compile(r"(^|_)(opt|optim|optimizers?)(_|$)|optimizer|^exp_")
# A module that was pickled whole keeps its tensors in tables of these names.
MODULE_TABLES = frozenset({"_parameters", "_buffers", "_modules"})
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
DECAY = re.compile(r"\.(\d+)|(?<![\d.])0*(99\d+)")


@dataclass
class Names:
    """All tensors of a tree by name, the path of the table of each, lists of tensors, and what else has a name."""

    tensors: dict[str, Stored] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[Stored]] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    letters: int = 0

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """What stands before the names of torch's AveragedModel, which counts how many weights it has averaged."""
        ends = "n_averaged"
        return tuple(f"{name.removesuffix(ends)}module." for name in self.tensors if name.endswith(ends))

    @cached_property
    def wrappers(self) -> tuple[str, ...]:
        """The prefixes of all tables but the outermost."""
        return tuple(f"{table}." for table in dict.fromkeys(self.tables.values()) if table)

    def walk(self, value: Any, path: str, table: str, depth: int = 0) -> None:
        """Adds what stands under ``path``; ``table`` is the path of the table that holds it."""
        if isinstance(value, Stored):
            self.tensors[path], self.tables[path] = value, table
            if len(self.tensors) > MOST_TENSORS:
                raise GtRError(f"it holds more than {MOST_TENSORS} tensors: choose a model's checkpoint")
        elif depth == DEEPEST:
            return
        elif isinstance(value, dict):
            for key, entry in value.items():
                self._spend(1, 0)
                if isinstance(entry, HOLDERS):
                    inner = path if key in MODULE_TABLES else self._below(path, key)
                    self.walk(entry, inner, path, depth + 1)
        elif isinstance(value, Opaque):
            self.others[path] = str(value)
            for part in (value.entries, value.state, value.values):
                self.walk(part, path, table, depth + 1)
        elif isinstance(value, (list, tuple)) and any(isinstance(entry, HOLDERS) for entry in value[:4]):
            self._spend(len(value), 0)
            if all(isinstance(entry, Stored) for entry in value):
                self.lists[path] = list(value)
            for index, entry in enumerate(value):
                self.walk(entry, self._below(path, str(index)), path, depth + 1)

    def _below(self, path: str, key: str) -> str:
        self._spend(0, len(path) + len(key) + 1)
        return f"{path}.{key}" if path else key

    def _spend(self, steps: int, letters: int) -> None:
        self.steps += steps
        self.letters += letters
        if self.steps > MOST_STEPS or self.letters > LONGEST_NAMES:
            raise GtRError("it holds tables inside tables without an end: choose a model's checkpoint")


HOLDERS = (Stored, dict, list, tuple, Opaque)


@dataclass(frozen=True, eq=False)
class StateDict:
    """One set of weights in a file, behind a ``prefix``; ``weights`` is ``ema``, ``model`` or ``unknown``.

    ``usual`` says which weights the original code samples with, ``others`` what stands under a name instead of a
    tensor. ``certain`` tells that a word says so where the weights are raw, not only that they are a model's.
    ``entries`` are those of all sets of its kind in the file, where there are several.
    """

    prefix: str
    kind: str
    usual: str
    weights: str
    tensors: Mapping[str, Stored]
    anchors: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    certain: bool = False
    entries: tuple[str, ...] = ()

    @property
    def entry(self) -> str:
        """Where it stands in its file, for people: printable and short; empty for a file that is one table."""
        text = self.prefix[:LONGEST_ENTRY].rstrip(".")
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def choose(content: Any, kind: str | None = None, wanted: str | None = None, stated: str | None = None) -> StateDict:
    """The state dict to take from a file's content.

    ``kind`` is ``model`` or ``vae`` where the caller knows; by default a model is looked for first. ``wanted`` are
    the weights: ``ema``, ``model``, the name of an entry, or None for what the original code samples with. ``stated``
    is what the file says about its only weights. Raises GtRError, without the file's name.
    """
    names = Names()
    names.walk(content, "", "")
    stranger = stranger_of(names.tensors)
    if stranger is not None:
        raise GtRError(f"it is {stranger.what}: {stranger.remedy}")
    found = _state_dicts(names)
    for looked_for in (kind,) if kind else (MODEL, VAE):
        sets = [state for state in found if state.kind == looked_for]
        if len(sets) == 1 and stated in STATED:
            sets = [replace(sets[0], weights=stated)]
        if sets:
            entries = tuple(dict.fromkeys(state.entry for state in sets if state.entry))
            return replace(_pick(sets, wanted, names), entries=entries if len(sets) > 1 else ())
    return _plain(content, names, stated)


def traces_of(content: Any) -> Traces:
    """What the outermost table tells beside the tensors."""
    if not isinstance(content, dict):
        return Traces()
    saver = next((saver for entry, saver in SAVERS.items() if entry in content), "")
    arguments = content.get("args")
    stated = arguments.state if isinstance(arguments, Opaque) else arguments
    numbers = {key: value for key, value in stated.items() if type(value) is int} if isinstance(stated, dict) else {}
    return Traces(saver, numbers)


# Finding state dicts


def _state_dicts(names: Names) -> list[StateDict]:
    """Every set of weights of a known architecture, each once."""
    known = [(MODEL, family.weights, family.anchors) for family in FAMILIES.values()]
    known += [(VAE, "ema", family.anchors) for family in AUTOENCODERS.values()]
    places = [(prefix, *each) for each in known for prefix in _prefixes(names, each[-1])]
    parts = {
        prefix + part
        for family in FAMILIES.values()
        for part in family.parts
        for prefix in _prefixes(names, family.anchors)
    }
    places = [place for place in places if place[0] not in parts]
    bare = {prefix for *_, anchors in known for prefix in _prefixes(names, tuple(map(_bare, anchors)))}
    if len(places) + len(bare) > MOST_SETS or len(names.lists) > MOST_LISTS:
        raise GtRError(f"it holds more than {MOST_SETS} models: choose the checkpoint of one")
    # What belongs to a state dict inside another one, or to a copy without dots, is not the outer one's.
    taken = {prefix for prefix, *_ in places} | {before[: before.rfind(".") + 1] for before in bare} - {""}
    unused = {family.anchors: re.compile(family.unused) for family in FAMILIES.values() if family.unused}
    found = []
    for prefix, kind, usual, anchors in places:
        weights, certain = _label(names, prefix)
        tensors = _behind(names, prefix, anchors, tuple(other for other in taken if other != prefix))
        if anchors in unused:
            tensors = {name: tensor for name, tensor in tensors.items() if not unused[anchors].match(name)}
        others = {
            name[len(prefix) :]: what
            for name, what in names.others.items()
            if name.startswith(prefix) and what and len(name) > len(prefix)
        }
        found.append(StateDict(prefix, kind, usual, weights, tensors, anchors, others, certain))
    for state in list(found):
        found += _without_dots(names, state, bare)
        found += _in_order(names, state)
    return _related(_distinct(found), averaging="averaging_state" in names.tables.values())


def _bare(name: str) -> str:
    return name.replace(".", "")


def _prefixes(names: Names, anchors: tuple[str, ...]) -> Iterator[str]:
    """What stands before all of the anchors at once: nothing, or words that end with a dot where anchors have dots."""
    first, others = anchors[0], anchors[1:]
    for name in names.tensors:
        if name.endswith(first):
            prefix = name[: len(name) - len(first)]
            ends = prefix[-1:] in ("", ".") or "." not in first
            if ends and all(prefix + other in names.tensors for other in others) and not _of_optimizer(prefix):
                yield prefix


def _behind(names: Names, prefix: str, anchors: tuple[str, ...], inner: tuple[str, ...]) -> dict[str, Stored]:
    """The tensors behind a prefix, without those of state dicts inside."""
    found = [name for name in names.tensors if name.startswith(prefix)]
    inner = tuple(other for other in inner if other.startswith(prefix))
    if inner:
        found = [name for name in found if not name.startswith(inner)]
    tables = {names.tables[prefix + anchor] for anchor in anchors}
    if any(prefix.startswith(f"{table}." if table else "") for table in tables):
        # One flat table: what is nested in it belongs to something else, such as an optimizer.
        found = [name for name in found if names.tables[name] in tables]
    return {name[len(prefix) :]: names.tensors[name] for name in found}


def _without_dots(names: Names, state: StateDict, bare: set[str]) -> Iterator[StateDict]:
    """Copies of a state dict whose names lost their dots (LDM's LitEma); what was not averaged stays as it is."""
    own = {_bare(name): name for name in state.tensors}
    for before in bare:
        copies = {name: names.tensors[before + plain] for plain, name in own.items() if before + plain in names.tensors}
        if 2 * len(copies) > len(state.tensors) == len(own):
            weights, _ = _label(names, before)
            yield replace(state, prefix=before, weights=weights, tensors={**state.tensors, **copies}, certain=False)


def _in_order(names: Names, state: StateDict) -> Iterator[StateDict]:
    """Averages kept as a list in the order of a state dict (torch-ema and diffusers: shadow_params)."""
    shapes = [tensor.shape for tensor in state.tensors.values()]
    for path, values in names.lists.items():
        if [value.shape for value in values] != shapes or _of_optimizer(path):
            continue
        if _label(names, f"{path}.")[0] == "ema":
            tensors = dict(zip(state.tensors, values))
            yield replace(state, prefix=f"{path}.", weights="ema", tensors=tensors, certain=False)


def _distinct(found: list[StateDict]) -> list[StateDict]:
    """Without those that are another name of the same tensors under the same label."""
    seen: dict[tuple, StateDict] = {}
    for state in found:
        places = frozenset((name, tensor.place) for name, tensor in state.tensors.items())
        seen.setdefault((places, state.weights), state)
    return list(seen.values())


# Which weights they are


def _label(names: Names, prefix: str) -> tuple[str, bool]:
    """``ema``, ``model`` or ``unknown`` by a prefix, and whether a word says that the weights are the raw ones."""
    if prefix.startswith(names.counted):
        return "ema", False
    parts = prefix.split(".")
    for part in reversed(parts):
        words = {word.lower() for word in WORDS.findall(part)}
        if words & RAW or (words & NEGATED and words & AVERAGED):
            return "model", True
        if words & AVERAGED:
            return "ema", False
    # A word before every name may be an attribute's; the name of a table says that these are the raw weights.
    outermost = {word.lower() for word in WORDS.findall(parts[0])}
    wrapped = outermost & USUAL and prefix.startswith(names.wrappers)
    return ("model" if wrapped else "unknown"), False


def _of_optimizer(path: str) -> bool:
    return any(OPTIMIZERS.search(part) for part in path.lower().split("."))


def _related(found: list[StateDict], *, averaging: bool) -> list[StateDict]:
    """Labels that follow from the neighbours: beside averaged weights the others are raw, beside raw ones averaged.

    ``averaging`` tells of Lightning's WeightAveraging, which puts the averaged weights where the raw ones were.
    """
    result = []
    for state in found:
        others = [other for other in found if other is not state and other.kind == state.kind]
        if state.weights == "unknown" and any(other.weights == "ema" for other in others):
            state = replace(state, weights="model")
        elif state.weights == "unknown" and (averaging or (len(others) == 1 and others[0].certain)):
            state = replace(state, weights="ema")
        result.append(state)
    return result


# Choosing


def _pick(found: list[StateDict], wanted: str | None, names: Names) -> StateDict:
    if wanted not in ("ema", "model", None):
        return _entry(found, wanted)
    usual = found[0].usual
    pool = [state for state in found if state.weights == (wanted or usual)]
    if not pool and wanted:
        raise GtRError(_missing(found, wanted))
    if not pool and usual == "ema":
        _check_unused(found, names)
    best = _slowest(pool or found)
    if len(best) > 1:
        listed = ", ".join(f"'{state.entry}'" for state in best[:6])
        raise GtRError(
            f"it holds {len(best)} sets of {CALLED[best[0].weights]}weights, and nothing says which one to use: "
            f"convert it with --weights and one of {listed}"
        )
    return best[0]


CALLED = {"ema": "averaged ", "model": "raw ", "unknown": ""}


def _entry(found: list[StateDict], wanted: str) -> StateDict:
    for state in found:
        if state.entry == wanted:
            return state
    listed = dict.fromkeys(filter(None, ("ema", "model", *(state.entry for state in found[:6]))))
    raise GtRError(f"weights '{wanted}': expected {', '.join(listed)}")


def _missing(found: list[StateDict], wanted: str) -> str:
    there = sorted({state.weights for state in found})
    if there == ["unknown"]:
        return (
            f"it does not say whether its weights are averaged, so the {CALLED[wanted]}ones cannot be chosen: do not "
            "ask for some"
        )
    return f"it has no {wanted} weights, only {', '.join(there)}: ask for those"


def _slowest(pool: list[StateDict]) -> list[StateDict]:
    """Of several averages those of the largest decay that their names state, such as 0.9999."""
    if any(state.weights != "ema" for state in pool):
        return pool
    decays = [
        max((float(f"0.{''.join(digits)}") for digits in DECAY.findall(state.entry)), default=0.0) for state in pool
    ]
    return [state for state, decay in zip(pool, decays) if decay == max(decays)]


def _check_unused(found: list[StateDict], names: Names) -> None:
    """Raises GtRError where averaged weights are in the file, but in a form that cannot be told apart."""
    taken = {tensor.place for state in found for tensor in state.tensors.values()}
    counts: dict[str, int] = {}
    for name, tensor in names.tensors.items():
        table = names.tables[name] or name.partition(".")[0]
        if tensor.place not in taken:
            counts[table] = counts.get(table, 0) + 1
    needed = max(min(len(state.tensors) for state in found) // 2, 1)
    for table, count in counts.items():
        words = {word.lower() for word in WORDS.findall(table[:LONGEST_ENTRY])}
        if count >= needed and words & AVERAGED and not words & NEGATED and not _of_optimizer(table):
            raise GtRError(
                f"the averaged weights in '{table[:LONGEST_ENTRY]}' ({count} tensors) cannot be matched with the "
                f"{len(found[0].tensors)} names of the model: save them as a table of names, or convert the raw ones "
                "with --weights model"
            )


# Files of something else


def _plain(content: Any, names: Names, stated: str | None) -> StateDict:
    """The table of tensors of a file that is no known model. Raises GtRError where there is none."""
    if not names.tensors:
        raise GtRError(_nothing(content))
    counts = Counter(names.tables.values())
    table = "" if "" in counts else counts.most_common(1)[0][0]
    start = f"{table}." if table else ""
    tensors = {name[len(start) :]: names.tensors[name] for name in names.tensors if names.tables[name] == table}
    if "" in tensors:
        raise GtRError(_nothing(content))
    return StateDict(start, "", "ema", stated if stated in STATED else "unknown", tensors)


def _nothing(content: Any) -> str:
    """What a file without a table of tensors holds."""
    if isinstance(content, Stored):
        return "it holds a Tensor, expected a table of named tensors: choose a model checkpoint"
    if isinstance(content, dict) and content:
        odd = [name for name, value in content.items() if isinstance(value, (Opaque, Name))]
        name = (odd or list(content))[0]
        return f"entry '{name}' is {_described(content[name])}, expected named tensors: choose a model checkpoint"
    return f"it holds {_described(content)}, expected a table of named tensors: choose a model checkpoint"


def _described(value: Any) -> str:
    if isinstance(value, (Opaque, Name)):
        return f"an object of {value}, which was not executed"
    return f"a {value if isinstance(value, Skipped) else type(value).__name__}"
