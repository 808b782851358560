"""Qwen2.5's tokenizer from its files."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from gtr_pack.gtr_core.checkpoints.tokenizer import load_tokenizer
from gtr_pack.gtr_core.errors import GtRError
from gtr_tests.harmon import write_tokenizer


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_tokenizer(tmp_path)


def test_bytes_are_merged_and_special_tokens_are_one(folder):
    tokenize = load_tokenizer(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert tokenize("cat") == [vocabulary["cat"]]
    assert tokenize("cab") == [vocabulary["ca"], vocabulary["b"]]
    assert tokenize("<|im_start|>cat<|im_end|>") == [259, vocabulary["cat"], 260]
    # Letters above ASCII are several bytes; a composed one equals its parts.
    assert len(tokenize("\u732b")) == 3 and tokenize("e\u0301") == tokenize("\u00e9")
    assert tokenize("") == []


def test_a_digit_is_a_token_and_spaces_lead_words(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "12": 258}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {}}))
    (folder / "merges.txt").write_text("1 2\nc a\nca t\n")
    assert load_tokenizer(folder)("12") == [vocabulary["1"], vocabulary["2"]]
    assert load_tokenizer(folder)(" cat") == [vocabulary["\u0120"], vocabulary["cat"]]


def break_merge(folder: Path) -> None:
    (folder / "merges.txt").write_text("q z\n")


def break_numbers(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"300": {"content": "x", "special": true}}}'
    )


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda folder: (folder / "merges.txt").unlink(), "no tokenizer at .*: merges.txt are missing"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "vocab.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), "cannot be read"),
        (break_merge, "no token for the pair q z"),
        (break_numbers, "do not follow"),
    ],
)
def test_damaged_files_end_in_one_line(damage, words, folder):
    damage(folder)
    with pytest.raises(GtRError, match=words) as refusal:
        load_tokenizer(folder)
    assert "qwen25_tokenizer" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_missing_package_is_named(folder, monkeypatch):
    load = importlib.import_module

    def missing(name):
        if name == "tokenizers":
            raise ImportError("No module named 'tokenizers'")
        return load(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(GtRError, match="pip install tokenizers"):
        load_tokenizer(folder)
