"""The pack as a ComfyUI server shows it: schemas, errors over HTTP, templates; and what loading it leaves alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from gtr_tests.client import Client

ROOT = Path(__file__).resolve().parents[2]

# Shared workflows depend on these: ids, input names in order, outputs in order. Append only.
CONTRACT = {
    "GtR_LoadMAR": (["model_name", "weight_dtype"], ["MAR_MODEL"]),
    "GtR_LoadLightGen": (["model_name", "weight_dtype", "weights", "corrected_positions"], ["MAR_MODEL"]),
    "GtR_LoadHarmon": (["model_name", "weight_dtype"], ["MAR_MODEL"]),
    "GtR_LoadMARVAE": (["vae_name"], ["VAE"]),
    "GtR_EncodeText": (["clip", "text", "one_per_line"], ["CONDITIONING"]),
    "GtR_EncodePrompt": (["model", "text", "one_per_line"], ["CONDITIONING"]),
    "GtR_EncodeEdit": (["model", "picture", "text"], ["CONDITIONING"]),
    "GtR_ClassCondition": (["model", "class_name", "class_list"], ["CONDITIONING"]),
    "GtR_EmptyLatent": (["model", "width", "height", "batch_size"], ["LATENT"]),
    "GtR_Scheduler": (
        [
            "preset",
            "order",
            "steps",
            "rates",
            "partition",
            "decoder_scope",
            "diffusion_start",
            "diffusion_end",
            "diffusion_reconstruction",
        ],
        ["GTR_SCHEDULE"],
    ),
    "GtR_BaselineScheduler": (
        [
            "method",
            "ar_steps",
            "diffusion_steps",
            "disa_end",
            "disa_profile",
            "disa_clip",
            "subsample_phases",
            "halton_shift",
        ],
        ["GTR_SCHEDULE"],
    ),
    "GtR_FTS": (["fraction", "detail_steps", "selection"], ["GTR_FTS"]),
    "GtR_LazyMAR": (["start_step", "period", "prune_block", "extra", "head_period"], ["GTR_CACHE"]),
    "GtR_ReCAP": (["start_step", "local_steps", "buffer"], ["GTR_CACHE"]),
    "GtR_Sampler": (
        [
            "model",
            "positive",
            "schedule",
            "latent_image",
            "seed",
            "cfg",
            "cfg_schedule",
            "temperature",
            "fts",
            "negative",
            "cache",
            "acceleration",
            "cfg_start",
            "revise",
        ],
        ["LATENT", "STRING", "GTR_STEPS"],
    ),
    "GtR_PreviewSchedule": (["schedule", "rows", "columns", "seed", "fts", "model", "latent", "revise"], ["IMAGE"]),
    "GtR_Redraw": (["model", "schedule", "latent", "redraw", "denoise"], ["LATENT"]),
    "GtR_Outpaint": (["model", "latent", "left", "top", "right", "bottom", "overlap"], ["LATENT"]),
    "GtR_HeatMap": (["steps", "image", "show"], ["IMAGE"]),
}


def test_nodes_are_as_promised(pack_nodes: dict[str, Any]) -> None:
    found = {
        name: ([*node["input_order"].get("required", []), *node["input_order"].get("optional", [])], node["output"])
        for name, node in pack_nodes.items()
    }
    assert found == CONTRACT
    for node in pack_nodes.values():
        assert node["display_name"] and node["description"] and node["category"].startswith("GtR/")


def test_seeds_can_change_after_each_run(pack_nodes: dict[str, Any]) -> None:
    for name in ("GtR_Sampler", "GtR_PreviewSchedule"):
        inputs = pack_nodes[name]["input"]
        assert (inputs["required"] | inputs["optional"])["seed"][1]["control_after_generate"]


def test_every_input_and_output_says_what_it_is_for(pack_nodes: dict[str, Any]) -> None:
    """One or two sentences each: what it changes, and which way to turn it."""
    for name, node in pack_nodes.items():
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        tooltips = {key: (settings or {}).get("tooltip") for key, (_, settings) in inputs.items()}
        tooltips |= dict(zip(node["output_name"], node["output_tooltips"]))
        assert [key for key, tooltip in tooltips.items() if not tooltip or not tooltip.endswith(".")] == [], name
        assert all(len(tooltip) < 320 for tooltip in tooltips.values()), name


FAMILY = re.compile("GtR|MAR|LightGen|Harmon")


def test_names_tell_the_pack_from_others(pack_nodes: dict[str, Any]) -> None:
    """In a search over the nodes of all packs; and what people type finds them."""
    for node in pack_nodes.values():
        assert FAMILY.search(node["display_name"]), node["display_name"]
        assert node["category"].split("/")[1] in ("loaders", "conditioning", "latent", "sampling", "image")

    def found(word: str) -> set[str]:
        return {name for name, node in pack_nodes.items() if word in node["search_aliases"]}

    assert {"GtR_Redraw", "GtR_Outpaint", "GtR_Sampler"} <= found("inpaint")
    assert {"GtR_ClassCondition", "GtR_LoadMAR"} <= found("imagenet")
    assert {"GtR_LoadLightGen", "GtR_EncodeText", "GtR_LoadHarmon", "GtR_EncodePrompt"} <= found("t2i")


def test_the_class_input_offers_imagenet(pack_nodes: dict[str, Any]) -> None:
    kind, settings = pack_nodes["GtR_ClassCondition"]["input"]["required"]["class_name"]
    options = settings["options"] if kind == "COMBO" else kind
    assert sum(not option.startswith(("demo", "default")) for option in options) == 1000


@pytest.fixture
def demo() -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / "api" / "demo.json").read_text(encoding="utf-8"))


def test_templates_are_served(client: Client) -> None:
    from gtr_tests import rest

    served = rest.get(f"{client.url}/api/workflow_templates")
    assert set(served["gtr-mar"]) == {path.stem for path in (ROOT / "workflows").glob("*.json")}


@pytest.mark.parametrize(
    "node, change, words",
    [
        ("5", {"preset": "custom", "steps": "1,1,1,1,1,1,1,1,1,1,1"}, "empty subset"),
        ("5", {"preset": "custom", "rates": "2.67,10.67,999"}, "does not fit"),
        ("3", {"class_list": "17"}, "out of range"),
        ("4", {"width": 512}, "found 512 x 128: use the model's own size (set width and height to 0)"),
        ("3", {"class_list": "1,2,3,4,5"}, "set batch_size to 5"),
    ],
)
def test_mistakes_are_explained(client: Client, demo: dict, node: str, change: dict, words: str) -> None:
    demo[node]["inputs"].update(change)
    run = client.prompt(demo, expect_errors=True)
    message = run.error["exception_message"]
    assert words in message and "\n" not in message.strip()
    assert run.error["exception_type"] == "gtr_mar.GtRError"


# -- prompts by hand ---------------------------------------------------------------------------------------------------


def bare(graph: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """A graph with the inputs that the pack's nodes require, and links; all other values are left to the nodes."""
    return {
        key: entry
        if entry["class_type"] not in nodes
        else {
            "class_type": entry["class_type"],
            "inputs": {
                name: value
                for name, value in entry["inputs"].items()
                if isinstance(value, list) or name in nodes[entry["class_type"]]["input"]["required"]
            },
        }
        for key, entry in graph.items()
    }


