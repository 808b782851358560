"""Safetensors files in parts: any part, or the index, stands for all of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model
from gtr_pack.gtr_core.checkpoints.checkpoint import read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.errors import GtRError
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"


def part(number: int, count: int = 3, suffix: str = ".safetensors") -> str:
    return f"model-{number:05d}-of-{count:05d}{suffix}"


@pytest.fixture
def sharded(weights, spec, tmp_path) -> Path:
    """A folder with a model in three parts and their index."""
    names, places = sorted(weights), {}
    for number in (1, 2, 3):
        own = names[number - 1 :: 3]
        metadata = spec_metadata(spec, "ema") if number == 1 else None
        save_file({name: weights[name] for name in own}, tmp_path / part(number), metadata)
        places |= dict.fromkeys(own, part(number))
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return tmp_path


@pytest.mark.parametrize("name", [part(1), part(2), part(3), INDEX])
def test_any_part_and_the_index_read_all_parts(name, sharded, weights, spec):
    checkpoint = read_checkpoint(sharded / name)
    assert checkpoint.parts == 3 and checkpoint.weights == "ema"
    assert set(checkpoint.tensors) == set(weights)
    assert all(torch.equal(checkpoint.tensors[name], t) for name, t in weights.items())
    assert load_model(sharded / name).spec == spec


def test_parts_are_converted_to_one_file(sharded, weights):
    convert(sharded / part(2), sharded / "whole.safetensors")
    assert read_checkpoint(sharded / "whole.safetensors").parts == 1


def test_parts_of_torch_save(weights, tmp_path):
    names = sorted(weights)
    for number in (1, 2):
        torch.save({name: weights[name] for name in names[number - 1 :: 2]}, tmp_path / part(number, 2, ".bin"))
    assert set(read_checkpoint(tmp_path / part(2, 2, ".bin")).tensors) == set(weights)


@pytest.mark.parametrize("name", [part(1), INDEX])
def test_missing_parts_are_named(name, sharded, refusal):
    (sharded / part(2)).unlink()
    said = refusal(sharded / name)
    assert f"missing beside it: {part(2)}: put all its parts into one folder" in said and "damaged" not in said
    assert ("is one part of 3" if name != INDEX else "is the index of a sharded file") in said


def test_a_part_alone_under_another_name_is_incomplete(sharded, refusal, tmp_path):
    shutil.copy(sharded / part(2), tmp_path / "alone.safetensors")
    assert re.search("not a model|missing", refusal(tmp_path / "alone.safetensors"))


def test_one_part_of_one_is_a_whole_file(good, weights, tmp_path):
    shutil.copy(good, tmp_path / part(1, 1))
    assert read_checkpoint(tmp_path / part(1, 1)).parts == 1


@pytest.mark.parametrize(
    "index, words",
    [
        ({"weight_map": {}}, "no table of names"),
        ({"weight_map": []}, "no table of names"),
        ({"weight_map": {"a": 5}}, "cannot be read"),
        ({"weight_map": {"a": "../model.safetensors"}}, "do not lie beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "do not lie beside it"),
        ({"weight_map": {"a": "folder\\x.safetensors"}}, "do not lie beside it"),
        ({"weight_map": {"a": ""}}, "do not lie beside it"),
        ({"weight_map": {"a": "."}}, "do not lie beside it"),
        ({"metadata": {}}, "cannot be read"),
        ({"weight_map": {"nowhere": part(1)}}, "lacks 'nowhere'"),
        ({"weight_map": {"a": INDEX}}, "not one of its parts"),
        ({"weight_map": {f"n{k}": f"p{k}" for k in range(1200)}}, "do not lie beside it"),
    ],
)
def test_an_index_that_lies_is_refused(index, words, sharded, refusal):
    (sharded / INDEX).write_text(json.dumps(index))
    assert re.search(words, refusal(sharded / INDEX))


def test_parts_of_two_files_are_noticed(sharded, weights, refusal):
    shutil.copy(sharded / part(1), sharded / part(2))
    assert "which another part holds too" in refusal(sharded / part(1))
    torch.save([1], sharded / part(2))
    assert "not one part of a sharded file" in refusal(sharded / part(1))


def test_a_name_that_is_not_utf8_is_said(good):
    path = Path(str(good.parent / "b\udcff.safetensors"))
    try:
        shutil.copy(good, path)
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(GtRError, match="its name is not UTF-8"):
        read_checkpoint(path)
