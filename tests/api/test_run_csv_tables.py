"""The batch client without a server: every cell, every row, every column of a table."""

from __future__ import annotations

import ast
import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gtr_tests.fake_comfy import GRAPH, INFO

API = Path(__file__).resolve().parents[2] / "workflows" / "api"


def cell(run_csv: ModuleType, column: str, text: str, info: dict[str, Any] = INFO) -> Any:
    """What the input holds after a row of one cell."""
    (graph,) = run_csv.graphs(GRAPH, [{column: text}], info)
    ((node, name),) = targets(run_csv, GRAPH, column, info)
    return graph[node]["inputs"][name]


def targets(run_csv: ModuleType, graph: dict[str, Any], column: str, info: dict[str, Any]) -> list[tuple[str, str]]:
    """The inputs (node, name) that a column sets."""
    return [(found.node, found.name) for found in run_csv.resolve(graph, [column], info)[column]]


def refused(run_csv: ModuleType, column: str, text: str, info: dict[str, Any] = INFO) -> str:
    with pytest.raises(run_csv.Problem) as problem:
        cell(run_csv, column, text, info)
    words = str(problem.value)
    assert "\n" not in words and words.startswith(f"row 1, column '{column}': ")
    return words


def table(run_csv: ModuleType, folder: Path, data: str | bytes, encoding: str = "") -> Any:
    (folder / "t.csv").write_bytes(data.encode() if isinstance(data, str) else data)
    return run_csv.read_table(folder / "t.csv", encoding)


# -- cells -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("info", [INFO, {}], ids=["server", "workflow"])
@pytest.mark.parametrize("text", ["true", "TRUE", "Yes", "on", "1", " true ", "ｔｒｕｅ"])
def test_switches_on(run_csv, text, info):
    assert cell(run_csv, "5.shift", text, info) is True


@pytest.mark.parametrize("info", [INFO, {}], ids=["server", "workflow"])
@pytest.mark.parametrize("text", ["false", "False", "FALSE", "no", "OFF", "0", "\u00a0false"])
def test_switches_off(run_csv, text, info):
    assert cell(run_csv, "5.shift", text, info) is False


@pytest.mark.parametrize("text", ["perhaps", "2", "-1", "FALSCH", "1.0", "none", "y", "true false"])
def test_a_switch_is_never_guessed(run_csv, text):
    assert "write true or false" in refused(run_csv, "5.shift", text)
    assert "write true or false" in refused(run_csv, "5.shift", text, {})


@pytest.mark.parametrize(
    "text, value",
    [("5", 5), ("+5", 5), ("12.0", 12), ("12,0", 12), ("12.00", 12), ("007", 7), ("１２", 12)]
    + [("18446744073709551615", 2**64 - 1), ("9007199254740993", 2**53 + 1)],
)
def test_whole_numbers(run_csv, text, value):
    for info in (INFO, {}):
        found = cell(run_csv, "seed", text, info)
        assert found == value
    assert type(cell(run_csv, "seed", text)) is int


@pytest.mark.parametrize("text", ["5", "18446744073709551615"])
def test_a_seed_is_exact_without_the_servers_word(run_csv, text):
    assert cell(run_csv, "seed", text, {}) == int(text)


@pytest.mark.parametrize(
    "text, words",
    [("many", "not a whole number"), ("2.5", "not a whole number"), ("0x10", "not a whole number")]
    + [("1_000", "not a whole number"), ("5 apples", "not a whole number"), ("²", "not a whole number")]
    + [("1,000", "separators"), ("1.000", "separators"), ("1 000 000", "separators"), ("1'000", "separators")]
    + [("1.84467E+19", "rounded"), ("1e5", "rounded"), ("-1", "too small: 0 is the least")]
    + [("18446744073709551616", "too large"), ("9" * 5000, "not a whole number"), ("nan", "not a whole number")],
)
def test_whole_numbers_that_are_none(run_csv, text, words):
    assert words in refused(run_csv, "seed", text)


