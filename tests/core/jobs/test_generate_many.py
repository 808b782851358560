"""Many images by one method: every one as alone, only what is missing is made, and a manifest of all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_vae
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.jobs.generate_many import (
    GenerationJob,
    Made,
    check_manifest,
    claim,
    generate_many,
    keys_of,
    write_manifest,
)
from gtr_pack.gtr_core.jobs.workers import WorkerPool
from gtr_pack.gtr_core.models.vae import KLVAE, VAESpec
from gtr_pack.gtr_core.pipeline import decode_images, generate_latents
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_tests.evaluations import VAE, write_model
from gtr_tests.extras import why_missing
from gtr_tests.stand_ins import randomised, small_lightgen
from PIL import Image
from safetensors.torch import load_file, save_file

ALONE = WorkerPool()
METHOD = Method(Schedule("custom", "gtr", (2, 1, 1), diffusion=(2, 2, 2), decoder_scope="stage"), Guidance(3.0))


@pytest.fixture(scope="module")
def model_file(tiny_mar, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, tiny_mar)
    return folder / "mar.safetensors"


@pytest.fixture
def job(model_file, tmp_path) -> GenerationJob:
    """Six images in three pieces."""
    return GenerationJob(model_file, VAE, METHOD, 6, 7, tmp_path / "out", (3, 1, 2, 0), shard=2, batch=2)


@pytest.fixture
def text_job(tmp_path) -> GenerationJob:
    """Three images of 32 x 64 pixels of two prompts."""
    text = small_lightgen()
    save_file(text.state_dict(), tmp_path / "model.safetensors", spec_metadata(text.spec, "model"))
    vae = randomised(KLVAE(VAESpec(32, (1, 1, 1, 1), 1, 16, 16, quant=False)), 1)
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    save_file({"prompt_embeds": torch.randn(2, 128, 64)}, tmp_path / "text.safetensors")
    model, vae_file, prompts = (tmp_path / f"{name}.safetensors" for name in ("model", "vae", "text"))
    return GenerationJob(model, vae_file, METHOD, 3, 0, tmp_path / "out", prompts=prompts, grid=(4, 2), batch=2)


def make(job: GenerationJob, on_piece: Callable[[int, int], None] | None = None) -> Made:
    """What is missing of a job, made by this process while it holds the folder."""
    keys = keys_of(job, ALONE.device)
    with claim(job):
        return generate_many(job, keys, ALONE, on_piece)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_image_is_what_generate_makes(job, tiny_mar):
    """Image k has the label k modulo their number and the seed of the job + k."""
    make(job)
    latents = generate_latents(tiny_mar, METHOD, [3, 1], 7 + 4)
    found = [np.array(Image.open(job.output / f"{index:06}.png")) for index in (4, 5)]
    assert np.array_equal(np.stack(found), decode_images(load_vae(VAE), latents))


def test_what_killed_workers_left_half_written_goes_with_the_next_run(job):
    make(job)
    before = contents(job.output)
    for name in (".000000.png.12-34.part", ".records/.000000.json.12-34.part"):
        (job.output / name).touch()
        os.utime(job.output / name, (0, 0))
    assert make(job).made == 0 and contents(job.output) == before


def test_the_manifest_has_a_row_per_image(job):
    result = make(job)
    path = write_manifest(job, keys_of(job, ALONE.device), result.rows, "jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == result.rows and result.made == 6
    assert [row["index"] for row in rows] == list(range(6)) and [row["seed"] for row in rows] == list(range(7, 13))
    assert [row["class"] for row in rows] == [3, 1, 2, 0, 3, 1] and {row["preset"] for row in rows} == {"custom"}
    assert len({row["sha256"] for row in rows}) == 6 and {row["file"] for row in rows} <= set(contents(job.output))


@pytest.mark.slow
def test_only_what_is_missing_is_made(job):
    """After a stop, a damaged image, a deleted one, a damaged record, other settings, and more images."""

    def made(changed: GenerationJob = job) -> int:
        return make(changed).made

    assert made() == 6
    before = contents(job.output)
    assert made() == 0
    (job.output / "000001.png").write_bytes(before["000001.png"][:-20])
    assert made() == 2
    (job.output / "000002.png").unlink()
    (job.output / ".records" / "000004.json").write_bytes(b"[1, {")
    assert made() == 4 and contents(job.output) == before
    assert made(replace(job, images=7)) == 1
    assert made(replace(job, images=2, method=replace(METHOD, guidance=Guidance(2.0)))) == 2


@pytest.mark.slow
def test_pieces_are_counted_as_they_come(job):
    seen = []
    make(replace(job, images=2))
    make(replace(job, images=5), lambda made, left: seen.append((made, left)))
    assert seen == [(2, 1), (3, 0)]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": (3, 2)},
        {"seed": 8},
        {"dtype": torch.bfloat16},
        {"format": "safetensors"},
        {"method": replace(METHOD, temperature=0.9)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_keys_tell_jobs_apart(change, job):
    own, other = (keys_of(some, "cpu").of(some, 0) for some in (job, replace(job, **change)))
    assert own != other and own == keys_of(job, "cpu").of(job, 0) != keys_of(job, "cpu").of(job, 2)


def test_the_batch_is_in_no_key(job):
    one = replace(job, batch=1)
    assert keys_of(one, "cpu").of(one, 0) == keys_of(job, "cpu").of(job, 0)


def test_shards_of_safetensors_hold_images_and_latents(job):
    result = make(replace(job, images=3, format="safetensors"))
    shards = [load_file(job.output / name) for name in ("000000.safetensors", "000002.safetensors")]
    assert [len(shard["images"]) for shard in shards] == [2, 1] and result.made == 3
    assert shards[0]["images"].dtype == torch.uint8 and shards[0]["latents"].shape[0] == 2
    assert [(row["file"], row["row"]) for row in result.rows] == [
        ("000000.safetensors", 0),
        ("000000.safetensors", 1),
        ("000002.safetensors", 0),
    ]


def test_a_parquet_manifest_has_the_same_rows(job):
    parquet = pytest.importorskip("pyarrow.parquet", reason=why_missing("pyarrow", "scale"))
    result = make(replace(job, images=2))
    path = write_manifest(job, keys_of(job, ALONE.device), result.rows, "parquet")
    assert path.name == "manifest.parquet" and parquet.read_table(path).to_pylist() == result.rows


def test_a_parquet_manifest_needs_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    check_manifest("jsonl")
    with pytest.raises(GtRError, match="pip install pyarrow .* --manifest jsonl"):
        check_manifest("parquet")


def test_prompts_take_turns(text_job):
    result = make(text_job)
    assert [row["prompt"] for row in result.rows] == [0, 1, 0] and {row["class"] for row in result.rows} == {None}
    assert Image.open(text_job.output / "000000.png").size == (32, 64)
    save_file({"prompt_embeds": torch.randn(2, 128, 64)}, text_job.prompts)
    assert make(text_job).made == 3


def test_jobs_that_cannot_be_are_refused(job, text_job):
    for change, words in (
        ({"images": 0}, "expected at least 1 image"),
        ({"batch": 0}, "a batch from 1 to the size of a shard"),
        ({"batch": 3}, "a batch from 1 to the size of a shard"),
        ({"labels": ()}, "expected classes, or prompts"),
        ({"prompts": text_job.prompts}, "expected classes, or prompts"),
    ):
        with pytest.raises(GtRError, match=words):
            replace(job, **change)
    with pytest.raises(GtRError, match="draws from classes, not from encoded text"):
        make(replace(job, labels=(), prompts=text_job.prompts))
    with pytest.raises(GtRError, match="draws from encoded text, not from classes"):
        make(replace(text_job, labels=(1,), prompts=None))
    with pytest.raises(GtRError, match="pixels only"):
        make(replace(job, grid=(4, 4)))
    assert not job.output.exists()
