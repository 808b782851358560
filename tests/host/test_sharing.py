"""What a shared workflow needs: stable schemas, names and help in two languages, thumbnails, and all of it in the PNG.

`python3 dev.py test tests/host/test_sharing.py --update` writes the recorded files anew; what would break saved
workflows is refused even then.
"""

from __future__ import annotations

import asyncio
import copy
import io
import json
import re
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gtr_tests import rest, sharing
from gtr_tests.environment import ROOT
from gtr_tests.sharing import WORKFLOWS, read_json, write_json
from PIL import Image

if TYPE_CHECKING:
    from gtr_tests.client import Client, Run
    from gtr_tests.in_process import HostPack

SCHEMAS = ROOT / "tests" / "host" / "schemas.json"
LOCALES = {language: ROOT / "locales" / language / "nodeDefs.json" for language in ("en", "zh")}
DOCS = ROOT / "web" / "docs"
SHARED = [*sorted(WORKFLOWS.glob("*.json")), *sorted(sharing.BLUEPRINTS.glob("*.json"))]
TEMPLATES = sorted(WORKFLOWS.glob("*.json"))
by_name = pytest.mark.parametrize("path", TEMPLATES, ids=[path.stem for path in TEMPLATES])
# Titles that tell nodes of one kind apart, or what a primitive is for; all others are left to the language.
NAMED = ("Seed", "FTS", "MAR's own schedule", "Fewer steps", "GtR")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
LINKED = re.compile(r"[@{}|$]")
"""Characters that mean something in the front end's translations."""


def replaced_ids(listed: Any) -> set[str]:
    """The old ids in the pack's list of NodeReplace."""
    return {entry.old_node_id for entry in listed}


# -- schemas -----------------------------------------------------------------------------------------------------------


def test_saved_workflows_still_fit(pack_nodes: dict[str, Any], host_pack: HostPack, update: bool) -> None:
    now = {node: sharing.schema(definition) for node, definition in pack_nodes.items()}
    recorded = read_json(SCHEMAS) if SCHEMAS.exists() or not update else {}
    assert sharing.incompatible(recorded, now, replaced_ids(host_pack.module("nodes.replaced").REPLACED)) == []
    if update:
        write_json(SCHEMAS, now)
    assert read_json(SCHEMAS) == now, "compatible, but not recorded: run this test with --update"


OLD = {
    "A": {
        "inputs": [
            {"id": "x", "type": "INT", "required": True, "default": 1, "min": 0, "max": 9},
            {"id": "kind", "type": "COMBO", "required": False, "default": "a", "options": ["a", "b"]},
        ],
        "outputs": [["IMAGE", "image"]],
    }
}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda node: node["inputs"].reverse(), "append only"),
        (lambda node: node["inputs"].pop(), "append only"),
        (lambda node: node["inputs"][0].update(id="y"), "append only"),
        (lambda node: node["inputs"][0].update(type="FLOAT"), "type of x"),
        (lambda node: node["inputs"][0].update(default=2), "default of x"),
        (lambda node: node["inputs"][0].update(max=8), "range of x"),
        (lambda node: node["inputs"][1].update(required=True), "was optional"),
        (lambda node: node["inputs"][1]["options"].remove("b"), "options of kind are gone: ['b']"),
        (lambda node: node["inputs"].append({"id": "z", "type": "INT", "required": True}), "new and required"),
        (lambda node: node["outputs"].clear(), "outputs were"),
    ],
)
def test_an_incompatible_change_is_noticed(change: Any, words: str) -> None:
    new = copy.deepcopy(OLD)
    change(new["A"])
    (line,) = sharing.incompatible(OLD, new)
    assert words in line


def test_compatible_changes_are_let_through() -> None:
    new = copy.deepcopy(OLD)
    new["A"]["inputs"].append({"id": "z", "type": "INT", "required": False})
    new["A"]["inputs"][1]["options"].append("c")
    new["A"]["inputs"][0]["max"] = 10
    new["A"]["outputs"].append(["STRING", "report"])
    assert sharing.incompatible(OLD, {**new, "B": {"inputs": [], "outputs": []}}) == []
    assert len(sharing.incompatible(OLD, {})) == 1
    assert sharing.incompatible(OLD, {}, {"A"}) == []


