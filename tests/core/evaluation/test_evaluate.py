"""Evaluations: pairs, pieces that survive a kill, the verb, and FID through torch-fidelity where it is installed."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints import build_vae
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation import evaluate as module
from gtr_pack.gtr_core.evaluation import fid as fidelity
from gtr_pack.gtr_core.evaluation import tables as quality
from gtr_pack.gtr_core.evaluation.classifier import Classifier, ClassifierSpec, save_classifier
from gtr_pack.gtr_core.evaluation.evaluate import Evaluation, evaluate, evaluate_shard, shard, tasks
from gtr_pack.gtr_core.evaluation.features import ClassifierFeatures, ImageFeatures, make_reference, save_features
from gtr_pack.gtr_core.models import build
from gtr_pack.gtr_core.pipeline import decode_images, generate_latents
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_tests.extras import needs, why_missing
from gtr_tests.stand_ins import randomised, small_lightgen
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
VAE = ROOT / "tests" / "golden" / "vae_tiny_fp16.safetensors"
RANDOM = Method(Schedule("random", "random", (3,), diffusion=(4, 4, 4)), Guidance(2.0))
GTR = Method(Schedule("gtr", "gtr", (2, 1, 1), diffusion=(4, 3, 3)), Guidance(2.0), FTS(0.5, 4))
CLASSES, IMAGES = 10, 12
needs_fidelity = needs("torch_fidelity", "eval")


@pytest.fixture(scope="module")
def extractor() -> Classifier:
    names = tuple(f"class {label}" for label in range(CLASSES))
    return randomised(Classifier(ClassifierSpec(128, (8, 8, 16, 16), names, (("hue", 3),), 6)), 1).eval()


@pytest.fixture(scope="module")
def evaluation(tiny_mar, extractor) -> Evaluation:
    return Evaluation(tiny_mar, build_vae(VAE), ClassifierFeatures(extractor))


@pytest.fixture(scope="module")
def real(extractor) -> ImageFeatures:
    generator = torch.Generator().manual_seed(7)
    batches = ((torch.rand(40, 3, 128, 128, generator=generator) * 2 - 1, torch.arange(40) % CLASSES) for _ in range(2))
    return make_reference(ClassifierFeatures(extractor), batches)


@pytest.fixture(scope="module")
def complete(evaluation, tmp_path_factory) -> tuple[dict[str, list[ImageFeatures]], Path]:
    work = tmp_path_factory.mktemp("work")
    return evaluate(evaluation, [RANDOM, GTR], (0, 1), IMAGES, work, batch=4), work


def same(a: ImageFeatures, b: ImageFeatures) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))


def test_labels_are_balanced_and_pictures_paired(complete):
    """The same label for picture k whatever the method; other noise in every seed."""
    found, _ = complete
    assert list(found) == ["random", "gtr"] and [len(sets) for sets in found.values()] == [2, 2]
    for made in (*found["random"], *found["gtr"]):
        assert made.labels.tolist() == [k % CLASSES for k in range(IMAGES)] and torch.isfinite(made.features).all()
    assert not torch.allclose(found["random"][0].features, found["random"][1].features)
    assert not torch.allclose(found["random"][0].features, found["gtr"][0].features)


def test_pictures_are_those_of_the_generate_verb(evaluation, complete):
    """Picture k of seed s has the image seed 2^32 s + k: it can be made again, alone, by any method."""
    latents = generate_latents(evaluation.model, RANDOM.schedule, [5], 2**32 + 5, guidance=RANDOM.guidance)
    alone = evaluation.judge.measure(module.as_images(decode_images(evaluation.vae, latents), "cpu"), torch.tensor([5]))
    assert torch.allclose(alone.features[0], complete[0]["random"][1].features[5], atol=1e-2)


def test_equal_methods_give_equal_pictures(evaluation):
    """Pairing to the bit: a method under another name starts from the same noise."""
    twin = replace(RANDOM, schedule=replace(RANDOM.schedule, name="twin"))
    first, second = (evaluate_shard(evaluation, tasks([method], [3], 4)[0], 4) for method in (RANDOM, twin))
    assert same(first, second)


def test_the_batch_changes_rounding_only(evaluation):
    task = tasks([GTR], [0], 4)[0]
    one, four = evaluate_shard(evaluation, task, 1), evaluate_shard(evaluation, task, 4)
    assert torch.allclose(one.features, four.features, atol=1e-2) and torch.equal(one.labels, four.labels)


def test_a_deleted_shard_is_made_again_exactly(evaluation, complete):
    found, work = complete
    shards = sorted(work.iterdir())
    assert len(shards) == 4
    before = {path.name: path.read_bytes() for path in shards}
    shards[1].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-50])  # as a disk that was full
    shards[3].write_bytes(before[shards[0].name])  # a shard of another key
    made = []
    again = evaluate(evaluation, [RANDOM, GTR], (0, 1), IMAGES, work, batch=4, on_shard=lambda *what: made.append(what))
    assert len(made) == 3 and {path.name: path.read_bytes() for path in work.iterdir()} == before
    assert all(same(a, b) for name in found for a, b in zip(found[name], again[name]))


def test_a_longer_evaluation_goes_on(evaluation, tmp_path, monkeypatch):
    """Whole chunks of a shorter evaluation are kept."""
    monkeypatch.setattr(module, "CHUNK", 4)
    evaluate(evaluation, [RANDOM], [0], 4, tmp_path, batch=4)
    made = []
    found = evaluate(evaluation, [RANDOM], [0], 8, tmp_path, batch=4, on_shard=lambda task, *_: made.append(task.start))
    assert made == [4] and len(found["random"][0]) == 8


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, guidance=Guidance(3.0)),
        lambda m: replace(m, guidance=Guidance(2.0, "constant")),
        lambda m: replace(m, fts=FTS()),
        lambda m: replace(m, temperature=0.9),
        lambda m: replace(m, cache=LazyMAR()),
        lambda m: replace(m, schedule=replace(m.schedule, diffusion=(5, 4, 4))),
    ],
)
def test_keys_tell_settings_apart(change, evaluation):
    assert evaluation.key(tasks([RANDOM], [0], 4)[0]) != evaluation.key(tasks([change(RANDOM)], [0], 4)[0])


def test_keys_tell_parts_and_pieces_apart(evaluation, extractor):
    task = tasks([RANDOM], [0], 4)[0]
    others = [
        evaluation.key(other) for other in (replace(task, seed=1), replace(task, start=4), replace(task, count=3))
    ]
    for part in (
        {"dtype": torch.bfloat16},
        {"accelerate": True},
        {"judge": ClassifierFeatures(randomised(Classifier(extractor.spec), 2))},
        {"model": randomised(build(evaluation.model.spec), 3)},
    ):
        others.append(replace(evaluation, **part).key(task))
    assert len({evaluation.key(task), *others}) == 8
    assert evaluation.key(task) == Evaluation(evaluation.model, evaluation.vae, evaluation.judge).key(task)


def test_kept_pictures(evaluation, tmp_path):
    """PNG files are what was measured; one that is missing is made again."""
    task = tasks([RANDOM], [0], 4)[0]
    measured, stored = shard(evaluation, task, tmp_path / "work", 2, tmp_path / "png")
    files = sorted((tmp_path / "png" / "random" / "seed-0").iterdir())
    assert not stored and [file.name for file in files] == [f"{k:06}.png" for k in range(4)]
    files[2].unlink()
    again, stored = shard(evaluation, task, tmp_path / "work", 2, tmp_path / "png")
    assert not stored and files[2].is_file() and same(measured, again)
    assert shard(evaluation, task, tmp_path / "work", 2, tmp_path / "png")[1]


def test_what_cannot_be_evaluated(evaluation, extractor, tmp_path):
    with pytest.raises(GtRError, match="draws from text"):
        replace(evaluation, model=small_lightgen())
    with pytest.raises(GtRError, match="10 classes at 64 x 64 pixels"):
        replace(evaluation, judge=ClassifierFeatures(Classifier(replace(extractor.spec, size=64))))
    with pytest.raises(GtRError, match="all of different names"):
        tasks([RANDOM, RANDOM], [0], 8)
    with pytest.raises(GtRError, match="at least 4 images"):
        tasks([RANDOM], [0], 3)
    (tmp_path / "file").touch()
    with pytest.raises(GtRError, match="cannot make the folder"):
        evaluate(evaluation, [RANDOM], [0], 4, tmp_path / "file" / "work")


def test_rows_have_intervals_and_paired_differences(complete, real):
    found, _ = complete
    rows = quality.rows(found, (0, 1), lambda made, seed: quality.figures(made, real, seed), {"gtr": {"speedup": 2.0}})
    first, second = rows
    assert set(first["figures"]) == set(quality.FIGURES) - {"fid", "is"} and "difference" not in first
    for key, series in second["values"].items():
        differences = [a - b for a, b in zip(series, first["values"][key])]
        assert second["difference"][key]["mean"] == pytest.approx(sum(differences) / 2)
        assert second["figures"][key]["n"] == 2 and second["figures"][key]["half"] >= 0
    table = quality.markdown({"rows": rows})
    assert "| gtr | 2 x 12 | 2.00 x |" in table and "| gtr - random |" in table and "±" in table


def test_real_pictures_against_real_ones(real):
    """The floor's sets share no picture with each other or with what they are compared with."""
    pairs = list(quality.floor_sets(real, 20, (0, 1, 2)))
    rows = [{tuple(row) for row in made.features.tolist()} for made, _ in pairs]
    assert [len(row) for row in rows] == [20] * 3 and len(set.union(*rows)) == 60
    for own, (made, others) in zip(rows, pairs):
        assert len(others) == 60 and not own & {tuple(row) for row in others.features.tolist()}
        assert made.labels.bincount().tolist() == [2] * CLASSES
    assert quality.figures(*pairs[0])["recall"] > 0.2
    with pytest.raises(GtRError, match="make a larger one"):
        list(quality.floor_sets(real, 40, (0, 1, 2)))


