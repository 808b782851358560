"""``eval``: figures with their intervals, resumable, by any number of workers; FID through torch-fidelity."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.evaluation import fid
from gtr_pack.gtr_core.evaluation.evaluate import as_tensor
from gtr_tests.extras import needs
from PIL import Image
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

QUICK = ["--presets", "step-8,gtr-extreme", "--images", "5", "--seeds", "2", "--device", "cpu", "--json"]


def evaluate(capsys, *arguments) -> tuple[str, str]:
    """The verb's answer and its progress."""
    capsys.readouterr()
    assert main(["eval", *map(str, arguments)]) == 0
    said = capsys.readouterr()
    return said.out, said.err


@pytest.fixture(scope="module")
def files(model_options, judge_options) -> list[str]:
    return [*model_options, *judge_options]


@pytest.fixture(scope="module")
def whole(files, elsewhere, tmp_path_factory) -> tuple[dict, Path]:
    """An evaluation without interruption, and its work folder."""
    work = tmp_path_factory.mktemp("whole") / "work"
    done = elsewhere("eval", *files, *QUICK, "--work", work)
    assert done.stderr.count("\n") == 4
    return json.loads(done.stdout), work


@needs("matplotlib", "eval")
def test_figures_have_intervals_and_are_drawn(whole, files, capsys, tmp_path):
    result, work = whole
    assert [row["method"] for row in result["rows"]] == ["step-8", "gtr-extreme"] and result["seeds"] == [0, 1]
    assert result["command"].startswith("python -m gtr_core eval --model") and result["floor"]["images"] == 5
    assert result["rows"][1]["speedup"] > 1 and result["settings"]["step-8"]["guidance"]["scale"] == 3.0
    table, progress = evaluate(capsys, *files, *QUICK[:-1], "--work", str(work), "--figure", str(tmp_path / "plot.png"))
    assert progress == "" and "| real images | 2 × 5 |" in table and "95 %" in table
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_terminal_sees_what_is_read_and_how_far_a_piece_is(files, on_terminal, tmp_path):
    """Five images are one piece: without a bar that moves within it the whole run would be silent."""
    few = [
        "--presets",
        "step-8",
        "--images",
        5,
        "--batch",
        2,
        "--seeds",
        1,
        "--device",
        "cpu",
        "--work",
        tmp_path / "w",
    ]
    seen = on_terminal("eval", *files, *few)
    read = [frame.split()[1] for frame in seen if frame.startswith("reading")]
    assert read == [Path(files[k]).name for k in (1, 3, 5)]
    begun, ended = seen.index("0 of 1 pieces 0%"), seen.index("1 of 1 pieces 100%")
    assert ended - begun > 20 and seen[-1] == "1 of 1 pieces 100%"
    assert on_terminal("eval", *files, *few)[-1] == "all pieces are there 100%"


def test_a_terminal_sees_how_far_the_images_of_a_folder_are_measured(folders, judge_options, on_terminal, tmp_path):
    seen = on_terminal(*of_folder(folders["png"], judge_options, tmp_path / "w"), "--batch", 2)
    assert seen == [
        "looking for results of the 6 images 0%",
        "0 of 1 pieces 0%",
        "0 of 1 pieces 33%",
        "0 of 1 pieces 67%",
        "0 of 1 pieces 100%",
        "1 of 1 pieces 100%",
    ]


@pytest.mark.slow
def test_workers_give_the_same_figures(whole, files, elsewhere, tmp_path):
    """Results made by two processes: the rows of one."""
    result, work = whole
    done = elsewhere("eval", *files, *QUICK, "--engine", "local", "--workers", 2, "--work", tmp_path)
    assert json.loads(done.stdout)["rows"] == result["rows"]
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (work, tmp_path))
    assert one == two and len(one) == 4