def test_replaced_nodes_are_nodes_of_the_pack(pack_nodes: dict[str, Any], host_pack: HostPack) -> None:
    for entry in host_pack.module("nodes.replaced").REPLACED:
        assert entry.old_node_id not in pack_nodes and entry.new_node_id in pack_nodes


def test_a_replaced_node_is_queued_as_the_new_one(host_pack: HostPack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack's registration with the host's own manager, with an entry as a rename would add it."""
    import server
    from app.node_replace_manager import NodeReplaceManager
    from comfy_api.latest import io as host_io

    manager = NodeReplaceManager()
    monkeypatch.setattr(
        server.PromptServer, "instance", types.SimpleNamespace(node_replace_manager=manager), raising=False
    )
    renamed = host_io.NodeReplace(
        "GtR_FTS",
        "GtR_OldFTS",
        ["share"],
        [{"new_id": "fraction", "old_id": "share"}, {"new_id": "selection", "set_value": "high"}],
        [{"new_idx": 0, "old_idx": 0}],
    )
    asyncio.run(host_pack.module("nodes.replaced").register((renamed,)))
    graph = {"1": {"class_type": "GtR_OldFTS", "inputs": {"share": 0.25}, "_meta": {}}}
    manager.apply_replacements(graph)
    assert graph["1"]["class_type"] == "GtR_FTS"
    assert graph["1"]["inputs"] == {"fraction": 0.25, "selection": "high"}


# -- names and help ----------------------------------------------------------------------------------------------------


def test_every_name_is_translated(pack_nodes: dict[str, Any], update: bool) -> None:
    """English as the nodes say it, Chinese with the same keys; --update fills what Chinese lacks with English."""
    names = {node: sharing.english(definition) for node, definition in pack_nodes.items()}
    if update:
        write_json(LOCALES["en"], names)
        known = read_json(LOCALES["zh"]) if LOCALES["zh"].exists() else {}
        write_json(LOCALES["zh"], sharing.filled(known, names))
    english, chinese = (read_json(path) for path in LOCALES.values())
    assert english == names
    assert sharing.filled(chinese, names) == chinese, "keys are missing or too many: run this test with --update"
    assert not LINKED.search(json.dumps([list(leaves(english)), list(leaves(chinese))]))
    for node, entry in chinese.items():
        sentences = [
            entry["description"],
            *(slot["tooltip"] for kind in ("inputs", "outputs") for slot in entry[kind].values() if "tooltip" in slot),
        ]
        assert [text for text in sentences if not CHINESE.search(text)] == [], f"{node} is not translated"


def leaves(document: Any) -> Any:
    """Every text in nested dicts."""
    if isinstance(document, dict):
        for value in document.values():
            yield from leaves(value)
    else:
        yield document


def test_translations_are_served(client: Client) -> None:
    served = rest.get(f"{client.url}/i18n")
    for language, path in LOCALES.items():
        assert served[language]["nodeDefs"].items() >= read_json(path).items()


def test_every_node_has_help_in_two_languages(client: Client, pack_nodes: dict[str, Any]) -> None:
    """A page names every widget, in both languages; the front end asks for these two addresses."""
    for node, definition in pack_nodes.items():
        for address in (f"{node}.md", f"{node}/zh.md"):
            page = rest.fetch(f"{client.url}/extensions/gtr-mar/docs/{address}").decode()
            assert page.startswith("# "), address
            assert bool(CHINESE.search(page)) == address.endswith("zh.md"), address
            widgets = [
                name
                for name, (_, type_, _) in sharing.inputs_of(definition).items()
                if type_ in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")
            ]
            assert [name for name in widgets if name not in page] == [], address
    pages = {path.relative_to(DOCS).parts[0].removesuffix(".md") for path in DOCS.rglob("*.md")}
    assert pages == set(pack_nodes), "a help page without a node"


# -- workflows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHARED, ids=[path.stem for path in SHARED])
def test_a_workflow_says_where_its_nodes_and_models_are_from(path: Any, update: bool) -> None:
    if update:
        write_json(path, sharing.stamped(read_json(path)))
    workflow = read_json(path)
    assert workflow == sharing.stamped(copy.deepcopy(workflow)), "run this test with --update"


@by_name
def test_named_models_are_described(path: Any, model_files: frozenset[str]) -> None:
    """Every weight file that a workflow names has an entry with its address and folder, or a note about it."""
    named = {
        value
        for node in read_json(path)["nodes"]
        for value in node.get("widgets_values") or ()
        if isinstance(value, str) and value.endswith((".safetensors", ".pth", ".ckpt", ".bin"))
    }
    notes = " ".join(node["widgets_values"][0] for node in read_json(path)["nodes"] if "Note" in node["type"])
    for name in named - sharing.MODELS.keys():
        assert name in notes and sharing.WITHOUT_ADDRESS[name] in notes
    for model in sharing.MODELS.values():
        # The address is that of the file itself: what it ends in is what is saved.
        address = r"https://huggingface\.co/[^/]+/[^/]+/resolve/\S+\.(safetensors|pth|ckpt|bin)"
        assert re.fullmatch(address, model["url"])
        assert model["directory"] in ("diffusion_models", "vae", "text_encoders")
        assert ("hash" in model) == ("hash_type" in model)


@by_name
def test_a_template_has_a_thumbnail(client: Client, model_files: frozenset[str], path: Any, update: bool) -> None:
    """The template browser asks for NAME.jpg beside NAME.json."""
    if update:
        thumbnail(client, path.stem, model_files).save(path.with_suffix(".jpg"), quality=85, optimize=True)
    served = rest.fetch(f"{client.url}/api/workflow_templates/gtr-mar/{path.stem}.jpg")
    image = Image.open(io.BytesIO(served))
    assert image.format == "JPEG" and image.size == (sharing.THUMBNAIL, sharing.THUMBNAIL)
    assert len(served) < 80_000


def test_the_example_fits_the_template(client: Client, update: bool) -> None:
    """An image of the demo model at its own size; where it is transparent, Load Image has a mask."""
    graph = read_json(WORKFLOWS / "api" / "demo_inpaint.json")
    (scale,) = (entry["inputs"] for entry in graph.values() if entry["class_type"] == "ImageScale")
    if update:
        image = example(client)
        image.save(sharing.EXAMPLE, optimize=True)
    (named,) = (entry["inputs"]["image"] for entry in graph.values() if entry["class_type"] == "LoadImage")
    assert named == sharing.EXAMPLE.name
    image = Image.open(io.BytesIO(rest.fetch(f"{client.url}/extensions/gtr-mar/{named}")))
    assert image.mode == "RGBA" and image.size == (scale["width"], scale["height"])
    masked = (np.asarray(image.getchannel("A")) == 0).mean()
    assert 0.1 < masked < 0.5


def example(client: Client) -> Image.Image:
    """What the template draws from: an image of its class with a transparent square in the middle."""
    graph = read_json(WORKFLOWS / "api" / "demo.json")
    for inputs in (entry["inputs"] for entry in graph.values()):
        inputs.update({key: value for key, value in {"seed": 14, "batch_size": 1}.items() if key in inputs})
    (node,) = (node for node, entry in graph.items() if entry["class_type"] == "SaveImage")
    image = decoded(client.prompt(graph).images[node][0]).convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, tuple(side * quarter // 4 for quarter in (1, 3) for side in image.size))
    image.putalpha(alpha)
    return image


@by_name
def test_a_template_explains_itself(path: Any) -> None:
    """A note, groups, another seed in every Run, a size for a laptop's screen; titles are left to the language."""
    workflow = read_json(path)
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if "Note" in node["type"])
    assert all(words in note for words in ("## ", "**Files.**", "1. "))
    for node in workflow["nodes"]:
        for model in node.get("properties", {}).get("models", ()):
            assert model["url"] in note and f"**models/{model['directory']}**" in note
        assert node.get("title") in {None, *NAMED}
    assert "`" not in note, "Nodes 2.0 writes code in blue on the note's colour: use bold"
    assert len(workflow["groups"]) >= 3
    assert any("randomize" in (node.get("widgets_values") or ()) for node in workflow["nodes"])
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in workflow["nodes"]) for axis in (0, 1))
    assert right <= 1680 and bottom <= 900, "at 1366 x 768 the page would show it so small that no text is drawn"


