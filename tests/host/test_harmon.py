"""Harmon and UniPic in ComfyUI: small random models, the tokenizer that the host ships, from file to saved image."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from gtr_tests.recorded import error

if TYPE_CHECKING:
    from gtr_tests.client import Client, Run

ROOT = Path(__file__).resolve().parents[2]
# Prompts in the template and their ids by Qwen2.5's own tokenizer.
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
IDS = {
    "Generate an image.": [31115, 458, 2168, 13],
    "Generate an image: a dog on the left and a cat on the right.": [
        *(31115, 458, 2168, 25, 264, 5562, 389, 279, 2115, 323, 264, 8251, 389, 279, 1290, 13)
    ],
    "Generate an image: (a cat:1.2), \\(escaped\\) embedding:foo": [
        *(31115, 458, 2168, 25, 320, 64, 8251, 25, 16, 13, 17, 701, 17767, 65826, 57758, 39088, 25, 7975)
    ],
    "Generate an image: \u4e00\u53ea\u732b\u5750\u5728\u7a97\u53f0\u4e0a\u3002": [
        *(31115, 458, 2168, 25, 220, 102292, 100472, 104427, 100237, 108141, 1773)
    ],
}


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def models(host_pack: Any, comfy_base: Path, model_files: frozenset[str]) -> dict[str, Any]:
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(comfy_base / "models" / "diffusion_models"))
    names = {"harmon": "harmon_1.5b.pth", "unipic": "unipic_1.5b.bin"}
    with torch.inference_mode():
        return {key: run(host_pack, "GtR_LoadHarmon", model_name=name)[0] for key, name in names.items()}


@pytest.fixture
def model(models: dict[str, Any]) -> Any:
    return models["harmon"]


def run(pack: Any, node: str, **inputs: Any) -> tuple:
    return pack.classes[node].execute(**inputs).result


def encode(pack: Any, model: Any, text: str, **settings: Any) -> Any:
    return run(pack, "GtR_EncodePrompt", model=model, text=text, **settings)[0]


def draw(
    pack: Any, model: Any, positive: Any, width: int = 128, height: int = 128, batch: int = 1, **inputs: Any
) -> Any:
    latent = (
        inputs.pop("latent_image", None)
        or run(pack, "GtR_EmptyLatent", model=model, width=width, height=height, batch_size=batch)[0]
    )
    settings = {"diffusion_start": 6, "diffusion_end": 4, "diffusion_reconstruction": 4}
    schedule = run(pack, "GtR_Scheduler", preset="custom", steps="2, 1", **settings)[0]
    given = {"model": model, "positive": positive, "schedule": schedule, "latent_image": latent, "seed": 3}
    return run(pack, "GtR_Sampler", **{**given, "cfg": 3.0, "cfg_schedule": "constant", **inputs})[0]["samples"]


@pytest.mark.parametrize("text", IDS)
def test_the_hosts_tokenizer_makes_qwens_ids(host_pack: Any, text: str) -> None:
    tokenize = host_pack.module("nodes._tokenizer").qwen_tokenizer()
    around = ([151644, 872, 198], [151645, 198, 151644, 77091, 198])
    assert tokenize(TEMPLATE.format(text)) == [*around[0], *IDS[text], *around[1]]


def test_the_unconditional_prompt_is_its_text(host_pack: Any, model: Any) -> None:
    tokenize = host_pack.module("nodes._tokenizer").qwen_tokenizer()
    assert tuple(tokenize(TEMPLATE.format("Generate an image."))) == model.spec.empty_prompt


def test_models_have_their_sizes(host_pack: Any, models: dict[str, Any]) -> None:
    for name, side in (("harmon", 32), ("unipic", 64)):
        latent = run(host_pack, "GtR_EmptyLatent", model=models[name])[0]["samples"]
        assert latent.shape == (1, 16, side, side)


def test_the_image_depends_on_prompt_seed_and_size(host_pack: Any, model: Any) -> None:
    fox, owl = encode(host_pack, model, "a fox"), encode(host_pack, model, "an owl at night, oil on canvas")
    base = draw(host_pack, model, fox)
    assert torch.equal(base, draw(host_pack, model, fox)) and torch.isfinite(base).all()
    assert not torch.equal(base, draw(host_pack, model, owl))
    assert not torch.equal(base, draw(host_pack, model, fox, seed=4))
    assert draw(host_pack, model, fox, width=192, height=96).shape == (1, 16, 6, 12)


def test_a_batch_of_prompts(host_pack: Any, model: Any) -> None:
    both = encode(host_pack, model, "a fox\n\na snowy owl on a fence", one_per_line=True)
    out = draw(host_pack, model, both, batch=2)
    assert error(out[0], draw(host_pack, model, encode(host_pack, model, "a fox"))[0]) < 1e-3
    alone = draw(host_pack, model, encode(host_pack, model, "a snowy owl on a fence"), seed=4)
    assert error(out[1], alone[0]) < 1e-3 < error(out[1], out[0])


def test_a_negative_is_the_unconditional_prompt_unless_it_is_given(host_pack: Any, model: Any) -> None:
    fox, blur = encode(host_pack, model, "a fox"), encode(host_pack, model, "blurry, low quality")
    plain = draw(host_pack, model, fox)
    assert not torch.equal(draw(host_pack, model, fox, negative=blur), plain)
    zeroed = host_pack.host.NODE_CLASS_MAPPINGS["ConditioningZeroOut"]().zero_out(blur)[0]
    assert torch.equal(draw(host_pack, model, fox, negative=zeroed), plain)


def test_a_masked_part_is_drawn_and_the_rest_stays(host_pack: Any, model: Any) -> None:
    fox = encode(host_pack, model, "a fox")
    given = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 32:96] = 1
    out = draw(host_pack, model, fox, latent_image={"samples": given, "noise_mask": mask})
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    assert torch.equal(out[..., ~inside], given[..., ~inside]) and (out[..., inside] != given[..., inside]).all()


def test_outpainting_is_one_plan(host_pack: Any, model: Any) -> None:
    fox = encode(host_pack, model, "a fox")
    small = draw(host_pack, model, fox)
    larger = run(host_pack, "GtR_Outpaint", model=model, latent={"samples": small}, left=16, bottom=32)[0]
    out = draw(host_pack, model, fox, latent_image=larger)
    assert out.shape == (1, 16, 10, 9) and torch.equal(out[:, :, :8, 1:], small)


def test_a_picture_is_changed_as_the_instruction_says(host_pack: Any, models: dict[str, Any]) -> None:
    unipic, picture = models["unipic"], torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2))

    def edit(samples: Any, text: str) -> Any:
        return run(host_pack, "GtR_EncodeEdit", model=unipic, picture={"samples": samples}, text=text)[0]

    green = edit(picture, " make the sky green ")
    first = draw(host_pack, unipic, green)
    assert torch.equal(first, draw(host_pack, unipic, green))
    assert not torch.equal(first, draw(host_pack, unipic, edit(picture, "make the sky red")))
    assert not torch.equal(first, draw(host_pack, unipic, edit(picture + 1, " make the sky green ")))
    repeat = edit(picture, "Repeat this image.")
    assert torch.equal(draw(host_pack, unipic, green, negative=repeat), first)
    cases = (
        (lambda: draw(host_pack, unipic, green, width=192), "the picture to change has 64 tokens, the latent 8 x 12"),
        (lambda: draw(host_pack, models["harmon"], green), "not trained to change pictures: load UniPic"),
        (lambda: draw(host_pack, unipic, green, negative=encode(host_pack, unipic, "blurry")), "the other does not"),
        (
            lambda: run(host_pack, "GtR_EncodeEdit", model=models["harmon"], picture={"samples": picture}, text="x"),
            "not trained to change pictures: load UniPic",
        ),
        (lambda: edit(torch.zeros_like(picture), "x"), "the latent is empty"),
    )
    for action, words in cases:
        with pytest.raises(ValueError, match=words):
            action()


def test_16_bit_weights_stay_near(host_pack: Any, model: Any) -> None:
    half = run(host_pack, "GtR_LoadHarmon", model_name="unipic_1.5b.bin", weight_dtype="bf16")[0]
    full = run(host_pack, "GtR_LoadHarmon", model_name="unipic_1.5b.bin", weight_dtype="fp32")[0]
    head = half.patcher.model.diffusion_model.head
    assert next(head.parameters()).dtype == torch.float32 and half.patcher.model.dtype == torch.bfloat16
    fox = encode(host_pack, model, "a fox")
    assert error(draw(host_pack, half, fox), draw(host_pack, full, fox)) < 0.3


def test_long_prompts_are_told_and_then_refused(host_pack: Any, model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encode(host_pack, model, "fox " * 130)
    assert "was trained with at most 128" in caplog.text
    with pytest.raises(ValueError, match="at most 1024.*shorten it"):
        encode(host_pack, model, "fox " * 2000)


def test_mistakes_are_explained(host_pack: Any, model: Any) -> None:
    demo = run(host_pack, "GtR_LoadMAR", model_name="demo (built-in)")[0]
    light = run(host_pack, "GtR_LoadLightGen", model_name="lightgen-512.safetensors")[0]
    label = run(host_pack, "GtR_ClassCondition", model=demo, class_name="demo 0: animal face")[0]
    fox, owl = encode(host_pack, model, "a fox"), encode(host_pack, model, "a snowy owl")
    stock = host_pack.host.NODE_CLASS_MAPPINGS
    joined = stock["ConditioningConcat"]().concat(fox, owl)[0]
    text = [[torch.zeros(1, 128, 64), {"gtr_prompts": 1}]]
    cases = (
        (lambda: draw(host_pack, model, label), "positive is not a prompt.*Harmon Text Encode"),
        (lambda: draw(host_pack, model, text), "positive is not a prompt.*nor another text encoder"),
        (lambda: draw(host_pack, model, joined), "joins, blends or scales prompts"),
        (lambda: draw(host_pack, light, fox, 64, 64), "positive is not a text.*LightGen Text Encode"),
        (lambda: draw(host_pack, demo, fox), "positive is not a class label"),
        (lambda: encode(host_pack, light, "a fox"), "use 'LightGen Text Encode'"),
        (lambda: encode(host_pack, demo, "a fox"), "use 'Class Label'"),
        (lambda: run(host_pack, "GtR_ClassCondition", model=model, class_name="0: tench"), "'Harmon Text Encode'"),
        (lambda: run(host_pack, "GtR_LoadMAR", model_name="harmon_1.5b.pth"), "use 'Load Harmon / UniPic Model'"),
        (lambda: run(host_pack, "GtR_LoadHarmon", model_name="lightgen-512.safetensors"), "'Load LightGen Model'"),
        (
            lambda: draw(host_pack, model, encode(host_pack, model, "a\nb", one_per_line=True)),
            "2 prompts for a batch of 1",
        ),
        (
            lambda: draw(host_pack, model, fox, cache=run(host_pack, "GtR_ReCAP")[0]),
            "ReCAP does not work with small-harmon: disconnect the cache",
        ),
    )
    for action, words in cases:
        with pytest.raises(ValueError, match=words) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_the_host_moves_the_model(host_pack: Any, model: Any) -> None:
    """It is unloaded when another needs its memory, and draws the same image afterwards."""
    import comfy.model_management as mm

    fox = encode(host_pack, model, "a fox")
    first = draw(host_pack, model, fox)
    assert id(model.patcher) in {id(entry.model) for entry in mm.current_loaded_models}
    mm.unload_all_models()
    assert not mm.current_loaded_models and torch.equal(draw(host_pack, model, fox), first)


def small_graph(name: str = "harmon_text_to_image", **changes: Any) -> dict[str, Any]:
    """A shipped workflow with a small image and few steps."""
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    graph["5"]["inputs"].update(width=128, height=96)
    graph["6"]["inputs"].update(preset="custom", steps="6, 3, 2")
    for place, value in changes.items():
        node, key = place.split("_", 1)
        graph[node[1:]]["inputs"][key] = value
    return graph


def images(run: Run) -> list[Any]:
    from gtr_tests.client import pixels

    return [pixels(image) for image in run.images["10"]]


def test_the_whole_graph_in_a_server(client: Client) -> None:
    base = client.prompt(small_graph())
    assert base.node_errors == {} and base.images["10"] and base.previews
    assert images(base)[0][0] == (128, 96)
    for change in ({"n4_text": "an owl"}, {"n8_seed": 43}, {"n5_height": 128}):
        assert images(client.prompt(small_graph(**change))) != images(base)
    again = client.prompt(small_graph(n8_seed=44))
    assert {"1", "3", "4"} <= again.cached
    two = client.prompt(small_graph(n4_text="a fox\nan owl", n4_one_per_line=True, n5_batch_size=2))
    assert len(two.images["10"]) == 2
    stopped: list[float] = []

    def stop(message: Any) -> None:
        if not stopped and getattr(message, "type", "") == "progress":
            stopped.append(client.interrupt())

    assert client.prompt(small_graph(n8_seed=45), expect_errors=True, on_event=stop).status == "interrupted"
    client.free()
    assert images(client.prompt(small_graph())) == images(base)