@pytest.fixture(scope="module")
def files(tiny_mar, extractor, real, tmp_path_factory) -> list[str]:
    """The verb's options that name the tiny model, its judge and its reference."""
    folder = tmp_path_factory.mktemp("files")
    save_file(tiny_mar.state_dict(), folder / "mar.safetensors", spec_metadata(tiny_mar.spec, "ema"))
    save_classifier(folder / "judge.safetensors", extractor)
    save_features(folder / "real.safetensors", real, ClassifierFeatures(extractor).identity)
    return [
        "--model",
        f"{folder / 'mar.safetensors'}",
        "--vae",
        str(VAE),
        "--extractor",
        f"{folder / 'judge.safetensors'}",
        "--reference",
        f"{folder / 'real.safetensors'}",
    ]


QUICK = ["--presets", "step-8,gtr-extreme", "--images", "5", "--seeds", "2", "--device", "cpu", "--json"]


def run(*arguments: str) -> tuple[str, str]:
    """The verb's answer and its progress."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["eval", *arguments]) == 0
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory) -> tuple[dict, Path]:
    """An evaluation without interruption, and its work folder."""
    work = tmp_path_factory.mktemp("whole") / "work"
    out, err = run(*files, *QUICK, "--work", str(work))
    assert err.count("\n") == 4
    return json.loads(out), work


def test_the_verb(whole, files):
    result, work = whole
    assert [row["method"] for row in result["rows"]] == ["step-8", "gtr-extreme"] and result["seeds"] == [0, 1]
    assert result["command"].startswith("python -m gtr_core eval --model") and result["floor"]["images"] == 5
    assert result["rows"][1]["speedup"] > 1 and result["settings"]["step-8"]["guidance"]["scale"] == 3.0
    table, progress = run(*files, *QUICK[:-1], "--work", str(work))
    assert progress == "" and "| real pictures | 2 x 5 |" in table and "95 %" in table


def test_the_verb_draws_a_chart(whole, files, tmp_path):
    pytest.importorskip("matplotlib", reason=why_missing("matplotlib", "eval"))
    run(*files, *QUICK, "--work", str(whole[1]), "--png", str(tmp_path / "plot.png"))
    with Image.open(tmp_path / "plot.png") as chart:
        assert np.asarray(chart.convert("RGB")).std() > 10


@pytest.mark.slow
def test_workers_give_the_same_figures(files, tmp_path):
    """Shards made by two processes: the rows of one."""
    command = [sys.executable, "-m", "gtr_core", "eval", *files, *QUICK, "--presets", "gtr-extreme"]
    done = [
        subprocess.run(
            [*command, "--workers", str(count), "--work", str(tmp_path / str(count))],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for count in (1, 2)
    ]
    assert json.loads(done[0].stdout)["rows"] == json.loads(done[1].stdout)["rows"]
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "12")
    assert one == two and len(one) == 2


@pytest.mark.parametrize(
    "change, words",
    [
        (["--extractor", "nowhere"], "no file at nowhere"),
        (["--images", "200"], "make a larger one or lower --images"),
        (["--seeds", "0"], "at least 4 images and 1 seed"),
        (["--first-seed", "-1"], "1 seed from 0"),
        (["--batch", "0"], "a batch of 0"),
        (["--presets", "fast"], "unknown preset"),
        (["--presets", ","], "at least one"),
        (["--presets", "step-8,step-8"], "different names"),
        (["--metrics", "lpips"], "expected default, fid"),
        (["--png", "none/x.png"], "no folder none"),
        (["--png", "x.jpg"], "ends in .png, .svg or .pdf"),
        (["--device", "toaster"], "cannot be used"),
        (["--model", "demo", "--presets", "step-8"], "use the model's own"),
    ],
)
def test_wrong_options_end_in_one_line(change, words, files, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *files, *QUICK, *change]) == 2
    text = capsys.readouterr().err
    assert words in text and text.startswith("error: ") and text.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_own_figures_need_a_judge(files, capsys):
    assert main(["eval", *files[:4], *QUICK]) == 2
    assert "nothing to judge with" in capsys.readouterr().err


def statistics_file(path: Path, **changes) -> Path:
    arrays = {"mu": np.zeros(fidelity.DIM), "sigma": np.eye(fidelity.DIM)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"mu": None}, "no reference statistics"),
        ({"mu": np.zeros(3)}, "found shapes"),
        ({"mu": np.full(fidelity.DIM, np.nan)}, "finite mu"),
        ({"sigma": np.array([{}])}, "no reference statistics"),
    ],
)
def test_statistics_files_are_checked(changes, words, tmp_path):
    with pytest.raises(GtRError, match=words):
        fidelity.read_statistics(statistics_file(tmp_path / "s.npz", **changes))
    good = fidelity.read_statistics(statistics_file(tmp_path / "s.npz", mu=np.ones(fidelity.DIM, np.float32)))
    assert good["mu"].dtype == np.float64 and good["sigma"].shape == (fidelity.DIM, fidelity.DIM)


def test_fid_needs_its_reference(files, capsys):
    assert main(["eval", *files[:4], *QUICK, "--metrics", "fid,is"]) == 2
    assert "give an .npz" in capsys.readouterr().err


def test_without_the_extra_there_is_one_line(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert main(["eval", *files[:4], *QUICK, "--metrics", "is"]) == 2
    assert "pip install torch-fidelity" in capsys.readouterr().err


@pytest.fixture
def inception(tmp_path, monkeypatch) -> Path:
    """A weights file of torch-fidelity's network with random values: the published one is not at hand."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    with monkeypatch.context() as patch:
        patch.setattr(source, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(source.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = source.FeatureExtractorInceptionV3("inception-v3-compat", [fidelity.POOL])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


@pytest.mark.slow
@needs_fidelity
def test_fid_and_is_through_torch_fidelity(files, inception, tmp_path):
    """With random weights the numbers mean nothing, but they are torch-fidelity's own for the same PNG files."""
    import torch_fidelity

    statistics, pictures = tmp_path / "s.npz", tmp_path / "png" / "step-8"
    common = ["--presets", "step-8", "--extractor", str(inception), "--reference", str(statistics)]
    arguments = [*files[:4], *QUICK, *common, "--work", str(tmp_path / "work"), "--pictures", str(pictures.parent)]
    first = json.loads(run(*arguments, "--metrics", "is")[0])["rows"][0]["values"]
    shards = [load_file(path) for path in (tmp_path / "work").iterdir()]
    assert {tuple(shard["features"].shape) for shard in shards} == {(5, fidelity.DIM)}
    judge = fidelity.inception_features(inception)
    files_of_seed = sorted((pictures / "seed-1").iterdir())
    images = torch.stack([module.as_images(np.array(Image.open(f))[None], "cpu")[0] for f in files_of_seed])
    features = judge.measure(images, torch.arange(5)).features.double().numpy()
    np.savez(statistics, mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    out, progress = run(*arguments, "--metrics", "fid,is")
    values = json.loads(out)["rows"][0]["values"]
    theirs = torch_fidelity.calculate_metrics(
        input1=str(pictures / "seed-0"),
        input2=str(pictures / "seed-1"),
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


@needs_fidelity
def test_inception_weights_are_not_executed(tmp_path):
    torch.save({"a": time.perf_counter}, tmp_path / "evil.pth")
    with pytest.raises(GtRError, match="was not executed"):
        fidelity.inception_features(tmp_path / "evil.pth")