def thumbnail(client: Client, name: str, model_files: frozenset[str]) -> Image.Image:
    """What the workflow makes with the demo model; for a model that is not part of the pack, its plan."""
    graph = read_json(WORKFLOWS / "api" / f"{name}.json")
    if any(
        value in model_files for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)
    ):
        return plan_image(graph)
    if name == "demo_inpaint":
        rest.upload(client.url, sharing.EXAMPLE.name, sharing.EXAMPLE.read_bytes())
    shown = [node for node, entry in graph.items() if entry["class_type"] in ("SaveImage", "PreviewImage")]
    run = client.prompt(graph)
    return montage([[decoded(image) for image in run.images[node]] for node in shown])


def plan_image(graph: rest.Graph) -> Image.Image:
    """The token grid of the workflow's own schedule in the colours of the stages, darker where it is decoded later."""
    from gtr_pack.gtr_core.drawing.canvas import STAGE_COLOURS
    from gtr_pack.gtr_core.plans.method import Method
    from gtr_pack.gtr_core.plans.plan import make_plan
    from gtr_pack.gtr_core.plans.presets import preset

    (name,) = (entry["inputs"]["preset"] for entry in graph.values() if entry["class_type"] == "GtR_Scheduler")
    (size,) = (entry["inputs"]["width"] for entry in graph.values() if entry["class_type"] == "GtR_EmptyLatent")
    side = size // 16 or 16
    plan = make_plan(Method(preset(name)), (side, side), (0,))
    colours = np.empty((side * side, 3))
    for index, step in enumerate(plan.steps):
        same = [place for place, other in enumerate(plan.steps) if other.stage == step.stage]
        shade = 0.25 + 0.75 * (same.index(index) + 1) / len(same)
        colours[step.targets[0]] = 255 - (255 - np.asarray(STAGE_COLOURS[step.stage - 1])) * shade
    cell = sharing.THUMBNAIL // side
    tiles = colours.reshape(side, side, 3).repeat(cell, 0).repeat(cell, 1).astype(np.uint8)
    if cell >= 8:
        tiles[::cell] = tiles[:, ::cell] = 255
    return Image.fromarray(tiles)