@pytest.mark.parametrize(
    "text, value",
    [("2.5", 2.5), ("2,5", 2.5), ("3", 3.0), ("3.0", 3.0), (".5", 0.5), ("0,125", 0.125), ("1e-3", 0.001)]
    + [("2.", 2.0), ("２．５", 2.5), ("1.000", 1.0), ("12,34", 12.34)],
)
def test_numbers(run_csv, text, value):
    """The workflow holds 3, as browsers write 3.0."""
    found = cell(run_csv, "7.cfg", text)
    assert found == value and type(found) is float
    assert cell(run_csv, "7.cfg", text, {}) == value


@pytest.mark.parametrize(
    "text, words",
    [("1,000", "may be 1000 or 1.000"), ("nan", "not a number"), ("inf", "not a number"), ("1e999", "not a number")]
    + [("1.234,5", "not a number"), ("50%", "not a number"), ("3 4", "not a number"), ("٣", "not a number")]
    + [("100.5", "too large: 100.0 is the most"), ("\u22121", "too small: 0.0 is the least")],
)
def test_numbers_that_are_none(run_csv, text, words):
    assert words in refused(run_csv, "cfg", text)


def test_lists(run_csv):
    assert cell(run_csv, "preset", "gtr-full") == "gtr-full"
    assert cell(run_csv, "5.order", " halton ") == "halton"
    assert cell(run_csv, "5.tiles", "2") == 2 and type(cell(run_csv, "5.tiles", "2")) is int
    assert cell(run_csv, "5.tiles", "4.0") == 4


@pytest.mark.parametrize(
    "column, text, near",
    [("preset", "gtr-papr", "gtr-paper"), ("5.order", "Halton", "halton"), ("5.tiles", "3", "1, 2, 4")],
)
def test_lists_hold_nothing_else(run_csv, column, text, near):
    assert f"'{text}' is not in the list: use {near}" in refused(run_csv, column, text)


def test_long_lists_are_not_read_out(run_csv):
    info = {"GtR_Scheduler": {"input": {"required": {"preset": [[f"file-{k}.safetensors" for k in range(5000)], {}]}}}}
    words = refused(run_csv, "preset", "other", info)
    assert len(words) < 500 and "5000" in words
    assert "file-4999.safetensors" in refused(run_csv, "preset", "file-4999.safetensor", info)


def test_files_that_were_just_uploaded_are_left_to_the_server(run_csv):
    graph = GRAPH | {"20": {"class_type": "LoadImage", "inputs": {"image": "one.png"}}}
    (made,) = run_csv.graphs(graph, [{"20.image": "masks/new.png [input]"}], INFO)
    assert made["20"]["inputs"]["image"] == "masks/new.png [input]"


def test_lists_with_inputs_of_their_own(run_csv):
    """V3's dynamic combos: the choice, and the inputs that come with it."""
    options = [{"key": "fixed", "inputs": {"required": {"size": ["INT", {"max": 9}]}}}, {"key": "auto", "inputs": {}}]
    info = {"Tiles": {"input": {"required": {"mode": ["COMFY_DYNAMICCOMBO_V3", {"options": options}]}}}}
    graph = {"1": {"class_type": "Tiles", "inputs": {"mode": "auto"}}}
    (made,) = run_csv.graphs(graph, [{"1.mode": "fixed", "1.mode.size": "4"}], info)
    assert made["1"]["inputs"] == {"mode": "fixed", "mode.size": 4}
    with pytest.raises(run_csv.Problem, match="use fixed, auto"):
        run_csv.graphs(graph, [{"1.mode": "other"}], info)
    with pytest.raises(run_csv.Problem, match="too large: 9"):
        run_csv.graphs(graph, [{"1.mode.size": "10"}], info)


@pytest.mark.parametrize("text", ["a fox", "24, 6, 2", "0", "true", "狐 🦊", 'say "hi"', "two\nlines", "=1+1"])
def test_texts_stay_texts(run_csv, text):
    for info in (INFO, {}):
        assert cell(run_csv, "class", text, info) == text


@pytest.mark.parametrize("column", ["9.images", "3.model", "7.positive"])
@pytest.mark.parametrize("info", [INFO, {}], ids=["server", "workflow"])
def test_wires_are_not_cut(run_csv, column, info):
    graph = copy.deepcopy(GRAPH)
    with pytest.raises(run_csv.Problem, match="is wired to this input"):
        run_csv.graphs(graph, [{column: "12"}], info)
    assert graph == GRAPH


