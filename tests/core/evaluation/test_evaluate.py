"""Evaluations: images in pairs, and pieces that survive a kill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.evaluation.classifier import Classifier
from gtr_pack.gtr_core.evaluation.evaluate import Effort, Evaluation, Kept, as_tensor, evaluate, tasks
from gtr_pack.gtr_core.evaluation.features import ClassifierFeatures, ImageFeatures
from gtr_pack.gtr_core.models import build
from gtr_pack.gtr_core.pipeline import decode_images, generate_latents
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_tests.evaluations import CLASSES
from gtr_tests.stand_ins import randomised, small_lightgen
from PIL import Image

IMAGES = 12


def same(a: ImageFeatures, b: ImageFeatures) -> bool:
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()))


def test_labels_are_balanced_and_images_paired(complete):
    """The same label for image k whatever the method; other noise in every seed."""
    found, _ = complete
    assert list(found) == ["random", "gtr"] and [len(sets) for sets in found.values()] == [2, 2]
    for made in (*found["random"], *found["gtr"]):
        assert made.labels.tolist() == [k % CLASSES for k in range(IMAGES)] and torch.isfinite(made.features).all()
    assert not torch.allclose(found["random"][0].features, found["random"][1].features)
    assert not torch.allclose(found["random"][0].features, found["gtr"][0].features)


def test_images_are_those_of_the_generate_verb(evaluation, random_method, complete):
    """Image k of seed s has the image seed 2^32 s + k: it can be made again, alone, by any method."""
    latents = generate_latents(evaluation.model, random_method, [5], 2**32 + 5)
    images = as_tensor(decode_images(evaluation.vae, latents), "cpu")
    alone = evaluation.extractor.measure(images, torch.tensor([5]))
    assert torch.allclose(alone.features[0], complete[0]["random"][1].features[5], atol=1e-2)


def test_equal_methods_give_equal_images(evaluation, random_method):
    """Pairing to the bit: a method under another name starts from the same noise."""
    methods = (random_method, random_method.renamed("twin"))
    first, second = (evaluation.measure(tasks([method], [3], 4)[0], 4) for method in methods)
    assert same(first, second)


def test_the_batch_changes_rounding_only(evaluation, gtr_method):
    task = tasks([gtr_method], [0], 4)[0]
    one, four = evaluation.measure(task, 1), evaluation.measure(task, 4)
    assert torch.allclose(one.features, four.features, atol=1e-2) and torch.equal(one.labels, four.labels)


def test_a_deleted_result_is_made_again_exactly(evaluation, random_method, gtr_method, complete):
    found, work = complete
    results = sorted(work.iterdir())
    assert len(results) == 4
    before = {path.name: path.read_bytes() for path in results}
    results[1].unlink()
    results[2].write_bytes(results[2].read_bytes()[:-50])  # as a disk that was full
    results[3].write_bytes(before[results[0].name])  # a result of another key
    made = []
    effort = Effort(Kept(work), batch=4, on_task=lambda task, done, total: made.append((done, total)))
    again = evaluate(evaluation, [random_method, gtr_method], (0, 1), IMAGES, effort)
    assert made == [(2, 4), (3, 4), (4, 4)] and {path.name: path.read_bytes() for path in work.iterdir()} == before
    assert all(same(a, b) for name in found for a, b in zip(found[name], again[name]))


def test_a_longer_evaluation_goes_on_from_a_shorter_one(evaluation, random_method, tmp_path):
    """Whole chunks of a shorter evaluation are kept."""
    made = []
    effort = Effort(Kept(tmp_path), batch=4, chunk=4, on_task=lambda task, *_: made.append(task.start))
    evaluate(evaluation, [random_method], [0], 4, effort)
    made.clear()
    found = evaluate(evaluation, [random_method], [0], 8, effort)
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
def test_keys_tell_settings_apart(change, evaluation, random_method):
    first, second = (tasks([method], [0], 4)[0] for method in (random_method, change(random_method)))
    assert evaluation.key(first) != evaluation.key(second)


<<<<<<< HEAD
def test_keys_tell_parts_and_pieces_apart(evaluation, extractor):
    task = tasks([RANDOM], [0], 4)[0]
=======
def test_keys_tell_parts_and_pieces_apart(evaluation, extractor, random_method):
    task = tasks([random_method], [0], 4)[0]
>>>>>>> t2
    others = [
        evaluation.key(other) for other in (replace(task, seed=1), replace(task, start=4), replace(task, count=3))
    ]
    for part in (
        {"runtime": Runtime(dtype=torch.bfloat16)},
        {"runtime": Runtime(accelerate=True)},
        {"extractor": ClassifierFeatures(randomised(Classifier(extractor.spec), 2))},
        {"model": randomised(build(evaluation.model.spec), 3)},
    ):
        others.append(replace(evaluation, **part).key(task))
    assert len({evaluation.key(task), *others}) == 8
    assert evaluation.key(task) == Evaluation(evaluation.model, evaluation.vae, evaluation.extractor).key(task)


def test_kept_images_are_what_was_measured(evaluation, random_method, tmp_path):
    """One that is missing is made again."""
    task, kept = tasks([random_method], [0], 4)[0], Kept(tmp_path / "work", tmp_path / "png")
    assert evaluation.stored(task, kept) is None
    evaluation.make(2, kept, task)
    measured = evaluation.stored(task, kept)
    files = sorted((tmp_path / "png" / "random" / "seed-0").iterdir())
    assert [file.name for file in files] == [f"{k:06}.png" for k in range(4)]
    images = as_tensor(np.stack([np.array(Image.open(file)) for file in files]), "cpu")
    assert torch.allclose(evaluation.extractor.measure(images, measured.labels).features, measured.features, atol=1e-6)
    before = [file.read_bytes() for file in files]
    files[2].unlink()
    assert evaluation.stored(task, kept) is None
    evaluation.make(2, kept, task)
    assert [file.read_bytes() for file in files] == before and same(measured, evaluation.stored(task, kept))


def test_what_cannot_be_evaluated_is_refused(evaluation, extractor, random_method, tmp_path):
    with pytest.raises(GtRError, match="draws from text"):
        replace(evaluation, model=small_lightgen())
    with pytest.raises(GtRError, match="10 classes at 64 x 64 pixels"):
        replace(evaluation, extractor=ClassifierFeatures(Classifier(replace(extractor.spec, size=64))))
    with pytest.raises(GtRError, match="all of different names"):
        tasks([random_method, random_method], [0], 8)
    with pytest.raises(GtRError, match="at least 4 images"):
        tasks([random_method], [0], 3)
    (tmp_path / "file").touch()
    with pytest.raises(GtRError, match="cannot make the folder"):
<<<<<<< HEAD
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
    pytest.importorskip("matplotlib", reason="charts need matplotlib, of the extra eval")
    run(*files, *QUICK, "--work", str(whole[1]), "--png", str(tmp_path / "plot.png"))
    with Image.open(tmp_path / "plot.png") as chart:
        assert np.asarray(chart.convert("RGB")).std() > 10


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


INSTALLED = importlib.util.find_spec("torch_fidelity") is not None


@pytest.mark.skipif(INSTALLED, reason="torch-fidelity is installed")
def test_without_the_extra_there_is_one_line(files, capsys):
    assert main(["eval", *files[:4], *QUICK, "--metrics", "is"]) == 2
    assert "pip install torch-fidelity" in capsys.readouterr().err


@pytest.fixture
def inception(tmp_path, monkeypatch) -> Path:
    """A weights file of torch-fidelity's network with random values: the published one is not at hand."""
    source = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity: extra 'eval'")
    with monkeypatch.context() as patch:
        patch.setattr(source, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(source.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = source.FeatureExtractorInceptionV3("inception-v3-compat", [fidelity.POOL])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


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
        verbose=False,
    )
    assert progress == "" and values["is"] == first["is"]
    assert values["is"][0] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert values["fid"][0] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert values["fid"][1] == pytest.approx(0, abs=1e-3 * values["fid"][0])


def test_inception_weights_are_not_executed(tmp_path):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity: extra 'eval'")
    torch.save({"a": time.perf_counter}, tmp_path / "evil.pth")
    with pytest.raises(GtRError, match="was not executed"):
        fidelity.inception_features(tmp_path / "evil.pth")
=======
        evaluate(evaluation, [random_method], [0], 4, Effort(Kept(tmp_path / "file" / "work")))
    with pytest.raises(GtRError, match="a batch of 0"):
        Effort(Kept(tmp_path), batch=0)
>>>>>>> t2