def montage(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Rows of images on a dark square; a single row of four becomes two of two."""
    if len(rows) == 1 and len(rows[0]) == 4:
        rows = [rows[0][:2], rows[0][2:]]
    cell = (sharing.THUMBNAIL - gap) // max(len(rows), max(map(len, rows))) - gap
    sheet = Image.new("RGB", (sharing.THUMBNAIL, sharing.THUMBNAIL), "#1b1b1f")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            left, top = (sharing.THUMBNAIL - gap - count * (cell + gap) for count in (len(row), len(rows)))
            small = image.resize(
                (cell, cell), Image.Resampling.NEAREST if image.width < cell else Image.Resampling.LANCZOS
            )
            sheet.paste(small, (left // 2 + gap + x * (cell + gap), top // 2 + gap + y * (cell + gap)))
    return sheet


def decoded(image: bytes) -> Image.Image:
    return Image.open(io.BytesIO(image)).convert("RGB")


def test_an_image_carries_all_that_makes_it_again(client: Client) -> None:
    """The prompt in the PNG, queued after everything was forgotten, gives the same pixels."""
    first = client.prompt(read_json(WORKFLOWS / "api" / "demo.json"))
    (node,) = (node for node in first.images if first.outputs[node]["images"][0]["type"] == "output")
    again = json.loads(Image.open(io.BytesIO(first.images[node][0])).text["prompt"])
    client.free()
    second = client.prompt(again)
    assert second.cached == set()
    assert pixels(second, node) == pixels(first, node)


def pixels(run: Run, node: str) -> list[Any]:
    from gtr_tests.client import pixels as read

    return [read(image) for image in run.images[node]]


def test_the_blueprint_is_served(client: Client) -> None:
    served = [
        entry
        for entry in rest.get(f"{client.url}/global_subgraphs").values()
        if entry["info"]["node_pack"] == "custom_nodes.gtr-mar"
    ]
    assert [entry["name"] for entry in served] == ["MAR + GtR"]


# -- the registry ------------------------------------------------------------------------------------------------------


def test_the_host_reads_the_metadata(host_pack: HostPack) -> None:
    """ComfyUI's own parser, which drops a list of classifiers that holds a wrong one."""
    from comfy_config.config_parser import extract_node_configuration

    config = extract_node_configuration(str(ROOT))
    assert config.project.name == "gtr-mar" and re.fullmatch(r"\d+\.\d+\.\d+", config.project.version)
    assert config.project.supported_os == ["OS Independent"]
    assert config.project.supported_accelerators == ["GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Apple Metal"]
    assert config.project.supported_comfyui_version == ">=0.20.1"
    assert sys.modules[host_pack.name].OLDEST_COMFYUI == (0, 20, 1)
    assert config.project.dependencies == []
