#!/usr/bin/env python3
"""Queue one run per row of a CSV file in a running ComfyUI and save its images, without a browser.

    python run_csv.py prompts.csv --workflow demo.json --url http://127.0.0.1:8188 --out images

The first row of the table names the columns. An empty cell keeps the workflow's value, and an empty row is skipped.
    class, prompt                    the class list of Class Label, the text of a text encode node of the pack
    seed, cfg, temperature, revise, preset   of GtR Sampler and GtR Scheduler
    batch, name                      images per run, and what follows the row's number in the names of the saved files
    count                            runs of this row: run n has the seed + n x batch, so that no image comes twice
    NODE.INPUT, TITLE.INPUT          any input of the node with this id or title: 5.steps, GtR Sampler.cfg_start
    #ANYTHING                        a note, which is not read

Every cell is checked against the server's list of inputs before the first row is queued. A row that cannot be used is
named, and the others are drawn; with --strict nothing is drawn then. The script waits for a server that restarts and
queues again what was lost. results.csv in the output folder has a line per image: row, file, seed, seconds, error.
Started again, the same command draws only what is missing there. Ctrl-C and SIGTERM take the queued rows back.
The exit code is 1 if any row failed.
"""

import sys

if sys.version_info < (3, 10):  # Python 3.7 can still read this file, and gets here.
    sys.exit(
        "run_csv.py needs Python 3.10 or newer, this is %d.%d: start it with ComfyUI's Python" % sys.version_info[:2]
    )

import argparse
import asyncio
import contextlib
import copy
import csv
import difflib
import errno
import hashlib
import io
import itertools
import json
import math
import os
import platform
import re
import signal
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

try:
    import aiohttp
    from tqdm import tqdm
except ImportError as error:
    sys.exit(
        f"run_csv.py needs {error.name}, which ComfyUI brings: start it with ComfyUI's Python (venv/bin/python, or "
        rf"python_embeded\python.exe on Windows), or install it: {sys.executable} -m pip install aiohttp tqdm"
    )

Graph = dict[str, Any]
COLUMNS: dict[str, tuple[tuple[str, ...], str]] = {
    "class": (("GtR_ClassCondition",), "class_list"),
    "prompt": (("GtR_EncodeText", "GtR_EncodePrompt"), "text"),
    "seed": (("GtR_Sampler",), "seed"),
    "cfg": (("GtR_Sampler",), "cfg"),
    "temperature": (("GtR_Sampler",), "temperature"),
    "revise": (("GtR_Sampler",), "revise"),
    "preset": (("GtR_Scheduler",), "preset"),
    "batch": (("GtR_EmptyLatent",), "batch_size"),
    "name": ((), "filename_prefix"),
}
"""Short names of columns: the node's types (none: any) and its input."""
FIELDS = ("row", "file", "seed", "seconds", "error", "key")
SEEDS = 2**64
STRIKES = 3
"""So often may the server end while it draws a row, before the row is given up."""
POLL_SECONDS, LOOK_SECONDS = 5.0, 60.0
NEWS_SECONDS = 1.0
CLOSED = "it closed the connection"
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=120)
GATEWAY = (502, 503, 504)
"""What a proxy answers while the server behind it is down."""


class Problem(ValueError):
    """Something to be told in one line."""


class Failed(Exception):
    """Why a run gave no images."""


class Lost(Exception):
    """The server does not answer (any more)."""


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """The rows that hold something, by number (1 is the first below the columns' names), and those that are no rows."""

    columns: list[str]
    rows: dict[int, dict[str, str]]
    bad: dict[int, str]


