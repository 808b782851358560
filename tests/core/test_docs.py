"""The documentation: every link leads somewhere, every picture has words, every preset is explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gtr_pack.gtr_core.plans.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("web/docs/**/*.md")]
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)]+)\)")
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


@pages
def test_pictures_exist_and_are_described(page: Path) -> None:
    for words, target in PICTURE.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target
        assert file.is_file(), target
        assert file.stat().st_size < 600_000, f"{target} is too large for a page"
        assert len(words.split()) >= 4, f"{target}: say in words what is to be seen"


def test_every_preset_can_be_chosen_from_the_page() -> None:
    text = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert [name for name in PRESETS if name != "lazymar" and f"`{name}`" not in text] == []
