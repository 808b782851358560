"""The documentation: links lead somewhere, figures have words, examples run, numbers are those that commands wrote."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gtr_pack.gtr_core as gtr
import pytest
import torch
from gtr_pack.gtr_core import cli
from gtr_pack.gtr_core.evaluation.evaluate import FEWEST_IMAGES
from gtr_pack.gtr_core.evaluation.fid import read_statistics
from gtr_pack.gtr_core.plans.presets import PRESETS
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("web/docs/**/*.md")]
FIGURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Files of published models and settings of a GPU, and what stands for them in a test.
STAND_INS = {
    '"mar-base-ema.pth"': "gtr.DEMO_MAR",
    '"kl16.safetensors"': "gtr.DEMO_VAE",
    '"cuda", dtype="bfloat16"': '"cpu"',
    '"cuda"': '"cpu"',
    "[207, 360]": "[2, 3]",
    'gtr.preset("gtr-paper"), guidance': 'gtr.Schedule("short", "gtr", (2, 1, 1), diffusion=(3, 2, 2)), guidance',
    "gtr.FTS())": "gtr.FTS(detail_steps=4))",
    "import gtr_core as gtr\n": "",
    "from gtr_core": "from gtr_pack.gtr_core",
}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        if not name.startswith(("http:", "https:", "mailto:")):
            file = page.parent / name if name else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in an address."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_nodes_are_called_as_on_the_screen() -> None:
    """The list has every node, and no name lacks what follows it in brackets."""
    page = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    schemas = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    names = {entry["display_name"] for entry in schemas.values()}
    assert set(re.findall(r"^\| \*\*(.+?)\*\* \|", page, re.MULTILINE)) == names
    for name in names:
        short, _, kind = name.partition(" (")
        assert not kind or not re.search(rf"\b{re.escape(short)}\b(?! \({re.escape(kind)})", page), name


@pages
def test_figures_exist_and_are_described(page: Path) -> None:
    for words, target in FIGURE.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target
        assert file.is_file(), target
        assert file.stat().st_size < 600_000, f"{target} is too large for a page"
        assert len(words.split()) >= 4, f"{target}: say in words what is to be seen"


def test_every_preset_can_be_chosen_from_the_page() -> None:
    text = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert [name for name in PRESETS if name != "lazymar" and f"`{name}`" not in text] == []


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_the_page_on_fid_names_the_line_of_info_and_the_fewest_images(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    assert cli.main(["info", str(gtr.DEMO_MAR)]) == 0
    (line,) = re.findall("^weights .*", capsys.readouterr().out, re.MULTILINE)
    assert f"`{line}`" in text
    assert f"at least {FEWEST_IMAGES}." in text


# -- examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python_examples_run_on_the_demo_model(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, each with what those before it have defined."""
    monkeypatch.chdir(tmp_path)
    blocks, scope = PYTHON.findall((ROOT / page).read_text(encoding="utf-8")), {"gtr": gtr}
    for number, code in enumerate(blocks, start=1):
        for words, other in STAND_INS.items():
            code = code.replace(words, other)
        exec(compile(code, f"{page}, example {number}", "exec"), scope)  # noqa: S102
    assert blocks and (tmp_path / "golden_retriever.png").is_file()
    if page == "docs/python.md":
        check_python_page(scope, capsys.readouterr().out)


def check_python_page(scope: dict[str, Any], printed: str) -> None:
    """What the page says of its results."""
    assert scope["outpainted"].shape == (1, 128, 192, 3)
    kept = ~scope["canvas"].unknown
    before, after = (scope["latent_to_tokens"](scope[name], scope["spec"].latent) for name in ("latents", "after"))
    assert before[kept.flatten(1)].equal(after[kept.flatten(1)]) and not before.equal(after)
    assert "AR step 7 of 7, 256 tokens known" in printed and "TFLOPs per image" in printed
    assert "classes 0 to 11" in printed.splitlines()[-1]


COMMANDS = re.compile(r"^(?:python -m gtr_core|gtr) (.+?)(?: +#.*)?$", re.MULTILINE)