def test_a_wire_into_a_value_is_named(run_csv):
    graph = copy.deepcopy(GRAPH) | {"12": {"class_type": "Number", "inputs": {"value": 3}}}
    graph["7"]["inputs"]["seed"] = ["12", 0]
    with pytest.raises(run_csv.Problem, match="column 'seed': node 12 is wired to this input"):
        run_csv.graphs(graph, [{"seed": "5"}], INFO)
    assert run_csv.graphs(graph, [{"12.value": "5"}], INFO)[0]["12"]["inputs"]["value"] == 5


def test_a_seed_that_is_wired_is_not_known(run_csv):
    graph = copy.deepcopy(GRAPH) | {"12": {"class_type": "Number", "inputs": {"value": 3}}}
    graph["7"]["inputs"]["seed"] = ["12", 0]
    assert run_csv.Job(1, "", graph).seed(1) == ""
    graph["7"]["inputs"]["seed"] = 3
    assert run_csv.Job(1, "", graph).seed(1) == 4


def test_an_input_without_a_wire_that_needs_one(run_csv):
    graph = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "a"}}}
    with pytest.raises(run_csv.Problem, match="the input takes IMAGE from another node"):
        run_csv.graphs(graph, [{"1.images": "one.png"}], INFO)


def test_empty_cells_keep_the_workflows_value(run_csv):
    assert run_csv.graphs(GRAPH, [{"seed": "", "class": "  ", "5.shift": ""}], INFO) == [GRAPH]


# -- columns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column, target",
    [
        ("seed", ("7", "seed")),
        ("SEED", ("7", "seed")),
        ("batch", ("4", "batch_size")),
        ("name", ("9", "filename_prefix")),
    ]
    + [("5.order", ("5", "order")), ("The plan.order", ("5", "order")), ("the plan.tiles", ("5", "tiles"))]
    + [("order", ("5", "order")), ("7.cfg_start", ("7", "cfg_start"))],
)
def test_columns(run_csv, column, target):
    assert targets(run_csv, GRAPH, column, INFO) == [target]


def test_titles_with_points(run_csv):
    graph = copy.deepcopy(GRAPH)
    graph["5"]["_meta"]["title"] = "Plan v1.5"
    assert targets(run_csv, graph, "Plan v1.5.order", INFO) == [("5", "order")]


def test_a_name_sets_every_sampler(run_csv):
    graph = copy.deepcopy(GRAPH) | {"8": copy.deepcopy(GRAPH["7"])}
    assert targets(run_csv, graph, "seed", INFO) == [("7", "seed"), ("8", "seed")]


@pytest.mark.parametrize(
    "column, words",
    [("colour", "use class, seed"), ("sed", "use seed"), ("5.ordr", "node 5 (The plan) has order")]
    + [("99.seed", "NODE.INPUT"), ("prompt", "NODE.INPUT"), ("The plan.seeds", "node 5"), (".seed", "NODE.INPUT")],
)
def test_columns_that_set_nothing(run_csv, column, words):
    with pytest.raises(run_csv.Problem, match="sets nothing in this workflow") as problem:
        targets(run_csv, GRAPH, column, INFO)
    assert words in str(problem.value)


def test_columns_that_could_mean_two_nodes(run_csv):
    graph = copy.deepcopy(GRAPH) | {"6": copy.deepcopy(GRAPH["5"])}
    with pytest.raises(run_csv.Problem, match="use 5.order"):
        targets(run_csv, graph, "order", INFO)
    with pytest.raises(run_csv.Problem, match="have the title 'The plan': use 5.order"):
        targets(run_csv, graph, "The plan.order", INFO)


