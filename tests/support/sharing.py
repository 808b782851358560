"""What saved workflows and translators depend on: node schemas, their names, and what a workflow says of its files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import tomllib

from .environment import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = ROOT / "workflows"
BLUEPRINTS = ROOT / "subgraphs"
EXAMPLE = ROOT / "web" / "gtr_example.png"
THUMBNAIL = 384
# Their options are the files of the user, and the demo model's classes, which come and go with it.
FILE_INPUTS = {"model_name", "vae_name"}
DEMO_OPTION = "demo "

# Files that a workflow names and that have no address of their own: the front end would save the web page as the file.
# A note in the workflow says where they are to be had.
WITHOUT_ADDRESS = {"lightgen-512.safetensors": "Beckham808/LightGen"}
HUB = "https://huggingface.co"
MODELS = {
    model["name"]: model
    for model in (
        {
            "name": "mar-base-ema.pth",
            "directory": "diffusion_models",
            "hash_type": "SHA256",
            "url": f"{HUB}/jadechoghari/mar/resolve/773c9bdcd98740c7b876ce0d66f684a0e2468990/checkpoint-last.pth",
            "hash": "7e970a33bc90353e2fabe3498ed1f2d194dd8d17cd387665f80b2984dfca538c",
        },
        {
            "name": "kl16.safetensors",
            "directory": "vae",
            "url": f"{HUB}/jadechoghari/mar/resolve/main/kl16.safetensors",
        },
        {
            "name": "detok-mar-base.pth",
            "directory": "diffusion_models",
            "url": f"{HUB}/jjaiweiyang/l-DeTok/resolve/main/mar_base.pth",
        },
        {
            "name": "detok-BB-gamm3.0-m0.7-decoder_tuned.pth",
            "directory": "vae",
            "url": f"{HUB}/jjaiweiyang/l-DeTok/resolve/main/detok-BB-gamm3.0-m0.7-decoder_tuned.pth",
        },
        {
            "name": "harmon_1.5b.pth",
            "directory": "diffusion_models",
            "url": f"{HUB}/wusize/harmon/resolve/main/harmon_1.5b.pth",
        },
        {
            "name": "unipic_1.5b.bin",
            "directory": "diffusion_models",
            "url": f"{HUB}/Skywork/Skywork-UniPic-1.5B/resolve/main/pytorch_model.bin",
        },
        {
            "name": "flan_t5_xxl_TE-only_FP16.safetensors",
            "directory": "text_encoders",
            "url": f"{HUB}/easygoing0114/flan-t5-xxl-fused/resolve/main/flan_t5_xxl_TE-only_FP16.safetensors",
        },
        {
            "name": "sd3.5_vae.safetensors",
            "directory": "vae",
            "url": f"{HUB}/stabilityai/stable-diffusion-3.5-large/resolve/main/vae/diffusion_pytorch_model.safetensors",
        },
    )
}


def inputs_of(node: dict[str, Any]) -> dict[str, tuple[bool, str, dict[str, Any]]]:
    """Input id -> (required, type, settings) of a node of /object_info, in the order of the node."""
    found = {}
    for kind in ("required", "optional"):
        for name in node["input_order"].get(kind, ()):
            type_, settings = (*node["input"][kind][name], {})[:2]
            if isinstance(type_, list):
                type_, settings = "COMBO", {**settings, "options": type_}
            found[name] = (kind == "required", type_, settings)
    return found


def schema(node: dict[str, Any]) -> dict[str, Any]:
    """The part of a node's definition that a saved workflow depends on."""
    return {
        "inputs": [_input(name, *entry) for name, entry in inputs_of(node).items()],
        "outputs": [list(pair) for pair in zip(node["output"], node["output_name"])],
    }


