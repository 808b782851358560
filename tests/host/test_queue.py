"""A full queue: order, metadata, memory and cancelling; memory given back."""

from __future__ import annotations

import gc
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from gtr_tests import rest
from gtr_tests.rest import Graph
from PIL import Image
from safetensors.torch import save_file

if TYPE_CHECKING:
    from gtr_tests.client import Client, Event, Preview
    from gtr_tests.server import ComfyServer

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
MIB = 1 << 20
PROMPTS, STOPPED, DELETED = 48, 10, 28
GROWTH = 32 * MIB
"""How much the server may grow over the last two thirds of the queue: its history and the allocator's waste, nothing
else. One kept model is 6 MiB here, one kept image with its latents 1 MiB: both would be seen."""
CHEAP = {"preset": "custom", "diffusion_start": 1, "diffusion_end": 1, "diffusion_reconstruction": 1, "rates": ""}
SCHEDULES = (
    {"order": "random", "steps": "1"},
    {"order": "gtr", "steps": "1,1"},
    {"order": "halton", "steps": "2"},
    {"order": "gtr", "steps": "1,1,1"},
)


@pytest.fixture
def graph() -> Graph:
    """The demo workflow with one image per run, not magnified, and no image of the plan."""
    demo = json.loads((API / "demo.json").read_text(encoding="utf-8"))
    kept = {
        node: entry for node, entry in demo.items() if entry["class_type"] not in ("GtR_PreviewSchedule", "ImageScale")
    }
    kept[the(kept, "SaveImage")]["inputs"]["images"] = [the(kept, "VAEDecode"), 0]
    kept[the(kept, "GtR_EmptyLatent")]["inputs"]["batch_size"] = 1
    return kept


def the(graph: Graph, class_type: str) -> str:
    """The only node of a type."""
    (node,) = (node for node, entry in graph.items() if entry["class_type"] == class_type)
    return node