def test_two_columns_for_one_input(run_csv, tmp_path):
    with pytest.raises(run_csv.Problem, match="'seed' and '7.seed' set the same input"):
        run_csv.make_jobs(GRAPH, table(run_csv, tmp_path, "seed,7.seed\n1,2\n"), INFO)
    with pytest.raises(run_csv.Problem, match="'Seed' stands twice"):
        table(run_csv, tmp_path, "Seed,seed\n1,2\n")


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    ["name,seed\nfox,1\n", "name;seed\nfox;1\n", "name\tseed\nfox\t1\n", "sep=;\nname;seed\r\nfox;1\r\n"]
    + ["\ufeffname,seed\r\nfox,1\r\n", '"name";"seed"\n"fox";"1"\n', "name, seed\nfox, 1", "\n\nname,seed\nfox,1"]
    + ["name|seed\nfox|1\n", "name,seed\rfox,1\r", '\ufeff"sep=,"\nname,seed\nfox,1\n', "name,seed,,\nfox,1,,\n"],
)
def test_dialects(run_csv, tmp_path, data):
    found = table(run_csv, tmp_path, data)
    assert found.rows == {1: {"name": "fox", "seed": "1"}} and found.columns == ["name", "seed"] and not found.bad


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(run_csv, tmp_path, encoding):
    assert table(run_csv, tmp_path, "name;seed\nFüchsin 狐;1\n".encode(encoding)).rows[1]["name"] == "Füchsin 狐"


def test_an_encoding_that_is_named(run_csv, tmp_path):
    assert table(run_csv, tmp_path, "name\nFüchsin\n".encode("cp1252"), "cp1252").rows[1]["name"] == "Füchsin"


@pytest.mark.parametrize(
    "data, encoding, words",
    [
        ("seed,name\n1,a\n2,Füchsin\n".encode("latin-1"), "", "byte 0xfc in line 3"),
        (b"PK\x03\x04rest", "", "a workbook"),
    ]
    + [(b"\xd0\xcf\x11\xe0rest", "", "an old Excel workbook"), (b"a\0b\0,\0", "", "zero bytes")]
    + [(b"name\n\xff\n", "utf-8", "line 2 cannot be read"), (b"name\na\n", "klingon", "not known to Python")],
)
def test_files_that_are_not_utf8(run_csv, tmp_path, data, encoding, words):
    with pytest.raises(run_csv.Problem) as problem:
        table(run_csv, tmp_path, data, encoding)
    assert words in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "prompt", ["a fox; red", "a, b, c", "tab\tinside", 'say "hi", fox', "one\ntwo\nthree", "狐，雪"]
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quoted_texts(run_csv, tmp_path, prompt, delimiter):
    quoted = '"' + prompt.replace('"', '""') + '"'
    found = table(run_csv, tmp_path, f"name{delimiter}class{delimiter}seed\nx{delimiter}{quoted}{delimiter}3\n")
    assert found.rows == {1: {"name": "x", "class": prompt, "seed": "3"}}


def test_one_column_with_semicolons_in_the_texts(run_csv, tmp_path):
    assert table(run_csv, tmp_path, "class\nfox; red; snow\n").rows == {1: {"class": "fox; red; snow"}}


def test_rows_of_nothing_are_skipped_and_counted(run_csv, tmp_path):
    found = table(run_csv, tmp_path, "name,seed\n,,\nfox,1\n\n  , \nwolf,2\n,,\n,,\n")
    assert found.rows == {2: {"name": "fox", "seed": "1"}, 5: {"name": "wolf", "seed": "2"}} and not found.bad


@pytest.mark.parametrize("data", ["", "\n", "name,seed\n", "name,seed\n,\n,\n", "\ufeff"])
def test_tables_without_a_row(run_csv, tmp_path, data):
    with pytest.raises(run_csv.Problem, match="has no row"):
        table(run_csv, tmp_path, data)


@pytest.mark.parametrize(
    "data, words",
    [("name,class\na,fox, red\n", "row 1 has 3 cells for 2 columns: put texts with commas in quotation marks")]
    + [("name;class\na;fox; red; snow\n", "row 1 has 4 cells for 2 columns: put texts with semicolons in")]
    + [
        ("name,,seed\na,x,1\n", "row 1: 'x' stands in a column without a name"),
        ("name\tclass\na\tb\tc\n", "texts with tabs"),
    ],
)
def test_rows_with_too_many_cells(run_csv, tmp_path, data, words):
    found = table(run_csv, tmp_path, data + data.splitlines()[0].replace("name", "b") + "\n")
    assert words in found.bad[1] and 2 in found.rows


def test_short_rows_and_empty_cells_at_the_end(run_csv, tmp_path):
    found = table(run_csv, tmp_path, "name,class,seed\nfox\nwolf,1,2,,,\n")
    assert found.rows == {1: {"name": "fox"}, 2: {"name": "wolf", "class": "1", "seed": "2"}} and not found.bad


