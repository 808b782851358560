"""The shipped API workflows over POST /prompt: valid, with progress and previews, cached, and stopped on request."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gtr_tests import rest, sharing
from gtr_tests.rest import Graph

if TYPE_CHECKING:
    from gtr_tests.client import Client, Event, Preview, Run

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "workflows" / "api"
# What a release has shipped stays valid; an unchanged one comes from the cache of the run before.
SHIPPED = sorted(
    [*API.glob("*.json"), *(ROOT / "tests" / "released").glob("*/api/*.json")], key=lambda path: (path.name, path)
)
WEIGHTS = (".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin")


def read(path: Path) -> Graph:
    assert path.is_file(), f"{path} should be part of the repository and does not exist"
    return json.loads(path.read_text(encoding="utf-8"))


def weights(graph: Graph) -> set[str]:
    """The weight files that a graph names."""
    return {
        value
        for node in graph.values()
        for value in node["inputs"].values()
        if isinstance(value, str) and value.endswith(WEIGHTS)
    }


def with_small_text_encoder(graph: Graph) -> Graph:
    """The tests' T5 in place of a loader of a real one."""
    small = {"class_type": "GtRTest_TinyT5", "inputs": {"masked": True}}
    return {node: small if entry["class_type"] == "CLIPLoader" else entry for node, entry in graph.items()}


def with_one_image(graph: Graph) -> Graph:
    """The graph with batches of one, which take less time."""
    changed = copy.deepcopy(graph)
    for node in changed.values():
        node["inputs"].update(
            {key: value for key, value in {"batch_size": 1, "class_list": ""}.items() if key in node["inputs"]}
        )
    return changed


def with_seed(graph: Graph, seed: int) -> Graph:
    """The graph with this seed, which makes a cached result of another seed useless."""
    changed = copy.deepcopy(graph)
    for node in changed.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] = seed
    return changed


def nodes_of(graph: Graph, class_type: str) -> set[str]:
    return {node for node, entry in graph.items() if entry["class_type"] == class_type}


@pytest.fixture
def demo() -> Graph:
    """The demo workflow, which needs no file outside the repository, with one image."""
    return with_one_image(read(API / "demo.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=["-".join(path.relative_to(ROOT).parts[-3:]) for path in SHIPPED])
def test_runs(client: Client, model_files: frozenset[str], path: Path) -> None:
    rest.upload(client.url, sharing.EXAMPLE.name, sharing.EXAMPLE.read_bytes())
    graph = with_one_image(with_small_text_encoder(read(path)))
    missing = weights(graph) - model_files
    if missing:
        pytest.skip(f"{path.name} names weights for which model_files has no stand-in: {', '.join(sorted(missing))}")
    run = client.prompt(graph)
    assert run.node_errors == {}
    assert run.status == "success"
    assert run.images, "a workflow should end in an image"


def test_reports_progress_and_previews(client: Client, demo: Graph) -> None:
    run = client.prompt(with_seed(demo, 101))
    (sampler,) = nodes_of(demo, "GtR_Sampler")
    progress = [event.data for event in run.of_type("progress") if event.data["node"] == sampler]
    values = [data["value"] for data in progress]
    assert values == sorted(values) and len(set(values)) > 1
    assert values[-1] == progress[-1]["max"]
    assert run.previews
    assert all(preview.metadata.get("node_id") == sampler for preview in run.previews)
    assert all(min(preview.open().size) > 0 for preview in run.previews)


def test_the_sampler_says_where_it_is_and_what_it_did(client: Client, demo: Graph) -> None:
    run = client.prompt(with_seed(demo, 105))
    (sampler,) = nodes_of(demo, "GtR_Sampler")
    texts = [event.data["text"] for event in run.of_type("progress_text") if event.data["node"] == sampler]
    generation = [f"generation {k}/30" for k in range(1, 31)]
    assert texts[:-1] == [*generation, "reconstruction 1/2", "reconstruction 2/2", "revision 1/1"]
    assert texts[-1] == "done: 33 AR steps"
    report = run.outputs[sampler]["text"][0]
    assert report.startswith("gtr-paper on demo: 1 image") and "stage 3 (reconstruction): 2 AR steps" in report


def test_second_identical_prompt_comes_from_the_cache(client: Client, demo: Graph) -> None:
    graph = with_seed(demo, 102)
    first, second = client.prompt(graph), client.prompt(graph)
    assert nodes_of(demo, "GtR_Sampler") <= set(first.executed)
    assert second.cached == set(graph)
    assert second.executed == []
    assert second.images == first.images


def test_interrupt_stops_within_one_step(client: Client, demo: Graph) -> None:
    graph = with_seed(demo, 103)
    run, answered = interrupted(client, graph)
    assert run.status == "interrupted"
    assert not nodes_of(demo, "SaveImage") & set(run.images)
    values = [event.data["value"] for event in run.of_type("progress") if event.at <= answered]
    last = run.of_type("progress")[-1].data
    # One step may have been under way, and its report on its way here.
    assert last["value"] <= max(values, default=0) + 2 < last["max"]


def test_run_after_an_interrupt_equals_an_undisturbed_one(client: Client, demo: Graph) -> None:
    graph = with_seed(demo, 104)
    undisturbed = images(client.prompt(graph))
    client.free()
    assert interrupted(client, graph)[0].status == "interrupted"
    assert images(client.prompt(graph)) == undisturbed


def interrupted(client: Client, graph: Graph) -> tuple[Run, float]:
    """Run a graph and stop it at its first progress; the run, and when the server had taken note."""
    answers: list[float] = []

    def stop(message: Event | Preview) -> None:
        if not answers and getattr(message, "type", "") == "progress":
            answers.append(client.interrupt())

    run = client.prompt(graph, expect_errors=True, on_event=stop)
    assert answers, "the run should report progress, and ended without"
    return run, answers[0]


def images(run: Run) -> dict[str, list[Any]]:
    """Size and pixels of every image of a run, by node."""
    from gtr_tests.client import pixels

    return {node: [pixels(image) for image in images] for node, images in run.images.items()}