@pytest.mark.parametrize(
    "change, words",
    [
        (["--extractor", "nowhere"], "nowhere: check the name"),
        (["--images", "200"], "make a larger one or lower --images"),
        (["--images", "2"], "error: --images 2: at least 4 are needed"),
        (["--images", "9999999999"], "error: --images 9999999999: expected fewer than 2147483648"),
        (["--seeds", "0"], "error: --seeds 0: at least 1 is needed"),
        (["--first-seed", "-1"], "error: seed -1: expected 0 to 2147483647; correct --first-seed"),
        (["--batch", "0"], "a batch of 0"),
        (["--presets", "fast"], "unknown preset"),
        (["--presets", ","], "at least one"),
        (["--presets", "step-8,step-8"], "different names"),
        (["--metrics", "lpips"], "expected default, fid"),
        (["--figure", "none/x.png"], "no folder none"),
        (["--device", "toaster"], "cannot be used"),
        (["--model", "demo", "--presets", "step-8"], "use the model's own"),
    ],
)
def test_wrong_options_end_in_one_line(change, words, files, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("eval", *files, *QUICK, *change)
    assert not list(tmp_path.iterdir())


def test_own_figures_need_a_classifier_and_a_reference(model_options, judge_options, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for some in ([], judge_options[:2], judge_options[2:]):
        said = refused("eval", *model_options, *some, *QUICK)
        assert said.startswith("error: nothing to judge with: use --metrics fid,is, or give a classifier")
    assert not list(tmp_path.iterdir())


def test_fid_needs_its_reference(model_options, refused):
    assert "give an .npz" in refused("eval", *model_options, *QUICK, "--metrics", "fid,is")


def test_without_the_extra_there_is_one_line(model_options, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert "pip install torch-fidelity" in refused("eval", *model_options, *QUICK, "--metrics", "is")


@pytest.fixture
def inception(tmp_path, monkeypatch) -> Path:
    """A weights file of torch-fidelity's network with random values: the published one is not at hand."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    with monkeypatch.context() as patch:
        patch.setattr(source, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(source.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = source.FeatureExtractorInceptionV3("inception-v3-compat", [fid.POOL])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


@pytest.fixture(scope="module")
def folders(model_options, elsewhere, tmp_path_factory) -> dict[str, Path]:
    """The same six images that generate-many made, as PNG files and as a shard."""
    made = {form: tmp_path_factory.mktemp(form) for form in ("png", "safetensors")}
    for form, folder in made.items():
        few = ["--images", 6, "--batch", 3, "--steps", "2,1,1", "--diffusion", "2,2,2", "--fts", "off"]
        elsewhere("generate-many", *model_options, *few, "--format", form, "--manifest", "jsonl", "-o", folder)
    return made


def of_folder(folder: Path, judge_options: list[str], work: Path) -> list:
    return ["eval", "--folder", folder, *judge_options, "--device", "cpu", "--work", work]


def test_a_folder_of_generate_many_is_measured(folders, judge_options, run, capsys, tmp_path):
    """As files or as a shard, once: a second run finds the results."""
    found = {form: run(*of_folder(folder, judge_options, tmp_path / form)) for form, folder in folders.items()}
    values = [facts["rows"][0]["values"] for facts in found.values()]
    assert values[0] == values[1] and found["png"]["images"] == 6 and found["png"]["rows"][0]["method"] == "custom"
    assert len(list((tmp_path / "png").iterdir())) == 1
    assert main(list(map(str, of_folder(folders["png"], judge_options, tmp_path / "png")))) == 0
    said = capsys.readouterr()
    assert said.err == "" and "| custom | 1 × 6 |" in said.out


@pytest.mark.slow
def test_workers_measure_a_folder_alike(folders, judge_options, run, elsewhere, tmp_path):
    command = of_folder(folders["png"], judge_options, tmp_path / "two")
    done = elsewhere(*command, "--workers", 2, "--json")
    assert "1 of 1 pieces (png0, images 0 to 5)" in done.stderr
    alone = run(*of_folder(folders["png"], judge_options, tmp_path / "one"))
    assert json.loads(done.stdout)["rows"] == alone["rows"]


@pytest.mark.parametrize("form", ["png", "safetensors"])
def test_images_that_were_changed_after_they_were_measured_are_refused(form, folders, judge_options, refused, tmp_path):
    """Their results are stored, and are no longer those of what is in the folder."""
    copy, command = tmp_path / "copy", of_folder(tmp_path / "copy", judge_options, tmp_path / "work")
    shutil.copytree(folders[form], copy)
    assert main(list(map(str, command))) == 0
    if form == "png":
        shutil.copy(copy / "000001.png", copy / "000002.png")
    else:
        shard = load_file(copy / "000000.safetensors")
        shard["images"][2] = shard["images"][1]
        save_file(shard, copy / "000000.safetensors")
    assert "image 2 is not the one that the manifest names" in refused(*command)
    (copy / ("000002.png" if form == "png" else "000000.safetensors")).unlink()
    assert "run generate-many again" in refused(*command)


def test_a_folder_that_is_not_what_was_made_is_refused(folders, judge_options, refused, tmp_path):
    copy, command = tmp_path / "copy", of_folder(tmp_path / "copy", judge_options, tmp_path / "work")
    assert "expected a folder of generate-many" in refused(*command)
    shutil.copytree(folders["png"], copy)
    shutil.copy(copy / "000001.png", copy / "000002.png")
    assert "image 2 is not the one that the manifest names" in refused(*command)
    (copy / "000002.png").unlink()
    assert "no image 2 (FileNotFoundError): run generate-many again" in refused(*command)
    rows = [json.loads(line) for line in (copy / "manifest.jsonl").read_text().splitlines()]
    for change in ({"file": "../a.png"}, {"class": "cat"}, {"class": -1}, {"row": None}, {"sha256": 5}):
        (copy / "manifest.jsonl").write_text(json.dumps(rows[0] | change))
        assert "is damaged" in refused(*command)
    (copy / "manifest.jsonl").write_text("".join(json.dumps(row | {"class": 99}) + "\n" for row in rows))
    assert "of more classes than the extractor knows" in refused(*command)
    assert "leave out --first-seed" in refused(*of_folder(folders["png"], judge_options, tmp_path), "--first-seed", 3)


@pytest.mark.slow
@needs("torch_fidelity", "eval")
def test_fid_and_is_are_those_of_torch_fidelity(model_options, inception, capsys, tmp_path):
    """With random weights the numbers mean nothing, but they are torch-fidelity's own for the same PNG files."""
    import torch_fidelity

    statistics, folder = tmp_path / "s.npz", tmp_path / "png" / "step-8"
    common = ["--presets", "step-8", "--extractor", str(inception), "--reference", str(statistics)]
    arguments = [*model_options, *QUICK, *common, "--work", str(tmp_path / "work"), "--save-images", str(folder.parent)]
    first = json.loads(evaluate(capsys, *arguments, "--metrics", "is")[0])["rows"][0]["values"]
    shards = [load_file(path) for path in (tmp_path / "work").iterdir()]
    assert {tuple(shard["features"].shape) for shard in shards} == {(5, fid.DIM)}
    measured = fid.inception_features(inception)
    files_of_seed = sorted((folder / "seed-1").iterdir())
    images = torch.stack([as_tensor(np.array(Image.open(f))[None], "cpu")[0] for f in files_of_seed])
    features = measured.measure(images, torch.arange(5)).features.double().numpy()
    np.savez(statistics, mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    out, progress = evaluate(capsys, *arguments, "--metrics", "fid,is")
    values = json.loads(out)["rows"][0]["values"]
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folder / "seed-0"),
        input2=str(folder / "seed-1"),
        isc=True,
        fid=True,
        cuda=False,
        isc_splits=5,
        rng_seed=2020,
        samples_shuffle=True,
        feature_extractor_weights_path=str(inception),
        cache=False,
        save_cpu_ram=True,  # no processes to load files
        verbose=False,
    )
    assert progress == "" and values["is"] == first["is"]
    assert values["is"][0] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert values["fid"][0] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert values["fid"][1] == pytest.approx(0, abs=1e-3 * values["fid"][0])