def test_a_prompt_by_hand_names_what_is_required(client: Client, demo: dict, pack_nodes: dict[str, Any]) -> None:
    """The same images as the whole graph, whose other values are the defaults."""
    from gtr_tests.client import pixels

    demo["7"]["inputs"]["seed"], demo["5"]["inputs"]["preset"] = 11, "gtr-extreme"
    demo["4"]["inputs"]["batch_size"], demo["3"]["inputs"]["class_list"] = 1, ""
    demo["10"]["inputs"].pop("seed")  # wired to the sampler's in the page
    demo["7"]["inputs"]["revise"] = demo["10"]["inputs"]["revise"] = 0
    short = bare(demo, pack_nodes)
    assert short["5"]["inputs"] == {"preset": demo["5"]["inputs"]["preset"]}
    assert "temperature" not in short["7"]["inputs"] and "weight_dtype" not in short["1"]["inputs"]
    whole, left = client.prompt(demo), client.prompt(short)
    assert whole.trouble == left.trouble == ""
    assert {k: [pixels(i) for i in v] for k, v in left.images.items()} == {
        k: [pixels(i) for i in v] for k, v in whole.images.items()
    }


def test_required_inputs_are_few(pack_nodes: dict[str, Any]) -> None:
    required = {name: list(node["input"]["required"]) for name, node in pack_nodes.items()}
    assert required["GtR_Scheduler"] == ["preset"] and required["GtR_BaselineScheduler"] == ["method"]
    assert required["GtR_LoadMAR"] == required["GtR_LoadLightGen"] == ["model_name"]
    assert required["GtR_EmptyLatent"] == ["model"] and required["GtR_Outpaint"] == ["model", "latent"]
    assert required["GtR_PreviewSchedule"] == ["schedule"] and required["GtR_HeatMap"] == ["steps", "image"]
    assert required["GtR_FTS"] == required["GtR_LazyMAR"] == required["GtR_ReCAP"] == []
    assert required["GtR_Sampler"] == ["model", "positive", "schedule", "latent_image", "seed"]