def variant(graph: Graph, number: int, classes: int) -> Graph:
    """A run of its own: seed, class, schedule and guidance change with the number, each in its own rhythm."""
    changed = json.loads(json.dumps(graph))
    changed[the(graph, "GtR_Sampler")]["inputs"].update(seed=1000 + number, cfg=(1.0, 2.5)[number % 2])
    changed[the(graph, "GtR_ClassCondition")]["inputs"]["class_list"] = str(number % classes)
    changed[the(graph, "GtR_Scheduler")]["inputs"].update(CHEAP | SCHEDULES[number // 3 % len(SCHEDULES)])
    changed[the(graph, "SaveImage")]["inputs"]["filename_prefix"] = f"queue/{number:03d}"
    return changed


def slow(graph: Graph) -> Graph:
    """As many steps as to be stopped in the middle."""
    graph[the(graph, "GtR_Scheduler")]["inputs"].update(preset="origin")
    return graph


def resident(server: ComfyServer) -> int:
    """The server's memory in bytes."""
    import psutil

    return psutil.Process(server.pid).memory_info().rss


def test_a_full_queue(client: Client, comfy_server: ComfyServer, graph: Graph) -> None:
    from gtr_tests.client import Run
    from gtr_tests.client import pixels as read

    classes = demo_spec().classes
    graphs = [variant(graph, number, classes) for number in range(PROMPTS)]
    graphs[STOPPED] = slow(graphs[STOPPED])
    runs = [
        Run(rest.post(f"{client.url}/prompt", {"prompt": queued, "client_id": client.id})["prompt_id"])
        for queued in graphs
    ]
    rest.post(f"{client.url}/queue", {"delete": [runs[DELETED].prompt_id]})
    loaders = {the(graph, "GtR_LoadMAR"), the(graph, "GtR_LoadMARVAE")}
    saver, half = the(graph, "SaveImage"), 0
    for number, run in enumerate(runs):
        if number == DELETED:
            continue
        client.follow(run, stopper(client) if number == STOPPED else None)
        if number == STOPPED:
            assert run.status == "interrupted" and not run.images
            half = resident(comfy_server)
            continue
        assert run.status == "success", run.trouble
        assert number == 0 or loaders <= run.cached
        (image,) = run.images[saver]
        assert carried(image) == graphs[number]
        assert run.outputs[saver]["images"][0]["filename"].startswith(f"{number:03d}_")
    grown = resident(comfy_server) - half
    print(f"the server grew by {grown / MIB:.1f} MiB")
    assert grown < GROWTH, f"the server grew by {grown / MIB:.0f} MiB over {PROMPTS - STOPPED - 2} runs"
    done = [entry for entry in rest.get(f"{client.url}/history") if entry in {run.prompt_id for run in runs}]
    assert done == [run.prompt_id for number, run in enumerate(runs) if number != DELETED], "in the order of queueing"
    assert len({read(run.images[saver][0]) for run in runs if run.images}) == PROMPTS - 2, "every image is another"
    alone = client.prompt(
        {
            **graphs[30],
            saver: {**graphs[30][saver], "inputs": {**graphs[30][saver]["inputs"], "filename_prefix": "queue/alone"}},
        }
    )
    assert read(alone.images[saver][0]) == read(runs[30].images[saver][0])


def carried(image: bytes) -> Graph:
    """The prompt in a PNG, less the state of the loaders' files, which the server adds."""
    prompt = json.loads(Image.open(io.BytesIO(image)).text["prompt"])
    return {node: {key: value for key, value in entry.items() if key != "is_changed"} for node, entry in prompt.items()}


def demo_spec() -> Any:
    """What the demo model's file says of it."""
    from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, read_checkpoint
    from gtr_pack.gtr_core.demo import DEMO_MAR

    return checked_model(read_checkpoint(DEMO_MAR))[0]


def stopper(client: Client) -> Any:
    """Interrupts at the first progress."""
    sent: list[float] = []

    def stop(message: Event | Preview) -> None:
        if not sent and getattr(message, "type", "") == "progress":
            sent.append(client.interrupt())

    return stop


# -- memory between models ---------------------------------------------------------------------------------------------


def big_files(folder: Path) -> dict[str, int]:
    """Random models with the heads and widths of MAR-H and LightGen and few blocks; bytes by file name."""
    from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
    from gtr_pack.gtr_core.diffusion.head import HeadSpec
    from gtr_pack.gtr_core.models.lightgen import LightGen, LightGenSpec
    from gtr_pack.gtr_core.models.mar import MAR, MARSpec
    from gtr_tests.stand_ins import randomised

    def mar(name: str, dim: int, heads: int, blocks: int, head: HeadSpec) -> MAR:
        return MAR(
            MARSpec(
                name=name,
                grid=(16, 16),
                dim=dim,
                heads=heads,
                encoder_depth=blocks,
                decoder_depth=blocks,
                classes=1000,
                buffer=64,
                head=head,
            )
        )

    models = {
        "like-mar-h.safetensors": mar("like-mar-h", 1280, 16, 3, HeadSpec(16, 1280, 1536, 3)),
        "like-lightgen.safetensors": LightGen(
            LightGenSpec(
                name="like-lightgen",
                dim=1024,
                heads=16,
                encoder_depth=2,
                decoder_depth=2,
                cross_depth=2,
                aligner_depth=1,
                caption_dim=64,
                head=HeadSpec(64, 1024, 1536, 3),
            )
        ),
    }
    sizes = {}
    for name, model in models.items():
        randomised(model, 1)
        save_file(
            {key: tensor.half() for key, tensor in model.state_dict().items()},
            folder / name,
            spec_metadata(model.spec, "model"),
        )
        sizes[name] = sum(parameter.numel() * 4 for parameter in model.parameters())
    return sizes


def big_graph(graph: Graph, name: str) -> Graph:
    """One AR step and one diffusion step with this model, to a latent only."""
    sampler, schedule = graph[the(graph, "GtR_Sampler")], graph[the(graph, "GtR_Scheduler")]
    schedule["inputs"].update(CHEAP, order="random", steps="1")
    del sampler["inputs"]["fts"]
    text = "lightgen" in name
    made = {
        "model": {
            "class_type": "GtR_LoadLightGen" if text else "GtR_LoadMAR",
            "inputs": {
                "model_name": name,
                "weight_dtype": "fp32",
                **({"weights": "model", "corrected_positions": False} if text else {}),
            },
        },
        "clip": {"class_type": "GtRTest_TinyT5", "inputs": {"masked": True}},
        "text": {"class_type": "GtR_EncodeText", "inputs": {"clip": ["clip", 0], "text": "a fox"}},
        "label": {
            "class_type": "GtR_ClassCondition",
            "inputs": {"model": ["model", 0], "class_name": "207: golden retriever"},
        },
        "latent": {
            "class_type": "GtR_EmptyLatent",
            "inputs": {"model": ["model", 0], "width": 256, "height": 256, "batch_size": 1},
        },
        "schedule": schedule,
        "sampler": {
            "class_type": "GtR_Sampler",
            "inputs": {
                **sampler["inputs"],
                "model": ["model", 0],
                "positive": ["text" if text else "label", 0],
                "schedule": ["schedule", 0],
                "latent_image": ["latent", 0],
                "cfg": 1.0,
            },
        },
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["sampler", 1]}},
    }
    return {node: entry for node, entry in made.items() if node not in (("label",) if text else ("text", "clip"))}


def test_free_and_switching_give_memory_back(
    client: Client, comfy_server: ComfyServer, comfy_base: Path, graph: Graph
) -> None:
    """Two models in turn, twice: after each /free the server holds less than a third of that model, and the second
    round ends where the first did."""
    with torch.no_grad():
        sizes = big_files(comfy_base / "models" / "diffusion_models")
    gc.collect()
    client.free()
    start = settled(client, comfy_server)
    ends = []
    for _ in range(2):
        for name, size in sizes.items():
            before = settled(client, comfy_server)
            client.prompt(big_graph(json.loads(json.dumps(graph)), name))
            loaded = resident(comfy_server)
            client.free()
            kept = settled(client, comfy_server)
            print(f"{name}: {size / MIB:.0f} MiB; server {before / MIB:.0f} -> {loaded / MIB:.0f} -> {kept / MIB:.0f}")
            assert loaded - before > size / 3, f"{name} should show in the server's memory"
            assert kept - before < max(size / 3, GROWTH), f"{name} should be given back"
        ends.append(kept)
    assert ends[1] - ends[0] < GROWTH
    assert ends[1] - start < min(sizes.values()) / 2


NOTHING: Graph = {
    "image": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "shown": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
}


def settled(client: Client, server: ComfyServer) -> int:
    """The server's memory once it has acted on /free: its worker does so between two runs, so two are waited for."""
    import time

    for _ in range(2):
        client.prompt(NOTHING)
    previous, now = 0, resident(server)
    for _ in range(20):
        if abs(now - previous) < MIB:
            break
        time.sleep(0.25)
        previous, now = now, resident(server)
    return now