@pytest.mark.parametrize(
    "data, row",
    [('name\n"fox\n', "row 1"), ('name\nfox\n"big" wolf\n', "row 2"), ('name,class\na,"fox\nb,"wolf"\n', "row 1")],
)
def test_quotation_marks_that_do_not_fit(run_csv, tmp_path, data, row):
    with pytest.raises(run_csv.Problem, match=f"{row}: the quotation marks do not fit"):
        table(run_csv, tmp_path, data)


def test_notes(run_csv, tmp_path):
    found = table(run_csv, tmp_path, "#,name,# note\nx,fox,try again\ny,,\n")
    assert found.columns == ["name"] and found.rows == {1: {"name": "fox"}}


# -- workflows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", "{}", '{"1": 2}', '{"1": {"class_type": "A"}}', '{"prompt": {}}', "name,seed"]
)
def test_files_that_are_no_workflow(run_csv, tmp_path, text):
    (tmp_path / "w.json").write_text(text, encoding="utf-8")
    with pytest.raises(run_csv.Problem, match=r"API format.*Export \(API\)"):
        run_csv.read_workflow(tmp_path / "w.json")


@pytest.mark.parametrize("path", sorted(API.parent.glob("*.json")), ids=lambda path: path.stem)
def test_workflows_as_the_page_saves_them(run_csv, path):
    with pytest.raises(run_csv.Problem, match="as the page saves it, and not in API format"):
        run_csv.read_workflow(path)


@pytest.mark.parametrize("path", sorted(API.glob("*.json")), ids=lambda path: path.stem)
def test_the_shipped_workflows(run_csv, path):
    graph = run_csv.read_workflow(path)
    saves = any(entry["class_type"] == "SaveImage" for entry in graph.values())
    for column in ("seed", "cfg", *(["name"] if saves else [])):
        assert targets(run_csv, graph, column, {})


# -- classes -----------------------------------------------------------------------------------------------------------

MENU = [
    "default",
    "0: tench",
    "207: golden retriever",
    "208: Labrador retriever",
    "demo 0: animal face",
    "demo 1: bird",
]
CLASSES = INFO | {"GtR_ClassCondition": {"input": {"required": {"class_name": ["COMBO", {"options": MENU}]}}}}


def checked(run_csv: ModuleType, folder: Path, model: str, text: str) -> tuple[str, str]:
    """What is said of a class: what is wrong with the row, and the note."""
    graph = GRAPH | {"1": {"class_type": "GtR_LoadMAR", "inputs": {"model_name": model}}}
    jobs, bad = run_csv.make_jobs(graph, table(run_csv, folder, f'class,seed\n"{text}",1\n0,2\n'), CLASSES)
    assert [job.row for job in jobs] == ([2] if bad else [1, 2])
    return bad.get(1, ""), run_csv.unlisted_classes(jobs, CLASSES)


@pytest.mark.parametrize(
    "text", ["1", "bird", " Bird ;0", "demo 1: bird", "1: bird", "bird\nANIMAL FACE", "default bird"]
)
def test_classes_of_the_demo(run_csv, tmp_path, text):
    bad, note = checked(run_csv, tmp_path, "demo (built-in)", text)
    assert not note and bool(bad) == (text == "default bird")


@pytest.mark.parametrize(
    "text, near", [("brid", "bird"), ("golden retriever", "animal face, bird"), ("2", "animal face")]
)
def test_a_class_that_the_demo_does_not_have_is_named_before_anything_is_queued(run_csv, tmp_path, text, near):
    bad, note = checked(run_csv, tmp_path, "demo (built-in)", f"0, {text}")
    assert bad.startswith(f"row 1, column 'class': the demo model has no class '{text}': use {near}")
    assert not note


@pytest.mark.parametrize("text", ["999", "golden retriever", "207: Golden Retriever", "n02099601", "tench; 5"])
def test_classes_of_imagenet(run_csv, tmp_path, text):
    assert checked(run_csv, tmp_path, "mar-base-ema.pth", text) == ("", "")