@pytest.mark.parametrize("method", ["origin", "step-n", "raster", "subsample", "halton", "disa"])
def test_a_baseline_by_its_method_alone(client: Client, demo: dict, pack_nodes: dict, method: str) -> None:
    demo["5"] = {"class_type": "GtR_BaselineScheduler", "inputs": {"method": method}}
    graph = {"5": demo["5"], "9": {"class_type": "GtR_PreviewSchedule", "inputs": {"schedule": ["5", 0]}}}
    assert client.prompt(graph).images["9"]


def test_bad_files_are_explained(client: Client, demo: dict, comfy_base: Path) -> None:
    folder = comfy_base / "models" / "diffusion_models"
    (folder / "broken.safetensors").write_bytes(b"nothing")
    torch.save({"model": {"a": torch.zeros(2)}}, folder / "foreign.pth")
    for name, words in (
        ("broken.safetensors", "damaged or truncated"),
        ("foreign.pth", "not a model: expected a checkpoint of MAR, LightGen or Harmon"),
    ):
        demo["1"]["inputs"]["model_name"] = name
        assert words in client.prompt(demo, expect_errors=True).error["exception_message"]


def test_a_replaced_file_is_loaded_again(client: Client, demo: dict, comfy_base: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    source, target = (
        ROOT / "gtr_core" / "demo" / "demo_mar.safetensors",
        comfy_base / "models" / "diffusion_models" / "copy.safetensors",
    )
    with safe_open(source, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    save_file(tensors, target, metadata)
    demo["1"]["inputs"]["model_name"] = target.name
    first = client.prompt(demo)
    tensors["mask_token"] = tensors["mask_token"] + 1
    target.unlink()
    save_file(tensors, target, metadata)
    second = client.prompt(demo)
    assert "1" in second.executed and second.images["9"] != first.images["9"]


def test_another_weight_dtype_is_another_model(client: Client, demo: dict) -> None:
    demo["1"]["inputs"]["weight_dtype"] = "bf16"
    assert client.prompt(demo).status == "success"


PROBE = """
import sys
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, {comfy!r})
import comfy.options; comfy.options.enable_args_parsing()
import asyncio, json, logging, time, torch, numpy
import nodes
import comfy.model_management, comfy.model_patcher, comfy.ops, comfy.sd, comfy.sample, latent_preview
asyncio.run(nodes.init_public_apis())
import comfy_config.config_parser; comfy_config.config_parser.extract_node_configuration({pack!r})
def state():
    root = logging.getLogger()
    return dict(path=list(sys.path), level=root.level, handlers=len(root.handlers), nodes=nodes.__file__,
                threads=torch.get_num_threads(), grad=torch.is_grad_enabled(), dtype=str(torch.get_default_dtype()),
                matmul=torch.get_float32_matmul_precision(), deterministic=torch.are_deterministic_algorithms_enabled(),
                rng=hash(torch.get_rng_state().numpy().tobytes()), numpy=hash(numpy.random.get_state()[1].tobytes()),
                globals=len(torch.serialization.get_safe_globals()),
                host={{f"{{m}}.{{k}}": id(v)
                      for m in ("comfy.ops", "comfy.sd", "comfy.model_management", "nodes", "comfy.sample")
                      for k, v in vars(sys.modules[m]).items() if callable(v)}})
before, modules = state(), set(sys.modules)
start = time.perf_counter()
loaded = asyncio.run(nodes.load_custom_node({pack!r}, set(nodes.NODE_CLASS_MAPPINGS)))
seconds = time.perf_counter() - start
after = state()
foreign = sorted(m for m in set(sys.modules) - modules if {pack!r}.replace(".", "_x_") not in m)
print("RESULT" + json.dumps(dict(loaded=loaded, seconds=seconds, changed=[k for k in before if before[k] != after[k]],
                                 foreign=foreign)))
"""


def test_loading_the_pack_changes_nothing_else(comfy_path: Path, comfy_base: Path) -> None:
    """sys.path, logging, torch flags, random states and the host's functions stay; nothing foreign is imported."""
    code = PROBE.format(comfy=str(comfy_path), pack=str(comfy_base / "custom_nodes" / "gtr-mar"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=comfy_path, check=False)
    assert "RESULT" in done.stdout, done.stderr[-2000:]
    result = json.loads(done.stdout.split("RESULT")[1])
    print(f"the pack was imported in {result['seconds']:.3f} s on top of the host")
    assert result["loaded"] and result["changed"] == []
    assert result["foreign"] == []