def _input(name: str, required: bool, type_: str, settings: dict[str, Any]) -> dict[str, Any]:
    entry = {
        "id": name,
        "type": type_,
        "required": required,
        **{key: settings[key] for key in ("default", "min", "max") if key in settings},
    }
    if type_ == "COMBO" and name not in FILE_INPUTS:
        entry["options"] = [option for option in settings["options"] if not option.startswith(DEMO_OPTION)]
    return entry


def incompatible(old: dict[str, Any], new: dict[str, Any], replaced: Collection[str] = ()) -> list[str]:
    """One line per change between two snapshots that breaks saved workflows; a replaced node may go.

    Values of widgets are saved by position, so inputs and outputs may be appended only, and inputs only as optional.
    """
    problems = [f"{node} is gone, and no NodeReplace covers it" for node in old if node not in {*new, *replaced}]
    for node in old.keys() & new.keys():
        problems += [f"{node}: {line}" for line in _changes(old[node], new[node])]
    return sorted(problems)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterable[str]:
    was, now = ([entry["id"] for entry in node["inputs"]] for node in (old, new))
    if now[: len(was)] != was:
        yield f"inputs were {was}, and are {now}: append only"
        return
    if new["outputs"][: len(old["outputs"])] != old["outputs"]:
        yield f"outputs were {old['outputs']}, and are {new['outputs']}: append only"
    for before, after in zip(old["inputs"], new["inputs"]):
        for key in ("type", "default"):
            if before.get(key) != after.get(key):
                yield f"{key} of {before['id']} was {before.get(key)!r}, and is {after.get(key)!r}"
        if gone := sorted(set(before.get("options", ())) - set(after.get("options", ()))):
            yield f"options of {before['id']} are gone: {gone}"
        if after["required"] and not before["required"]:
            yield f"{before['id']} was optional, and is required"
        if after.get("min", 0) > before.get("min", 0) or after.get("max", 0) < before.get("max", 0):
            yield f"the range of {before['id']} has shrunk"
    for entry in new["inputs"][len(was) :]:
        if entry["required"]:
            yield f"{entry['id']} is new and required: make it optional"


def english(node: dict[str, Any]) -> dict[str, Any]:
    """A node's entry in locales/en/nodeDefs.json."""
    inputs = {
        name: {"name": name, **({"tooltip": settings["tooltip"]} if settings.get("tooltip") else {})}
        for name, (_, _, settings) in inputs_of(node).items()
    }
    tooltips = node["output_tooltips"] or [None] * len(node["output"])
    outputs = {
        str(slot): {"name": name, **({"tooltip": tooltip} if tooltip else {})}
        for slot, (name, tooltip) in enumerate(zip(node["output_name"], tooltips))
    }
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def filled(translation: Any, pattern: Any) -> Any:
    """A translation with the keys of the pattern and no others; what it lacks is taken from the pattern."""
    if not isinstance(pattern, dict):
        return translation if isinstance(translation, str) else pattern
    known = translation if isinstance(translation, dict) else {}
    return {key: filled(known.get(key), value) for key, value in pattern.items()}


def stamped(workflow: dict[str, Any]) -> dict[str, Any]:
    """A workflow or blueprint whose nodes say which pack they come from and where their models are to be had."""
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", ())]
    subgraphs = {graph["id"] for graph in graphs[1:]}
    for node in (node for graph in graphs for node in graph["nodes"] if node["type"] not in subgraphs):
        properties = node.setdefault("properties", {})
        properties["Node name for S&R"] = node["type"]
        if node["type"].startswith("GtR_"):
            properties.update(cnr_id=PROJECT["name"], ver=PROJECT["version"])
        else:
            properties.setdefault("cnr_id", "comfy-core")
        values = [value for value in node.get("widgets_values") or () if isinstance(value, str)]
        properties.pop("models", None)
        if models := [MODELS[value] for value in values if value in MODELS]:
            properties["models"] = models
    return workflow


def read_json(path: Path) -> Any:
    """The JSON document in a file, which must exist."""
    assert path.is_file(), f"{path} should be part of the repository and does not exist"
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document as the repository keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