def test_a_class_that_a_file_may_have_gets_a_note(run_csv, tmp_path):
    """A converted file may have class names of its own, which the server does not tell."""
    bad, note = checked(run_csv, tmp_path, "mar-base-ema.pth", "golden retreiver")
    assert not bad and note.startswith(
        "row 1: 'golden retreiver' is no class of ImageNet; ImageNet has golden retriever"
    )


# -- seeds -------------------------------------------------------------------------------------------------------------


def seeds(run_csv, folder, data, first=None):
    jobs, bad = run_csv.make_jobs(GRAPH, table(run_csv, folder, data), INFO, first)
    assert not bad
    return [job.graph["7"]["inputs"]["seed"] for job in jobs]


def test_seeds(run_csv, tmp_path):
    assert seeds(run_csv, tmp_path, "class,seed\n1,5\n2,\n") == [5, 7], "an empty cell keeps the workflow's"
    assert seeds(run_csv, tmp_path, "class,seed\n1,5\n2,\n3,\n", 100) == [5, 101, 102]
    assert seeds(run_csv, tmp_path, "class,batch\n1,4\n2,4\n,\n3,4\n", 100) == [100, 104, 112], "by the row's number"
    assert seeds(run_csv, tmp_path, "seed,count,batch\n5,3,4\n") == [5, 9, 13]
    assert seeds(run_csv, tmp_path, "class,count,batch\n1,2,4\n2,2,4\n", 0) == [0, 4, 8, 12]
    assert seeds(run_csv, tmp_path, f"seed,count\n{2**64 - 1},2\n") == [2**64 - 1, 0]


@pytest.mark.parametrize("count", ["0", "-1", "two", "1e3"])
def test_counts_that_are_none(run_csv, tmp_path, count):
    jobs, bad = run_csv.make_jobs(GRAPH, table(run_csv, tmp_path, f"seed,count\n1,{count}\n2,2\n"), INFO)
    assert "row 1, column 'count'" in bad[1] and [job.row for job in jobs] == [2, 2]


@pytest.mark.parametrize(
    "data, words",
    [
        ("seed\n1\n2\n", ""),
        ("seed,batch\n1,4\n2,4\n", "n x 4"),
        ("seed,batch\n1,4\n5,4\n", ""),
        ("seed\n1\n1\n", "n x 1"),
    ]
    + [("class,seed\n1,1\n2,1\n", ""), ("name\na\nb\n", "row 1 and row 2 have the seeds 7 and 7")],
)
def test_rows_that_share_seeds_are_named(run_csv, tmp_path, data, words):
    jobs, _ = run_csv.make_jobs(GRAPH, table(run_csv, tmp_path, data), INFO)
    hint = run_csv.shared_seeds(jobs)
    assert words in hint and bool(words) == bool(hint)


def test_the_seed_of_an_image(run_csv):
    job = run_csv.Job(1, "", copy.deepcopy(GRAPH))
    assert [job.seed(k) for k in (0, 3)] == [7, 10]
    job.graph["8"] = {"class_type": "GtR_Sampler", "inputs": {"seed": 9}}
    assert job.seed() == "", "two samplers with seeds of their own"
    other = run_csv.Job(1, "", {"1": {"class_type": "KSampler", "inputs": {"seed": 4}}})
    assert other.seed(2) == 4, "one noise for the whole batch"


def test_keys(run_csv, tmp_path):
    """A moved row keeps its key, a changed one does not, and equal ones are told apart."""
    first, _ = run_csv.make_jobs(GRAPH, table(run_csv, tmp_path, "seed\n1\n2\n2\n"), INFO)
    second, _ = run_csv.make_jobs(GRAPH, table(run_csv, tmp_path, "seed\n2\n2.0\n1\n3\n"), INFO)
    assert [job.key for job in second][:3] == [first[1].key, first[2].key, first[0].key]
    assert len({job.key for job in [*first, *second]}) == 4


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../../x.png",
        r"..\..\x.png",
        "/etc/passwd",
        r"C:\x.png",
        "x.png:stream",
        "..",
        ".",
        "",
        "a/../../b.png",
        "con.png",
    ]
    + ["x" * 400 + ".png", "狐" * 300 + ".png", "a\nb.png", "a\0b.png", ".hidden", "~root", "%2e%2e%2fx", "x.png/"],
)
def test_names_stay_in_the_folder(run_csv, tmp_path, name):
    results = run_csv.Results(tmp_path / "out")
    found = results.free_name(run_csv.Job(3, "", GRAPH), name, set())
    assert Path(found).name == found and found.startswith("0003_") and len(found.encode()) < 200
    assert not set(found) & set('/\\:*?"<>|\0\n')
    (tmp_path / "out" / found).write_bytes(b"x")
    assert results.free_name(run_csv.Job(3, "", GRAPH), name, set()) != found, "nothing is overwritten"