@pages
def test_commands_of_the_pages_have_options_that_are_there(page: Path) -> None:
    """Every line of a code block that starts the command line is understood by it."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for words in COMMANDS.findall("".join(blocks)):
        cli.parsed(shlex.split(re.sub(r"\bN\b", "1", words.removesuffix(" &").replace("\\", "/"))))


def test_the_evaluation_page_names_every_model_and_its_files() -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    lines = [line for line in COMMANDS.findall(text) if "--images 50000" in line and "step-256" in line]
    assert [line.split()[2].split("/")[0] for line in lines] == ["mar_base", "mar_large", "mar_huge"]
    for line in lines:
        options = cli.parsed(shlex.split(line))
        assert (options.metrics, options.seeds, options.cfg_schedule, options.temperature) == ("fid,is", 1, "linear", 1)


def test_the_random_files_of_the_evaluation_page_are_of_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = PYTHON.findall((ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8"))
    for words, other in {**STAND_INS, 'published_specs()["mar-b"]': "gtr.load_model(gtr.DEMO_MAR).spec"}.items():
        code = code.replace(words, other)
    exec(compile(code, "docs/evaluate.md", "exec"), {"gtr": gtr})  # noqa: S102
    assert set(torch.load("random.pth", weights_only=True)) == {"model_ema"}
    assert gtr.load_vae("random_kl16.ckpt").spec.latent_channels == 16
    shapes = {name: values.shape for name, values in read_statistics("random_stats.npz").items()}
    assert shapes == {"mu": (2048,), "sigma": (2048, 2048)}


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writers() -> dict[str, ModuleType]:
    """The modules that write numbers into pages, imported as their commands import them."""
    sys.path.insert(0, str(ROOT))
    try:
        return {name: importlib.import_module(name) for name in ("docs.tables", "docs.draw", "demo.quality_page")}
    finally:
        sys.path.remove(str(ROOT))


@pages
def test_no_number_of_a_table_was_written_by_hand(page: Path, writers: dict[str, ModuleType]) -> None:
    """As far as docs/figures holds the file; else the table stays what it was, see `python -m docs.tables`."""
    text = page.read_text(encoding="utf-8")
    assert writers["docs.tables"].filled(text, set()) == text, "run python -m docs.tables"


def test_every_table_has_its_place(writers: dict[str, ModuleType]) -> None:
    tables = writers["docs.tables"]
    named = [name for page in PAGES for _, name, _ in tables.BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert set(named) == set(tables.TABLES)


def test_measured_files_are_what_their_commands_wrote(writers: dict[str, ModuleType]) -> None:
    tables = writers["docs.tables"]
    for path in tables.FIGURES.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        results = json.loads(text) if isinstance(json.loads(text), list) else [json.loads(text)]
        assert list(map(tables.command, results)) == tables.commands(path.stem)
        assert all(result["machine"]["threads"] >= 1 for result in results)
        assert '"/' not in text, "a path of the machine"


def test_commands_behind_the_files_are_understood(writers: dict[str, ModuleType]) -> None:
    tables = writers["docs.tables"]
    for line in (line for name in tables.COMMANDS for line in tables.commands(name)):
        _, (_, _, module, *words) = tables.split_variables(line)
        assert importlib.util.find_spec(module) if module != "gtr_core" else cli.parsed([*words, "--json"]).json


ROW = {"tflops": 2.367, "seconds": 6.254, "seconds_range": [6.1, 6.42], "ratio": 23.14}
RESULT = {
    "command": "python -m gtr_core bench --presets reference --json",
    "rounds": 3,
    "batch": 1,
    "process_peak_bytes": 2**31,
    "machine": {"device": "cpu", "name": "A processor", "vectors": "AVX2", "threads": 2, "torch": "2.13.0"},
    "rows": [ROW | {"preset": "gtr-paper"}, ROW | {"preset": "gtr-paper@bfloat16", "seconds": 3.741, "ratio": 38.7}],
}


def test_a_measured_file_becomes_a_table_with_its_command_and_machine(
    writers: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = writers["docs.tables"]
    monkeypatch.setattr(tables, "measured", lambda name: RESULT)
    page = "A\n<!-- table: bench-mar-b -->\nold\n<!-- end -->\n<!-- value: speed-mar-b -->old<!-- end -->.\n"
    lines = tables.filled(page, set()).splitlines()
    assert lines[3:5] == ["```", "python -m gtr_core bench --presets reference"]
    assert "| `gtr-paper` | 2.37 | 6.25 (6.10 to 6.42) | 23.1× | 3.74 (6.10 to 6.42) | 38.7× |" in lines
    assert "Measured on A processor (AVX2), 2 threads, torch 2.13.0." in lines[-4]
    assert lines[-1] == "<!-- value: speed-mar-b -->23.1× faster in fp32 and 38.7× in bf16<!-- end -->."


def test_a_table_without_its_file_stays_and_is_reported(
    writers: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables, missing = writers["docs.tables"], set()
    monkeypatch.setattr(tables, "FIGURES", tmp_path)
    page = "<!-- table: bench-demo -->\nold\n<!-- end -->"
    assert tables.filled(page, missing) == page and missing == {"bench_demo"}


def test_the_page_on_quality_is_what_its_results_say(writers: dict[str, ModuleType], tmp_path: Path) -> None:
    writers["demo.quality_page"].write_page(ROOT / "docs" / "quality", tmp_path / "quality.md")
    assert (tmp_path / "quality.md").read_bytes() == (ROOT / "docs" / "quality.md").read_bytes()


@pytest.mark.parametrize("name", ["origin", "gtr-paper", "gtr-lightgen"])
def test_the_plans_are_drawn_as_they_are_today(name: str, writers: dict[str, ModuleType]) -> None:
    drawn = writers["docs.draw"].plan_image(name).quantize(64, dither=Image.Dither.NONE).convert("RGB")
    shown = Image.open(ROOT / "docs" / f"plan_{name}.png").convert("RGB")
    assert drawn.tobytes() == shown.tobytes(), "run python -m docs.draw"
