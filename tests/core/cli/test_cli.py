"""The command line as a whole: it runs as a module, and what is wrong ends with the right exit code."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core import cli
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.cli.options import Verb
from gtr_pack.gtr_core.demo import DEMO_MAR, DEMO_VAE
from gtr_pack.gtr_core.models.labels import imagenet_names
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_library_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "gtr_core", "schedule", "--preset", "gtr-full", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["preset"] == "gtr-full"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no broken pipes")
@pytest.mark.parametrize(
    "words, codes",
    [(["info", str(DEMO_MAR)], {141}), (["schedule", "--help"], {0, 141})],  # argparse minds no reader of its help
    ids=["report", "help"],
)
def test_a_reader_that_leaves_early_is_no_error(words, codes):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "gtr_core", *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.stderr == b"" and done.returncode in codes


def test_class_names_are_unambiguous():
    assert len({name.lower() for name in imagenet_names()}) == 1000


def test_the_demo_model_is_small():
    assert DEMO_MAR.stat().st_size + DEMO_VAE.stat().st_size <= 20e6
    assert all(torch.isfinite(t).all() for path in (DEMO_MAR, DEMO_VAE) for t in load_file(path).values())


VERBS = ("info", "convert", "schedule", "flops", "generate", "generate-many", "bench", "eval", "search")


def test_the_verbs_are_those_of_the_contract():
    assert tuple(verb.name for verb in cli.VERBS) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    said = capsys.readouterr()
    assert ended.value.code == 0 and "--json" in said.out and not said.err


@pytest.mark.parametrize("verb", cli.VERBS, ids=VERBS)
def test_every_option_says_what_it_does_and_what_it_is_by_default(verb, capsys):
    parser = argparse.ArgumentParser()
    verb.add_options(parser)
    with pytest.raises(SystemExit):
        main([verb.name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for action in parser._actions:
        assert action.help, action.dest
        if action.default not in (None, False, argparse.SUPPRESS) and "default" not in action.help:
            assert f"(default: {action.default})" in said, action.dest


@pytest.mark.parametrize("verb", cli.VERBS, ids=VERBS)
def test_every_verb_has_an_example_whose_options_are_there(verb):
    parser = argparse.ArgumentParser(exit_on_error=False)
    verb.add_options(parser)
    parser.add_argument("--json", action="store_true")
    assert verb.examples
    for example in verb.examples:
        name, *words = shlex.split(example)
        assert name == verb.name and parser.parse_args(words)


def test_verbs_agree_on_their_defaults():
    """One model and one preset for all of them."""
    defaults = {}
    for verb in cli.VERBS:
        parser = argparse.ArgumentParser()
        verb.add_options(parser)
        for name in ("model", "seed", "cfg", "temperature", "fts", "fts_fraction", "fts_steps", "dtype"):
            defaults.setdefault(name, set()).add(parser.get_default(name))
    assert all(len(found - {None}) == 1 for found in defaults.values()), defaults


@pytest.mark.parametrize("arguments", [[], ["paint"], ["info"], ["generate", "--weird"], ["schedule", "--seed", "x"]])
def test_unknown_words_end_with_usage_and_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("usage: ") and "error: " in said.splitlines()[-1]


def ending(error: BaseException, monkeypatch, *, resumable: bool = False) -> int:
    def end(options) -> None:
        raise error

    verb = Verb("end", "ends", (), lambda sub: None, end, resumable)
    monkeypatch.setattr(cli, "VERBS", (verb,))
    return main(["end"])


def test_a_cancelled_verb_ends_with_code_130(monkeypatch, capsys):
    assert ending(KeyboardInterrupt(), monkeypatch) == 130 and capsys.readouterr().err == "cancelled\n"
    assert ending(KeyboardInterrupt(), monkeypatch, resumable=True) == 130
    assert capsys.readouterr().err == "cancelled: the same command goes on\n"


def test_memory_that_ran_out_ends_in_one_line(monkeypatch, capsys):
    assert ending(torch.OutOfMemoryError("CUDA out of memory.\nTried to"), monkeypatch) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: out of memory (CUDA out of memory.)") and text.count("\n") == 1


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    with pytest.raises(RuntimeError, match="shapes differ"):
        ending(RuntimeError("shapes differ"), monkeypatch)