def read_table(path: Path, encoding: str = "") -> Table:
    """Read a CSV file with commas, semicolons or tabs. Raises Problem if it is none."""
    lines = _decode(path, encoding)
    separator = re.match(r'"?sep=(.)"?\r?\n', lines)  # Excel's own first line
    if separator:
        lines = lines[separator.end() :]
    lines = lines.lstrip("\r\n")
    head = re.split(r"[\r\n]", lines, maxsplit=1)[0]
    delimiter = separator[1] if separator else _delimiter(head)
    reader = csv.reader(io.StringIO(lines, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: list[str] = []
    rows: dict[int, dict[str, str]] = {}
    bad: dict[int, str] = {}
    number = -1
    try:
        for number, cells in enumerate(reader):
            if number == 0:
                columns = _names(cells)
                continue
            cells = [cell.strip() for cell in cells]
            if any(cells[len(columns) :]):
                bad[number] = (
                    f"row {number} has {len(cells)} cells for {len(columns)} columns: put texts with "
                    f"{_word(delimiter)} in quotation marks"
                )
                continue
            row = {name: cell for name, cell in zip(columns, cells) if cell and not name.startswith("#")}
            if "" in row:
                bad[number] = f"row {number}: '{shorten(row[''])}' stands in a column without a name: name the column"
            elif row:
                rows[number] = row
    except csv.Error as error:
        where = f"row {number + 1}" if number >= 0 else "the line of column names"
        raise Problem(
            f"{path}, {where}: the quotation marks do not fit ({error}): put the whole text in quotation marks and "
            'write "" for one inside it'
        ) from None
    if not rows and not bad:
        raise Problem(f"{path} should hold a line of column names and at least one row, and has no row")
    return Table([name for name in columns if name and not name.startswith("#")], rows, bad)


def _decode(path: Path, encoding: str) -> str:
    data = path.read_bytes()
    advice = "save it as CSV UTF-8 (Excel: Save As, CSV UTF-8; LibreOffice: Text CSV) and give that file"
    kind = {b"PK\x03\x04": "a workbook (.xlsx, .ods)", b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls)"}.get(
        data[:4]
    )
    if kind:
        raise Problem(f"{path} is {kind}, not a CSV file: {advice}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = encoding or "utf-16"
    try:
        text = data.decode(encoding or "utf-8-sig").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Problem(
            f"{path} should be UTF-8, and byte 0x{data[error.start]:02x} in line {line} is not: {advice}, or name its "
            "encoding, such as --encoding cp1252"
            if not encoding
            else f"{path} is not {encoding}: line {line} cannot be read"
        ) from None
    except LookupError:
        raise Problem(f"--encoding {encoding} is not known to Python: use a name such as cp1252 or gbk") from None
    if "\0" in text:
        raise Problem(f"{path} holds zero bytes, as UTF-16 and binary files do: {advice}")
    return text


def _delimiter(head: str) -> str:
    """What stands between the columns' names. The rows are not asked: their texts are full of commas."""
    try:
        return csv.Sniffer().sniff(head, delimiters=",;\t|").delimiter
    except csv.Error:
        return ","


def _names(cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    folded = [name.casefold() for name in names if name and not name.startswith("#")]
    twice = next((name for name in names if folded.count(name.casefold()) > 1), None)
    if twice:
        raise Problem(f"the column '{twice}' stands twice in the table: keep one of them")
    return names


def _word(delimiter: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs"}.get(delimiter, f"'{delimiter}'")


# -- the workflow ------------------------------------------------------------------------------------------------------


def read_workflow(path: Path) -> Graph:
    """Read a workflow in API format. Raises Problem if the file is none."""
    export = "in ComfyUI's menu choose Export (API), and give that file"
    try:
        graph = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        raise Problem(f"{path} should be a workflow in API format, and is not JSON: {export}") from None
    if isinstance(graph, dict) and isinstance(graph.get("nodes"), list):
        raise Problem(f"{path} is a workflow as the page saves it, and not in API format: {export}")
    if (
        not isinstance(graph, dict)
        or not graph
        or not all(
            isinstance(entry, dict)
            and isinstance(entry.get("class_type"), str)
            and isinstance(entry.get("inputs"), dict)
            for entry in graph.values()
        )
    ):
        raise Problem(f"{path} is not a workflow in API format: {export}")
    return graph


class Input(NamedTuple):
    """What a node takes under a name."""

    node: str
    name: str
    kind: str
    settings: dict[str, Any]


def inputs_of(workflow: Graph, info: Graph, node: str) -> dict[str, Input]:
    """The inputs of a node by name: as the server declares them, else by the values that the workflow holds."""
    entry = workflow[node]
    declared = _declared(info.get(entry["class_type"], {}).get("input") or {})
    kinds = {name: (_kind_of(value), {}) for name, value in entry["inputs"].items()} | declared
    return {name: Input(node, name, *kind) for name, kind in kinds.items()}


def _declared(groups: dict[str, Any], prefix: str = "") -> dict[str, tuple[str, dict[str, Any]]]:
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for group in ("required", "optional"):
        for name, declared in (groups.get(group) or {}).items():
            kind, *more = declared or ["*"]
            settings = dict(more[0]) if more and isinstance(more[0], dict) else {}
            if isinstance(kind, list):
                kind, settings["options"] = "COMBO", kind
            elif kind == "COMFY_DYNAMICCOMBO_V3":
                options = settings.get("options", ())
                for option in options:
                    found.update(_declared(option["inputs"], f"{prefix}{name}."))
                kind, settings["options"] = "COMBO", [option["key"] for option in options]
            found[prefix + name] = (str(kind), settings)
    return found


def _kind_of(held: Any) -> str:
    for kind, name in ((bool, "BOOLEAN"), ((int, float), "INT,FLOAT"), (str, "STRING")):
        if isinstance(held, kind):
            return name
    return "a link"


def resolve(workflow: Graph, columns: Iterable[str], info: Graph) -> dict[str, list[Input]]:
    """The inputs that each column sets. Raises Problem for a column that sets none, or none that a table can set."""
    takes = {node: inputs_of(workflow, info, node) for node in workflow}
    found = {column: _targets(workflow, column, takes) for column in columns if column.casefold() != "count"}
    owner: dict[tuple[str, str], str] = {}
    for column, inputs in found.items():
        for node, name, kind, _ in inputs:
            held = workflow[node]["inputs"].get(name)
            if isinstance(held, list):
                raise Problem(f"column '{column}': node {held[0]} is wired to this input: set that one's value")
            if not VALUES.intersection(kind.split(",")):
                raise Problem(f"column '{column}': the input takes {kind} from another node: remove the column")
            if owner.setdefault((node, name), column) != column:
                raise Problem(f"the columns '{owner[node, name]}' and '{column}' set the same input: keep one of them")
    return found


def _targets(workflow: Graph, column: str, takes: dict[str, dict[str, Input]]) -> list[Input]:
    types, short = COLUMNS.get(column.casefold(), ((), ""))
    found = [node for node in workflow if short in takes[node] and (not types or workflow[node]["class_type"] in types)]
    if short and found:
        return [takes[node][short] for node in found]
    hint = ""
    for dot in (place.start() for place in re.finditer(r"\.", column)):
        node, name = column[:dot].strip(), column[dot + 1 :].strip()
        titled = [key for key in workflow if node and _title(workflow, key) == node.casefold()]
        nodes = [node] if node in workflow else titled
        if len(nodes) > 1:
            hint = f"the nodes {', '.join(nodes)} have the title '{node}': use {nodes[0]}.{name}"
        elif nodes and name in takes[nodes[0]]:
            return [takes[nodes[0]][name]]
        elif nodes:
            hint = f"{called(workflow, nodes[0])} has {_listing(takes[nodes[0]], name)}"
    found = [node for node in workflow if column in takes[node]]
    if len(found) == 1:
        return [takes[found[0]][column]]
    if found:
        hint = f"the nodes {', '.join(found)} have such an input: use {found[0]}.{column}"
    present = {entry["class_type"] for entry in workflow.values()}
    known = [name for name, (types, _) in COLUMNS.items() if not types or present.intersection(types)] + ["count"]
    hint = hint or f"use {_listing(known, column)}, NODE.INPUT (such as {next(iter(workflow))}.INPUT) or TITLE.INPUT"
    raise Problem(f"column '{shorten(column)}' sets nothing in this workflow: {hint}")


def _title(workflow: Graph, node: str) -> str:
    return str((workflow[node].get("_meta") or {}).get("title") or "").strip().casefold()


def name_nodes(workflow: Graph, info: Graph) -> None:
    """Give the nodes without a title the one that the server has for their type."""
    for node, entry in workflow.items():
        title = (info.get(entry["class_type"]) or {}).get("display_name")
        if title and not _title(workflow, node):
            entry["_meta"] = {"title": str(title)}


def called(workflow: Graph, node: str, class_type: str = "?") -> str:
    """A node for messages: its number, and its title if it has one, else its type."""
    entry = workflow.get(node) or {"class_type": class_type}
    return f"node {node} ({(entry.get('_meta') or {}).get('title') or entry['class_type']})"


def graphs(workflow: Graph, rows: list[dict[str, str]], info: Graph | None = None) -> list[Graph]:
    """One graph per row: the workflow with the row's values. Raises Problem with the first bad row and its column."""
    columns = resolve(workflow, dict.fromkeys(name for row in rows for name in row), info or {})
    return [fill(workflow, number, row, columns) for number, row in enumerate(rows, start=1)]


def fill(workflow: Graph, number: int, row: dict[str, str], columns: dict[str, list[Input]]) -> Graph:
    """The workflow with the values of one row."""
    graph = copy.deepcopy(workflow)
    for column, cell in row.items():
        for node, name, kind, settings in columns.get(column, ()) if cell.strip() else ():
            try:
                graph[node]["inputs"][name] = value_of(cell, kind, settings)
            except Problem as problem:
                raise Problem(f"row {number}, column '{column}': {problem}") from None
    return graph


# -- cells -------------------------------------------------------------------------------------------------------------

VALUES = {"COMBO", "BOOLEAN", "INT", "FLOAT", "STRING"}
SWITCH = {word: on for on, words in ((True, "true yes on 1"), (False, "false no off 0")) for word in words.split()}
WHOLE, TENTHS = re.compile(r"[+-]?\d+"), re.compile(r"([+-]?\d+)[.,]0{1,2}")
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
# Digits, points and signs of Chinese and Japanese keyboards, and the true minus.
PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x2212: "-"}


def value_of(cell: str, kind: str, settings: dict[str, Any]) -> Any:
    """A cell as the value of an input of this type. Raises Problem without row and column."""
    text = cell.strip()
    kinds = kind.split(",")
    if kind == "COMBO":
        return _choice(text, settings)
    if "BOOLEAN" in kinds:
        plain = text.translate(PLAIN).casefold()
        if plain not in SWITCH:
            raise Problem(f"'{shorten(text)}' is not a switch's value: write true or false")
        return SWITCH[plain]
    if "INT" in kinds and ("FLOAT" not in kinds or WHOLE.fullmatch(text.translate(PLAIN))):
        return _within(_whole(text), settings)
    if "FLOAT" in kinds:
        return _within(_number(text), settings)
    return text


def _whole(text: str) -> int:
    plain = text.translate(PLAIN)
    match = re.fullmatch(WHOLE, plain) or re.fullmatch(TENTHS, plain)
    if match and plain.isascii() and len(plain) < 100:
        return int(match[1] if match.re is TENTHS else plain)
    if "e" in plain.lower() and NUMBER.fullmatch(plain):
        raise Problem(
            f"'{text}' is a number that a spreadsheet has rounded: format the column as text or whole numbers"
        )
    if re.fullmatch(r"[+-]?\d{1,3}([., '\u00a0\u202f\u2019]\d{3})+", plain):
        raise Problem(f"'{text}' may have separators of thousands: write the digits without them")
    raise Problem(f"'{shorten(text)}' is not a whole number")


def _number(text: str) -> float:
    plain = text.translate(PLAIN)
    if THOUSANDS.fullmatch(plain):
        raise Problem(f"'{text}' may be {plain.replace(',', '')} or {plain.replace(',', '.')}: write one of these")
    number = float(plain.replace(",", ".")) if NUMBER.fullmatch(plain) and plain.isascii() else math.nan
    if not math.isfinite(number):
        raise Problem(f"'{shorten(text)}' is not a number: write it as 2.5 or 2,5")
    return number


def _within(number: float, settings: dict[str, Any]) -> float:
    low, high = settings.get("min"), settings.get("max")
    if low is not None and number < low:
        raise Problem(f"{number} is too small: {low} is the least")
    if high is not None and number > high:
        raise Problem(f"{number} is too large: {high} is the most")
    return number


def _choice(text: str, settings: dict[str, Any]) -> Any:
    options = settings.get("options") or []
    # Files that were uploaded after the list was made, and lists that the page fetches: the server decides.
    if not options or settings.get("remote") or any(key.endswith("_upload") and on for key, on in settings.items()):
        return text
    for option in options:
        if str(option) == text:
            return option
    with contextlib.suppress(Problem):
        number = _number(text)
        for option in options:
            if isinstance(option, (int, float)) and not isinstance(option, bool) and option == number:
                return option
    raise Problem(f"'{shorten(text)}' is not in the list: use {_listing(options, text)}")


def _listing(names: Any, wanted: str) -> str:
    """The names to choose from: the similar ones, or the first."""
    names = [str(name) for name in names]
    close = {name.casefold(): name for name in names}
    near = [close[name] for name in difflib.get_close_matches(wanted.casefold(), close, n=3)]
    shown = near or names[:12]
    return ", ".join(shown) + (f" (there are {len(names)})" if len(names) > len(shown) else "")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def shorten(text: str, length: int = 300) -> str:
    """One line of printable characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= length else line[: length - 3] + "..."


# -- what is to be drawn -----------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One run. The key is a digest of the graph: a row that was changed is another job, a row that was moved is not."""

    row: int
    part: str
    graph: Graph
    key: str = ""
    strikes: int = 0

    @property
    def label(self) -> str:
        return f"row {self.row}{self.part}"

    def seed(self, image: int = 0) -> int | str:
        """The seed of an image of the batch; empty if the graph has none or several."""
        entries = self.graph.values()
        given = [entry["inputs"].get("seed") for entry in entries if entry["class_type"] == "GtR_Sampler"]
        if not given:
            image = 0
            given = [entry["inputs"].get("seed", entry["inputs"].get("noise_seed")) for entry in entries]
        # A seed that comes from another node is a link, and is not known here.
        seeds = {(seed + image) % SEEDS if isinstance(seed, int) else "" for seed in given if seed is not None}
        return seeds.pop() if len(seeds) == 1 else ""


def make_jobs(
    workflow: Graph, table: Table, info: Graph, first_seed: int | None = None
) -> tuple[list[Job], dict[int, str]]:
    """The runs of the table, and what is wrong with its other rows. Raises Problem for a column that sets nothing."""
    columns = resolve(workflow, table.columns, info)
    bad, filled, known = dict(table.bad), [], known_classes(info)
    for number, row in table.rows.items():
        try:
            graph = fill(workflow, number, row, columns)
            _check_classes(number, row, graph, columns, known)
            filled.append((number, row, graph, _count(number, row)))
        except Problem as problem:
            bad[number] = str(problem)
    needed = first_seed is not None or any(count > 1 for *_, count in filled)
    seeds = resolve(workflow, ["seed"], info)["seed"] if needed else []
    setters = {column for column, inputs in columns.items() if any(seed in inputs for seed in seeds)}
    room = max((batch_of(graph) * count for *_, graph, count in filled), default=1)
    jobs = []
    for number, row, graph, count in filled:
        start = None if first_seed is None or setters & set(row) else first_seed + (number - 1) * room
        for repeat in range(count):
            own = copy.deepcopy(graph)
            for node, name, *_ in seeds:
                base = own[node]["inputs"].get(name, 0) if start is None else start
                own[node]["inputs"][name] = (base + repeat * batch_of(graph)) % SEEDS
            jobs.append(Job(number, f", run {repeat + 1} of {count}" if count > 1 else "", own))
    _name(jobs)
    return jobs, dict(sorted(bad.items()))


def _count(number: int, row: dict[str, str]) -> int:
    cell = next((cell for column, cell in row.items() if column.casefold() == "count"), "1")
    try:
        return int(value_of(cell, "INT", {"min": 1, "max": 100_000}))
    except Problem as problem:
        raise Problem(f"row {number}, column 'count': {problem}") from None


def batch_of(graph: Graph) -> int:
    """Images per run, as far as the graph says."""
    sizes = [entry["inputs"].get("batch_size") for entry in graph.values()]
    return max((size for size in sizes if isinstance(size, int) and size > 0), default=1)


def _name(jobs: list[Job]) -> None:
    """Give every job its key; equal graphs are numbered."""
    seen: dict[str, int] = {}
    for job in jobs:
        plain = {node: (entry["class_type"], entry["inputs"]) for node, entry in job.graph.items()}
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:20]
        seen[digest] = seen.get(digest, 0) + 1
        job.key = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def shared_seeds(jobs: list[Job]) -> str:
    """One line if rows that differ in nothing but seed and name draw with the same seeds; empty if none do."""
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        if isinstance(job.seed(), int):
            plain = {
                node: {key: value for key, value in entry["inputs"].items() if key not in ("seed", "filename_prefix")}
                for node, entry in job.graph.items()
            }
            alike.setdefault(json.dumps(plain, sort_keys=True), []).append(job)
    pairs = []
    for group in alike.values():
        group.sort(key=lambda job: int(job.seed()))
        pairs += [
            pair
            for pair in itertools.pairwise(group)
            if int(pair[1].seed()) - int(pair[0].seed()) < batch_of(pair[0].graph)
        ]
    if not pairs:
        return ""
    one, two = sorted(pairs[0], key=lambda job: job.row)
    size = batch_of(one.graph)
    more = f" (and {len(pairs) - 1} more pairs of rows)" if len(pairs) > 1 else ""
    return (
        f"{one.label} and {two.label} have the seeds {one.seed()} and {two.seed()} and else the same values, so images "
        f"come twice{more}: image k of a batch has the seed + k; give row n the seed S + n x {size}, or use --seed S"
    )


# -- classes -----------------------------------------------------------------------------------------------------------

LABELS, LOADER, BUILT_IN, DEMO = "GtR_ClassCondition", "GtR_LoadMAR", "demo (built-in)", "demo "
CLASS_SEPARATORS = re.compile("[,;\n\uff0c\uff1b\u3001]")
MENU_ENTRY = re.compile(r"(\d+)\s*[:\uff1a]\s*(.+)")
WORDNET_ID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class KnownClasses:
    """The names in the menu of Class Label: of the demo's classes, and of ImageNet's."""

    demo: tuple[str, ...]
    imagenet: tuple[str, ...]


def known_classes(info: Graph) -> KnownClasses:
    """From entries such as `207: golden retriever` or `demo 3: pizza`; none if the server does not say."""
    settings = _declared((info.get(LABELS) or {}).get("input") or {}).get("class_name", ("", {}))[1]
    found = [re.fullmatch(rf"({DEMO})?\d+: (.+)", str(option)) for option in settings.get("options") or ()]
    return KnownClasses(
        tuple(match[2] for match in found if match and match[1]),
        tuple(match[2] for match in found if match and not match[1]),
    )


def unknown_class(graph: Graph, node: str, known: KnownClasses) -> tuple[str, bool]:
    """The first class in the list of a Class Label whose name is not in the node's menu, empty if there is none, and
    whether that is certain: it is for the built-in demo model, while a model of a file may have names of its own."""
    held = graph[node]["inputs"].get("class_list")
    if not isinstance(held, str) or not held.strip() or not (known.demo or known.imagenet):
        return "", False
    wire = graph[node]["inputs"].get("model")
    loader = graph.get(str(wire[0]), {}) if isinstance(wire, list) and wire else {}
    demo = loader.get("class_type") == LOADER and loader["inputs"].get("model_name") == BUILT_IN
    names = {name.casefold() for name in (known.demo if demo else known.imagenet)}
    if held.strip().casefold() in names:  # a name that holds a comma
        return "", demo
    for entry in filter(None, map(str.strip, CLASS_SEPARATORS.split(held))):
        plain = entry.casefold().removeprefix(DEMO)
        match = MENU_ENTRY.fullmatch(plain)
        name = match[2] if match else plain
        if re.fullmatch(r"[+-]?\d+", plain):
            there = not demo or 0 <= int(plain) < len(names)
        else:
            there = name in names or (not demo and WORDNET_ID.fullmatch(plain) is not None)
        if not there:
            return entry, demo
    return "", demo


def _labels(graph: Graph) -> list[str]:
    """The Class Label nodes."""
    return [node for node, entry in graph.items() if entry["class_type"] == LABELS]


def _check_classes(
    number: int, row: dict[str, str], graph: Graph, columns: dict[str, list[Input]], known: KnownClasses
) -> None:
    for node in _labels(graph):
        entry, certain = unknown_class(graph, node, known)
        if entry and certain:
            wanted = (node, "class_list")
            setters = [name for name in row if wanted in [target[:2] for target in columns.get(name, ())]]
            where = f"column '{setters[0]}'" if setters else called(graph, node)
            raise Problem(
                f"row {number}, {where}: the demo model has no class '{shorten(entry)}': use "
                f"{_listing(known.demo, entry)}"
            )


def unlisted_classes(jobs: list[Job], info: Graph) -> str:
    """One line if rows name classes that are not ImageNet's; empty if none do. Their model may know them."""
    found: dict[int, str] = {}
    known = known_classes(info)
    for job in jobs:
        for node in _labels(job.graph):
            entry = unknown_class(job.graph, node, known)[0]
            if entry:
                found.setdefault(job.row, entry)
    if not found:
        return ""
    row, entry = next(iter(found.items()))
    more = f" (and {len(found) - 1} more rows)" if len(found) > 1 else ""
    near = difflib.get_close_matches(entry.casefold(), known.imagenet, n=3)
    meant = f"; ImageNet has {', '.join(near)}" if near else ""
    return (
        f"row {row}: '{shorten(entry)}' is no class of ImageNet{more}{meant}: such a row fails when it is drawn unless "
        "the model's file has class names of its own"
    )


# -- what has been drawn -----------------------------------------------------------------------------------------------


class Results:
    """results.csv in the output folder, and the images that it names. Nothing in the folder is ever overwritten."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / "results.csv"
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(out)
            self.lines = self._read()
            for left in out.glob(".*.part"):
                left.unlink()
        except OSError as error:
            raise Problem(f"the output folder {out} cannot be used: {error}") from None

    def begin(self, jobs: list[Job], bad: dict[int, str]) -> list[Job]:
        """Keep what is done, note the rows that cannot be drawn, and give the jobs that are left."""
        old: dict[str, list[dict[str, str]]] = {}
        for line in self.lines:
            if line["file"] and not line["error"]:
                old.setdefault(line["key"], []).append(line)
        kept = [line for key, lines in old.items() if key not in {job.key for job in jobs} for line in lines]
        left = []
        for job in jobs:
            lines = old.get(job.key, [])
            if lines and all(self._is_there(line["file"]) for line in lines):
                kept += [{**line, "row": str(job.row)} for line in lines]
            else:  # What is there of it stays, and is named, and does not count.
                kept += [{**line, "key": f"{job.key}-old"} for line in lines if self._is_there(line["file"])]
                left.append(job)
        kept += [{**dict.fromkeys(FIELDS, ""), "row": str(row), "error": shorten(words)} for row, words in bad.items()]
        self.lines = kept
        self.tidy()
        return left

    def add(self, job: Job, files: list[tuple[str, int | str]], seconds: str, error: str = "") -> None:
        """Note the images (name, seed) of a run, or why there are none."""
        rows = [(name, str(seed)) for name, seed in files] or [("", str(job.seed()))]
        new = [dict(zip(FIELDS, (str(job.row), name, seed, seconds, shorten(error), job.key))) for name, seed in rows]
        self.lines += new
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, FIELDS).writerows(new)
                file.flush()
                os.fsync(file.fileno())
        except PermissionError:
            pass  # Excel has the file open; the next or the last line comes with all of them.
        except OSError as problem:
            raise Problem(f"{self.path} cannot be written: {problem}") from None

    def tidy(self) -> None:
        """Write the whole file anew, in the order of the rows: beside it, then in its place."""
        self.lines.sort(key=lambda line: int(line["row"]))
        part = self.out / ".results.csv.part"
        try:
            with part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, FIELDS)
                writer.writeheader()
                writer.writerows(self.lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except OSError as error:
            raise Problem(f"{self.path} cannot be written: {error}: close it where it is open") from None

    def free_name(self, job: Job, filename: str, taken: set[str]) -> str:
        """A new name in the folder for a file of the server: only the last part of its name, only plain characters."""
        plain = re.sub(r"[^\w .,()+=@-]", "_", re.split(r"[/\\]", filename)[-1])
        stem, dot, suffix = plain.rpartition(".") if "." in plain.strip(".") else (plain, "", "")
        stem = f"{job.row:04d}_{stem.strip(' .').encode()[:150].decode(errors='ignore')}"
        ending = (dot + suffix[:10]).rstrip(" .")
        names = itertools.chain([stem + ending], (f"{stem}{number}{ending}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken and not (self.out / name).exists())

    def _is_there(self, name: str) -> bool:
        file = self.out / name
        return Path(name).name == name and file.is_file() and file.stat().st_size > 0

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        try:
            text = self.path.read_text(encoding="utf-8-sig")
            reader = csv.DictReader(io.StringIO(text))
            if not set(FIELDS) <= set(reader.fieldnames or ()):
                raise ValueError
            lines = [{name: line[name] or "" for name in FIELDS} for line in reader]
        except (ValueError, csv.Error):
            raise Problem(f"{self.path} is no record of this script: move it away, or choose another --out") from None
        if lines and not text.endswith("\n"):  # cut by a kill: the last row may not be whole
            lines = [
                line | {"key": line["key"] + "-old"} if line["row"] == lines[-1]["row"] else line for line in lines
            ]
        return [line for line in lines if line["row"].isdecimal()]


def _lock(folder: Path) -> int:
    """Keep a second run_csv.py out of the folder; the system lifts the lock when this process ends, however it ends."""
    try:
        if os.name == "nt":
            return os.open(folder / ".run_csv.lock", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_TEMPORARY)
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        return handle
    except (BlockingIOError, FileExistsError):
        raise Problem(f"another run_csv.py writes to {folder}: wait for it, or choose another --out") from None


# -- the terminal ------------------------------------------------------------------------------------------------------


class Screen:
    """A progress bar on a terminal, a line per event in a log file."""

    def __init__(self, total: int, done: int) -> None:
        self.terminal = sys.stderr.isatty()
        self.total, self.done, self.drawn = total, done, 0.0
        self.bar = tqdm(
            total=total, initial=done, unit="run", file=sys.stderr, dynamic_ncols=True, disable=not self.terminal
        )

    def progress(self, note: str) -> None:
        """Say how far the run is, ten times a second at most."""
        if self.terminal and time.monotonic() - self.drawn > 0.1:
            self.drawn = time.monotonic()
            with contextlib.suppress(OSError):
                self.bar.set_postfix_str(note)

    def ended(self, line: str, good: bool) -> None:
        """A run has ended."""
        self.done += 1
        if self.terminal and good:
            with contextlib.suppress(OSError):
                self.bar.update()
            return
        self.say(f"[{self.done}/{self.total}] {line}")
        with contextlib.suppress(OSError):
            self.bar.update()

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError):
            if self.terminal:
                tqdm.write(line, file=sys.stderr)
            else:
                print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.bar.close()


def say(line: str) -> None:
    """A line on standard error, whatever the state of the terminal."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


# -- the server --------------------------------------------------------------------------------------------------------


def reason(error: Exception) -> str:
    """Why the server does not answer, in a few words."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError) or getattr(cause, "errno", None) == errno.ECONNREFUSED:
        return "connection refused"
    return shorten(str(error)) or type(error).__name__


class Server:
    """ComfyUI's HTTP interface. Everything raises Lost if the server does not answer."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer, read as JSON where it is JSON."""
        try:
            async with self.session.request(method, self.url + path, json=body) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise Lost(reason(error)) from None
        if answer.status in GATEWAY:
            raise Lost(f"{answer.status} {answer.reason}")
        try:
            return answer.status, json.loads(data)
        except ValueError:
            return answer.status, shorten(data.decode(errors="replace"), 100)

    async def get(self, path: str) -> dict[str, Any]:
        """An answer that must be there. Raises Problem if it is not."""
        status, said = await self.ask("GET", path)
        if status != 200 or not isinstance(said, dict):
            raise Problem(f"{self.url} does not answer as ComfyUI does (GET {path}: {status}): is --url right?")
        return said

    async def inputs(self, workflow: Graph) -> Graph:
        """What the nodes of a workflow take; empty if the server does not say."""
        status, said = await self.ask("GET", "/object_info")
        if status != 200 or not isinstance(said, dict):
            await self.get("/queue")
            say(f"the server does not say what its nodes take (/object_info: {status}): the workflow's values decide")
            return {}
        missing = {entry["class_type"] for entry in workflow.values()} - set(said)
        if missing:
            names = ", ".join(sorted(missing))
            raise Problem(f"the server does not have the nodes {names}: install the pack that brings them, see its log")
        return said

    async def queue(self) -> list[tuple[str, dict[str, Any], bool]]:
        """What is queued: prompt id, extra data, and whether it runs."""
        said = await self.get("/queue")
        return [
            (entry[1], entry[3] if len(entry) > 3 and isinstance(entry[3], dict) else {}, key == "queue_running")
            for key in ("queue_running", "queue_pending")
            for entry in said.get(key) or ()
        ]

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The record of a run that has ended, None if there is none."""
        return (await self.get(f"/history/{prompt_id}")).get(prompt_id)

    async def download(self, image: dict[str, Any]) -> bytes:
        """One file of a run. Raises Failed if the server does not have it."""
        wanted = {key: str(image.get(key) or "") for key in ("filename", "subfolder", "type")}
        try:
            async with self.session.get(f"{self.url}/view", params=wanted) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise Lost(reason(error)) from None
        if answer.status in GATEWAY:
            raise Lost(f"{answer.status} {answer.reason}")
        if answer.status != 200 or not data:
            raise Failed(f"the file {wanted['filename']} could not be fetched: the server said {answer.status}")
        return data


def refusal(status: int, said: Any, graph: Graph) -> str:
    """Why POST /prompt did not take a graph, empty if it took the whole of it. A part of it is not enough."""
    if status == 200 and isinstance(said, dict) and not said.get("node_errors"):
        return ""
    errors = [
        f"{called(graph, node, found.get('class_type'))}: {error.get('message')}: {error.get('details')}"
        for node, found in ((said.get("node_errors") if isinstance(said, dict) else None) or {}).items()
        for error in found.get("errors") or ()
    ]
    error = said.get("error") if isinstance(said, dict) else None
    if not errors and isinstance(error, dict):
        errors = [f"{error.get('message')}: {error.get('details')}"]
    return "refused by the server: " + (shorten("; ".join(errors)) or f"it answered {status}: {said}")


def outcome(entry: dict[str, Any], graph: Graph) -> tuple[str, str]:
    """What went wrong in a run that has ended (empty: nothing), and the seconds that it took."""
    status = entry.get("status") or {}
    messages = {kind: data for kind, data in status.get("messages") or ()}
    start, end = (messages.get(kind, {}).get("timestamp") for kind in ("execution_start", "execution_success"))
    seconds = f"{(end - start) / 1000:.1f}" if start and end else ""
    data = messages.get("execution_interrupted") or messages.get("execution_error") or {}
    where = called(graph, str(data.get("node_id", "?")), str(data.get("node_type", "?")))
    if "execution_interrupted" in messages:
        return f"interrupted on the server, in {where}", seconds
    if "execution_error" in messages:
        kind = str(data.get("exception_type")).rpartition(".")[2]
        # The pack's own errors say all that there is to say.
        words = data.get("exception_message") if kind == "GtRError" else f"{kind}: {data.get('exception_message')}"
        return f"{where}: {words}", seconds
    return ("" if status.get("status_str", "success") == "success" else "the run failed: see the server's log"), seconds


def files_of(entry: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The files that a run saved, each with its place in its batch; previews only if there is nothing else."""
    found = [
        (place, item)
        for output in (entry.get("outputs") or {}).values()
        for items in output.values()
        if isinstance(items, list)
        for place, item in enumerate(items)
        if isinstance(item, dict) and item.get("filename")
    ]
    return [(place, item) for place, item in found if item.get("type") == "output"] or found


# -- the night ---------------------------------------------------------------------------------------------------------


class Queue:
    """The runs of one table: queued together, seen through, saved as they end.

    What the server's queue and history say is believed; events only tell when to look, and how far a run is.
    """

    def __init__(self, server: Server, results: Results, screen: Screen, patience: float) -> None:
        self.server, self.results, self.screen, self.patience = server, results, screen, patience
        # The same folder on the same machine is the same client: a second start finds what the first one queued.
        home = f"{platform.node()} {results.out.resolve()}"
        self.client = hashlib.sha256(home.encode(errors="replace")).hexdigest()[:32]
        self.todo: list[Job] = []
        self.waiting: dict[str, Job] = {}
        self.failed: list[tuple[Job, str]] = []
        self.images = 0
        self.adopted = False
        self.ended: set[str] = set()
        self.unanswered: set[str] = set()
        """Runs whose request got no answer: it may never have arrived."""
        self.known = ""
        """A run that this server has in its history: where it is gone, the server was started anew."""
        self.running = ""
        self.cut = False
        """The connection was lost since the queue was last looked at."""
        self.look = asyncio.Event()

    async def run(self, jobs: list[Job]) -> None:
        """Queue the jobs and see them through. Raises Lost if the server is gone for good."""
        self.todo = list(jobs)
        try:
            while self.todo or self.waiting:
                try:
                    await self._connected()
                except Lost as error:
                    self.cut = True
                    left = len(self.todo) + len(self.waiting)
                    self.screen.say(f"lost the server ({error}) with {left} runs to go; waiting for it")
                    await self._wait_for_server(error)
                    self.screen.say("the server is back")
        except (asyncio.CancelledError, Problem):
            await self.take_back()
            raise

    async def take_back(self) -> None:
        """Take what is queued out of the server's queue and interrupt what runs."""
        with contextlib.suppress(Lost, Problem, asyncio.TimeoutError):
            await asyncio.wait_for(self._take_back(), 15)

    async def _take_back(self) -> None:
        ours = set(self.waiting)
        await self.server.ask("POST", "/queue", {"delete": sorted(ours)})
        for _ in range(10):  # A row that just starts forgets an interrupt, one that is just sent is queued late.
            found = [entry for entry in await self.server.queue() if self._is_ours(entry[0], entry[1], ours)]
            for prompt_id, _, runs in found:
                path, body = ("/interrupt", {"prompt_id": prompt_id}) if runs else ("/queue", {"delete": [prompt_id]})
                await self.server.ask("POST", path, body)
            if not found:
                break
            await asyncio.sleep(0.5)

    def _is_ours(self, prompt_id: str, extra: dict[str, Any], known: set[str]) -> bool:
        return prompt_id in known or extra.get("client_id") == self.client

    async def _adopt(self) -> None:
        """Find the jobs that an earlier start has queued, or that were drawn and not fetched."""
        jobs = {job.key: job for job in self.todo}
        found: dict[str, str] = {}
        recent = await self.server.get(f"/history?max_items={len(jobs) + 1000}")
        for prompt_id, entry in recent.items():
            extra = entry["prompt"][3] if len(entry.get("prompt") or ()) > 3 else {}
            if extra.get("client_id") == self.client and not outcome(entry, {})[0]:
                found[str(extra.get("run_csv"))] = prompt_id
        for prompt_id, extra, _ in await self.server.queue():
            if extra.get("client_id") == self.client:
                if extra.get("run_csv") in jobs:
                    found[extra["run_csv"]] = prompt_id
                else:  # of a row that has been changed
                    await self.server.ask("POST", "/queue", {"delete": [prompt_id]})
        self.waiting = {found[job.key]: job for job in self.todo if job.key in found}
        self.todo = [job for job in self.todo if job.key not in found]
        if self.waiting:
            self.screen.say(f"{len(self.waiting)} runs are on the server from an earlier start")
        self.adopted = self.cut = True  # What vanishes before the first look is queued again.

    async def _connected(self) -> None:
        """Follow the runs over one connection."""
        self.ended.clear()
        try:
            socket = await self.server.session.ws_connect(
                f"{self.server.url}/ws?clientId={self.client}", max_msg_size=0
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in GATEWAY:
                raise Lost(f"{error.status} {error.message}") from None
            await self._follow(None)  # No websocket gets through: looking has to do.
            return
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise Lost(reason(error)) from None
        listener = asyncio.create_task(self._listen(socket))
        try:
            await self._follow(listener)
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
                await asyncio.wait_for(socket.close(), 2)

    async def _follow(self, listener: asyncio.Task | None) -> None:
        if not self.adopted:
            await self._adopt()
        await self._reconcile(listener)
        looked = time.monotonic()
        while self.todo or self.waiting:
            while self.todo:
                await self._post(self.todo[0])
            if not self.waiting:
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.look.wait(), POLL_SECONDS if listener else 1.0)
            self.look.clear()
            for prompt_id in [name for name in self.waiting if name in self.ended]:
                entry = await self.server.history(prompt_id)
                if entry is not None:
                    self.ended.discard(prompt_id)
                    await self._finish(prompt_id, entry)
            queued = ((await self.server.get("/prompt")).get("exec_info") or {}).get("queue_remaining", 0)
            if queued < len(self.waiting) or time.monotonic() - looked > LOOK_SECONDS:
                await self._reconcile(listener)
                looked = time.monotonic()
            if listener and listener.done() and (self.todo or self.waiting):
                raise Lost(CLOSED)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._heed(json.loads(message.data))
        self.look.set()

    def _heed(self, message: dict[str, Any]) -> None:
        """Act on an event of the server."""
        kind, data = message["type"], message.get("data") or {}
        prompt_id = data.get("prompt_id", "")
        if kind == "status":
            self.look.set()
        if prompt_id not in self.waiting:
            return
        if kind == "execution_start":
            self.running = prompt_id
            self.screen.progress(self.waiting[prompt_id].label)
        elif kind == "progress":
            self.screen.progress(f"{self.waiting[prompt_id].label}, step {data['value']}/{data['max']}")
        elif kind in ("execution_success", "execution_error", "execution_interrupted") or (
            kind == "executing" and data.get("node") is None
        ):
            self.ended.add(prompt_id)
            self.look.set()

    async def _post(self, job: Job) -> None:
        """Queue a job, or note that the server refuses it."""
        prompt_id = str(uuid.uuid4())
        # Known before it is sent: it is found again if the answer gets lost.
        self.todo.remove(job)
        self.waiting[prompt_id] = job
        body = {
            "prompt": job.graph,
            "prompt_id": prompt_id,
            "client_id": self.client,
            "extra_data": {"run_csv": job.key},
        }
        self.unanswered.add(prompt_id)
        status, said = await self.server.ask("POST", "/prompt", body)
        self.unanswered.discard(prompt_id)
        del self.waiting[prompt_id]
        trouble = refusal(status, said, job.graph)
        given = str(said.get("prompt_id") or "") if isinstance(said, dict) else ""
        if trouble:
            if given:  # A part of the graph was taken, without the images that were asked for.
                await self.server.ask("POST", "/queue", {"delete": [given]})
                await self.server.ask("POST", "/interrupt", {"prompt_id": given})
            self._fail(job, trouble)
        elif not given:
            raise Problem(f"{self.server.url} does not answer as ComfyUI does (POST /prompt): is --url right?")
        else:
            self.waiting[given] = job

    async def _reconcile(self, listener: asyncio.Task | None) -> None:
        """Look for every run in the queue, then in the history; what is in neither is lost."""
        there = {prompt_id for prompt_id, *_ in await self.server.queue()}
        same = bool(there & set(self.waiting))
        lost = []
        for prompt_id in [name for name in self.waiting if name not in there]:
            entry = await self.server.history(prompt_id)
            if entry is None:
                lost.append(prompt_id)
            else:
                same = True
                await self._finish(prompt_id, entry)
        if lost:
            if listener and not self.cut and not same:
                # A new server's answers may overtake the news that the old one has ended.
                await asyncio.wait([listener], timeout=NEWS_SECONDS)
                if listener.done():
                    raise Lost(CLOSED)
            same = same or bool(self.known and await self.server.history(self.known))
            again = self.cut and not same
            if again:
                self.screen.say(f"the server was started anew: {len(lost)} runs are queued again")
            self._lose(lost, again)
        self.cut = False

    def _lose(self, lost: list[str], again: bool) -> None:
        for prompt_id in lost:
            job = self.waiting.pop(prompt_id)
            arrived = prompt_id not in self.unanswered
            self.unanswered.discard(prompt_id)
            job.strikes += not arrived or (again and prompt_id == self.running)
            if arrived and not again:
                self._fail(job, "somebody took it out of the server's queue or cleared its history")
            elif job.strikes == STRIKES:
                what = "ended {} times while it drew this row" if arrived else "gave no answer to {} requests"
                self._fail(job, f"the server {what.format(STRIKES)}: see its log")
            else:
                self.todo.append(job)
        self.todo.sort(key=lambda job: job.row)

    async def _finish(self, prompt_id: str, entry: dict[str, Any]) -> None:
        """Save the images of a run that has ended, or note why there are none."""
        job = self.waiting[prompt_id]
        trouble, seconds = outcome(entry, job.graph)
        parts: list[tuple[Path, str, int | str]] = []
        try:
            try:
                if trouble:
                    raise Failed(trouble)
                for place, item in files_of(entry):
                    name = self.results.free_name(job, str(item["filename"]), {name for _, name, _ in parts})
                    part = self.results.out / f".{name}.part"
                    parts.append((part, name, job.seed(place)))
                    _store(part, await self.server.download(item))
                if not parts:
                    raise Failed("the run saved no image: the workflow needs a Save Image node")
            except Failed as failure:
                del self.waiting[prompt_id]
                self._fail(job, str(failure), seconds)
            else:
                # Noted before they get their names: what is on the disk is always in the record.
                self.results.add(job, [(name, seed) for _, name, seed in parts], seconds)
                for part, name, _ in parts:
                    os.replace(part, self.results.out / name)
                del self.waiting[prompt_id]
                self.known = prompt_id
                self.images += len(parts)
                names = parts[0][1] + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
                self.screen.ended(f"{job.label}: {names}" + (f", {seconds} s" if seconds else ""), True)
        except OSError as error:
            raise Problem(f"the images of {job.label} cannot be saved: {error}") from None
        finally:
            for part, *_ in parts:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)

    def _fail(self, job: Job, words: str, seconds: str = "") -> None:
        words = shorten(words)
        self.failed.append((job, words))
        self.results.add(job, [], seconds, words)
        self.screen.ended(f"{job.label}: {words}", False)

    async def _wait_for_server(self, reason: Lost) -> None:
        end = time.monotonic() + self.patience
        pause = 0.5
        while time.monotonic() < end:
            await asyncio.sleep(min(pause, max(end - time.monotonic(), 0)))
            pause = min(pause * 2, 10)
            with contextlib.suppress(Lost):
                status, said = await self.server.ask("GET", "/queue")
                if status == 200 and isinstance(said, dict):
                    return
        raise reason


def _store(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# -- the command line --------------------------------------------------------------------------------------------------


async def main(options: argparse.Namespace) -> int:
    """Check, draw and save; the exit code."""
    workflow, table = read_workflow(options.workflow), read_table(options.csv, options.encoding)
    session = aiohttp.ClientSession(timeout=TIMEOUT)
    async with session:
        server = Server(session, options.url)
        try:
            info = await server.inputs(workflow)
        except Lost as error:
            raise Problem(
                f"no ComfyUI answers at {server.url} ({error}): start it, or name its address with --url"
            ) from None
        name_nodes(workflow, info)
        jobs, bad = make_jobs(workflow, table, info, options.seed)
        for words in bad.values():
            say(words)
        for hint in filter(None, (unlisted_classes(jobs, info), shared_seeds(jobs))):
            say(f"note: {hint}")
        if options.check:
            say(f"{amount(jobs, bad)}; nothing was queued")
            return min(len(bad), 1)
        if bad and options.strict:
            raise Problem(f"{len(bad)} rows cannot be used, so nothing was queued (--strict)")
        return await draw(server, jobs, bad, options)


def amount(jobs: list[Job], bad: dict[int, str]) -> str:
    """How much a table asks for: without a column of batches a row has as many images as the workflow says."""
    rows, images = len({job.row for job in jobs}), sum(batch_of(job.graph) for job in jobs)
    wanted = f"{counted(images, 'image')} in {counted(len(jobs), 'run')}"
    return f"{counted(rows, 'row')} can be drawn, {len(bad)} cannot: {wanted}"


async def draw(server: Server, jobs: list[Job], bad: dict[int, str], options: argparse.Namespace) -> int:
    """Draw what is not there yet and say how it went; the exit code."""
    results = Results(options.out)
    left = results.begin(jobs, bad)
    say(amount(jobs, bad))
    if len(left) < len(jobs):
        say(f"{len(jobs) - len(left)} of {len(jobs)} runs were done before, and are skipped")
    screen = Screen(len(jobs), len(jobs) - len(left))
    queue = Queue(server, results, screen, options.patience)
    signals = Signals()
    try:
        await queue.run(left)
        end = ""
    except asyncio.CancelledError:
        end = "stopped; what was queued is taken back"
    except Lost as error:
        end = f"the server at {server.url} has not answered for {options.patience:g} s ({error})"
    except Problem as problem:
        end = str(problem)
    finally:
        screen.close()
    try:
        results.tidy()
    except Problem as problem:
        end = f"{end}; {problem}" if end else str(problem)
    failed = [(number, f"row {number}", words) for number, words in bad.items()]
    failed += [(job.row, job.label, words) for job, words in queue.failed]
    failures = [(label, words) for _, label, words in sorted(failed, key=lambda entry: entry[0])]
    to_go = len(queue.todo) + len(queue.waiting)
    done = len(jobs) - to_go - len(queue.failed)
    if end:
        say(f"{end}; {to_go} runs are to go: start the same command again to go on")
    if failures:
        say(f"failed: {len(failures)}")
        for words, group in itertools.groupby(failures, key=lambda failure: failure[1]):
            labels = [label for label, _ in group]
            names = labels[0] if len(labels) == 1 else f"{labels[0]} to {labels[-1]} ({len(labels)} of them)"
            say(f"  {words if words.startswith(names) else f'{names}: {words}'}")
    unit = "runs" if any(job.part for job in jobs) else "rows"
    say(f"{done} of {len(jobs) + len(bad)} {unit} done, {counted(queue.images, 'image')} saved: {options.out}")
    if signals.received:
        return 128 + signals.received
    return 1 if failures or end else 0


class Signals:
    """Ctrl-C, SIGTERM, a closed terminal: the first one ends the task in good order, the second one at once."""

    def __init__(self) -> None:
        self.received = 0
        self.task, self.loop = asyncio.current_task(), asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            # nohup and shells ignore some of them on purpose.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)

    def _stop(self, number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        if not self.received and self.task is not None:
            self.received = number
            self.loop.call_soon_threadsafe(self.task.cancel)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="run_csv.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("csv", type=Path, help="the table: CSV with commas, semicolons or tabs, in UTF-8")
    made.add_argument(
        "--workflow",
        type=Path,
        default=Path(__file__).with_name("demo.json"),
        help="in API format: Export (API) in ComfyUI's menu (default: demo.json beside this script)",
    )
    made.add_argument("--url", default="http://127.0.0.1:8188", help="of the server (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path("images"), help="output folder (default: %(default)s)")
    made.add_argument(
        "--seed",
        type=int,
        help="row n without one gets SEED + (n - 1) x the most images of a row (default: the workflow's)",
    )
    made.add_argument("--strict", action="store_true", help="queue nothing if any row of the table cannot be used")
    made.add_argument("--check", action="store_true", help="check the table and queue nothing")
    made.add_argument(
        "--patience",
        type=float,
        default=600,
        metavar="SECONDS",
        help="how long to wait for a lost server (default: 600)",
    )
    made.add_argument("--encoding", default="", help="of the table (default: UTF-8, or UTF-16 as Excel marks it)")
    return made


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(parser().parse_args())))
    except (Problem, OSError) as error:
        sys.exit(f"run_csv.py: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