@pytest.mark.parametrize("data", ["a,b\n1,2\n", "row,file\n", "\0", '"', "name,seed\nx,1\n"])
def test_a_record_of_somebody_else(run_csv, tmp_path, data):
    (tmp_path / "results.csv").write_text(data, encoding="utf-8")
    with pytest.raises(run_csv.Problem, match="is no record of this script"):
        run_csv.Results(tmp_path)


@pytest.mark.parametrize("cut", [2, 3, 15, 22, 30, 37])
def test_a_record_that_was_cut(run_csv, tmp_path, cut):
    """A kill in the middle of a line: the row of it is drawn again, what there is of it stays in the record."""
    jobs, _ = run_csv.make_jobs(GRAPH, table(run_csv, tmp_path, "seed\n1\n2\n"), INFO)
    results = run_csv.Results(tmp_path / "out")
    results.begin(jobs, {})
    for job in jobs:
        names = [f"{job.row}_{number}.png" for number in range(3)]
        for name in names:
            (tmp_path / "out" / name).write_bytes(b"x")
        results.add(job, [(name, job.seed()) for name in names], "1.0")
    results.path.write_bytes(results.path.read_bytes()[:-cut])
    results.lines = results._read()
    assert [job.row for job in results.begin(jobs, {})] == [2]
    assert {"1_0.png", "1_1.png", "1_2.png", "2_0.png", "2_1.png"} <= {line["file"] for line in results.lines}


def test_a_row_of_which_a_file_is_gone(run_csv, tmp_path):
    """It is drawn again; its other files stay, are named, and never make the row look done."""
    jobs, _ = run_csv.make_jobs(GRAPH, table(run_csv, tmp_path, "seed\n1\n"), INFO)
    results = run_csv.Results(tmp_path / "out")
    results.begin(jobs, {})
    for name in ("a.png", "b.png"):
        (tmp_path / "out" / name).write_bytes(b"x")
    results.add(jobs[0], [("a.png", 1), ("b.png", 2)], "1.0")
    (tmp_path / "out" / "b.png").unlink()
    for _ in range(2):
        assert results.begin(jobs, {}) == jobs
        assert [line["file"] for line in results.lines] == ["a.png"]
        results.lines = results._read()


def test_the_source_can_be_read_by_old_pythons():
    """So that the line about the version is what they print."""
    tree = ast.parse((API / "run_csv.py").read_text(encoding="utf-8"), feature_version=(3, 7))
    first = [node for node in tree.body if not isinstance(node, (ast.Expr, ast.Import))][0]
    assert isinstance(first, ast.If) and "version_info" in ast.unparse(first.test)
    assert not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)


def test_an_old_python_is_told(monkeypatch):
    import sys

    source = (API / "run_csv.py").read_text(encoding="utf-8").split("import argparse")[0]
    monkeypatch.setattr(sys, "version_info", (3, 8, 10, "final", 0))
    with pytest.raises(SystemExit, match="needs Python 3.10 or newer, this is 3.8"):
        exec(compile(source, "run_csv.py", "exec"), {})  # noqa: S102


def test_a_python_without_aiohttp_is_told(tmp_path):
    import subprocess
    import sys

    words = [sys.executable, "-S", "-E", str(API / "run_csv.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "needs aiohttp, which ComfyUI brings" in done.stderr and "pip install aiohttp tqdm" in done.stderr


def test_the_example_table(run_csv):
    graph = run_csv.read_workflow(API / "demo.json")
    jobs, bad = run_csv.make_jobs(graph, run_csv.read_table(API / "prompts.csv"), {})
    assert len(jobs) == 3 and not bad and json.dumps(graph)
