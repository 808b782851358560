"""LightGen in ComfyUI: a small random model, a small random T5 with the host's classes, the stock VAE loader."""

from __future__ import annotations

import copy
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


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def t5(host_pack: Any) -> Any:
    """The tests' T5 module, which imports the host."""
    from gtr_tests import tiny_t5

    return tiny_t5


@pytest.fixture(scope="module")
def clip(t5: Any) -> Any:
    with torch.inference_mode():
        return t5.build()


@pytest.fixture(scope="module")
def model(host_pack: Any, comfy_base: Path, model_files: frozenset[str]) -> Any:
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(comfy_base / "models" / "diffusion_models"))
    with torch.inference_mode():
        return run(host_pack, "GtR_LoadLightGen", model_name="lightgen-512.safetensors")[0]


def run(pack: Any, node: str, **inputs: Any) -> tuple:
    return pack.classes[node].execute(**inputs).result


def encode(pack: Any, clip: Any, text: str, **settings: Any) -> Any:
    return run(pack, "GtR_EncodeText", clip=clip, text=text, **settings)[0]


def draw(pack: Any, model: Any, positive: Any, width: int = 64, height: int = 64, batch: int = 1, **inputs: Any) -> Any:
    latent = (
        inputs.pop("latent_image", None)
        or run(pack, "GtR_EmptyLatent", model=model, width=width, height=height, batch_size=batch)[0]
    )
    schedule = run(
        pack,
        "GtR_Scheduler",
        preset="custom",
        steps="2, 1",
        diffusion_start=6,
        diffusion_end=4,
        diffusion_reconstruction=4,
    )[0]
    return run(
        pack,
        "GtR_Sampler",
        **{
            "model": model,
            "positive": positive,
            "schedule": schedule,
            "cfg": 4.0,
            "latent_image": latent,
            "seed": 3,
            "cfg_schedule": "constant",
            "temperature": 1.0,
        }
        | inputs,
    )[0]["samples"]


def test_exactly_128_positions_whatever_the_prompt(host_pack: Any, clip: Any, caplog: pytest.LogCaptureFixture) -> None:
    module = host_pack.module("nodes.text")
    short, empty = module.fit(clip, "a red fox"), module.fit(clip, "")
    assert len(short) == len(empty) == 128 and empty[:2] == [1, 0] and short.index(1) < short.index(0)
    with caplog.at_level(logging.WARNING):
        long = module.fit(clip, "fox " * 300)
    assert len(long) == 128 and long[-1] == 1 and 0 not in long and "the rest is cut off" in caplog.text
    assert long[:20] == module.fit(clip, "fox " * 12)[:20]


def test_states_depend_on_the_mask_and_not_on_weights_in_the_prompt(host_pack: Any, clip: Any) -> None:
    """`(fox:1.3)` is text, not a weight: the tokens are those of the literal characters."""
    module = host_pack.module("nodes.text")
    assert module.fit(clip, "(fox:1.3)") != module.fit(clip, "fox")
    ((states, extra),) = encode(host_pack, clip, "a red fox")
    assert states.shape == (1, 128, 64) and extra["attention_mask"].shape == (1, 128)
    assert extra["attention_mask"].sum() == module.fit(clip, "a red fox").index(0)
    # Padding states are kept, not zeroed: the model reads all positions.
    assert (states[0, -1].abs() > 0).any()


def test_a_batch_of_prompts(host_pack: Any, clip: Any, model: Any) -> None:
    both = encode(host_pack, clip, "a fox\n\n a snowy owl ", one_per_line=True)
    assert both[0][0].shape == (2, 128, 64)
    out = draw(host_pack, model, both, batch=2)
    first = draw(host_pack, model, encode(host_pack, clip, "a fox"))
    assert out.shape == (2, 16, 8, 8)
    # The random model's values reach 1e7, so rounding shows in single small ones.
    assert error(out[0], first[0]) < 1e-4 < error(out[1], first[0])
    assert torch.isclose(out[0], first[0], rtol=1e-3, atol=1e-3).float().mean() > 0.99


def test_the_image_depends_on_prompt_seed_and_size(host_pack: Any, clip: Any, model: Any) -> None:
    fox, owl = encode(host_pack, clip, "a fox"), encode(host_pack, clip, "an owl at night, oil on canvas")
    base = draw(host_pack, model, fox)
    assert torch.equal(base, draw(host_pack, model, fox)) and torch.isfinite(base).all()
    assert not torch.equal(base, draw(host_pack, model, owl))
    assert not torch.equal(base, draw(host_pack, model, fox, seed=4))
    assert draw(host_pack, model, fox, width=128, height=64).shape == (1, 16, 8, 16)
    assert run(host_pack, "GtR_EmptyLatent", model=model, width=0, height=0, batch_size=1)[0]["samples"].shape == (
        1,
        16,
        64,
        64,
    )


def test_a_negative_prompt(host_pack: Any, clip: Any, model: Any) -> None:
    fox, blur = encode(host_pack, clip, "a fox"), encode(host_pack, clip, "blurry, low quality")
    assert not torch.equal(draw(host_pack, model, fox, negative=blur), draw(host_pack, model, fox))


def test_stock_text_encode_is_accepted_with_a_warning(
    host_pack: Any, clip: Any, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stock = host_pack.host.NODE_CLASS_MAPPINGS["CLIPTextEncode"]().encode(clip, "a fox")[0]
    with caplog.at_level(logging.WARNING):
        out = draw(host_pack, model, stock)
    assert torch.isfinite(out).all() and "LightGen Text Encode" in caplog.text


def test_corrected_positions_change_non_square_images_only(host_pack: Any, clip: Any, model: Any) -> None:
    fixed = run(host_pack, "GtR_LoadLightGen", model_name="lightgen-512.safetensors", corrected_positions=True)[0]
    fox = encode(host_pack, clip, "a fox")
    assert torch.equal(draw(host_pack, fixed, fox), draw(host_pack, model, fox))
    assert not torch.equal(draw(host_pack, fixed, fox, width=128), draw(host_pack, model, fox, width=128))


def test_a_file_of_another_family_ends_in_one_line(host_pack: Any) -> None:
    for corrected in (False, True):
        with pytest.raises(ValueError, match="demo checkpoint: use 'Load MAR Model' for it"):
            run(host_pack, "GtR_LoadLightGen", model_name="demo (built-in)", corrected_positions=corrected)


def test_outpainting_is_one_plan_and_keeps_the_image(host_pack: Any, clip: Any, model: Any) -> None:
    fox = encode(host_pack, clip, "a fox")
    small = draw(host_pack, model, fox)
    larger = run(host_pack, "GtR_Outpaint", model=model, latent={"samples": small}, left=16, bottom=32)[0]
    assert set(larger) == {"samples", "noise_mask", "gtr_own_mask"}
    out = draw(host_pack, model, fox, latent_image=larger)
    assert out.shape == (1, 16, 12, 10) and torch.equal(out[:, :, :8, 2:], small)
    assert (out[:, :, 8:] != 0).all() and (out[:, :, :, :2] != 0).all()


def test_redraws_keep_whole_tokens(host_pack: Any, clip: Any, model: Any) -> None:
    fox, schedule = encode(host_pack, clip, "a fox"), run(host_pack, "GtR_Scheduler", preset="gtr-lightgen-fast")[0]
    small = draw(host_pack, model, fox)
    latent = run(
        host_pack, "GtR_Redraw", model=model, schedule=schedule, latent={"samples": small}, redraw="reconstruction"
    )[0]
    changed = (draw(host_pack, model, fox, latent_image=latent, seed=8) != small).all(1)[0]
    row, column = torch.meshgrid(torch.arange(8) // 2, torch.arange(8) // 2, indexing="ij")
    assert torch.equal(changed, (row + column) % 2 == 1)


def test_the_latent_is_stable_diffusion_3s(host_pack: Any, model: Any) -> None:
    import comfy.latent_formats

    assert isinstance(model.patcher.model.latent_format, comfy.latent_formats.SD3)


def test_stock_empty_sd3_latents_fit(host_pack: Any, clip: Any, model: Any) -> None:
    stock = host_pack.host.NODE_CLASS_MAPPINGS["EmptyLatentImage"]().generate(64, 64, 1)[0]
    fox = encode(host_pack, clip, "a fox")
    assert torch.equal(draw(host_pack, model, fox, latent_image=stock), draw(host_pack, model, fox))


def test_mistakes_are_explained(host_pack: Any, clip: Any, model: Any, t5: Any) -> None:
    demo = run(host_pack, "GtR_LoadMAR", model_name="demo (built-in)")[0]
    label = run(host_pack, "GtR_ClassCondition", model=demo, class_name="demo 0: animal face")[0]
    fox = encode(host_pack, clip, "a fox")
    cases = (
        (lambda: draw(host_pack, model, label), "positive is not a text.*cannot use class labels"),
        (lambda: draw(host_pack, demo, fox, 128, 128), "positive is not a class label"),
        (lambda: draw(host_pack, model, fox, negative=label), "negative is not a text"),
        (lambda: draw(host_pack, model, [[torch.zeros(1, 77, 768), {}]]), "768 values, small needs 64.*type 'ltxv'"),
        (
            lambda: draw(host_pack, model, encode(host_pack, clip, "a\nb", one_per_line=True)),
            "2 prompts for a batch of 1",
        ),
        (
            lambda: draw(host_pack, model, fox, width=72),
            "72 x 64 pixels: small needs a width and height divisible by 16",
        ),
        (lambda: draw(host_pack, model, fox, latent_image={"samples": torch.ones(1, 16, 7, 8)}), "divisible by 16"),
        (lambda: encode(host_pack, t5.build(masked=False), "a fox"), "does not mask padding.*type 'ltxv'"),
        (lambda: encode(host_pack, object(), "a fox"), "not a T5-XXL"),
        (lambda: run(host_pack, "GtR_LoadMAR", model_name="lightgen-512.safetensors"), "use 'Load LightGen Model'"),
        (lambda: run(host_pack, "GtR_ClassCondition", model=model, class_name="0: tench"), "has no classes"),
    )
    for action, words in cases:
        with pytest.raises(ValueError, match=words) as caught:
            action()
        assert "\n" not in str(caught.value)


def small_graph(**changes: Any) -> dict[str, Any]:
    """The shipped workflow with the tests' T5, a small image and few steps."""
    graph = json.loads((ROOT / "workflows" / "api" / "lightgen_text_to_image.json").read_text(encoding="utf-8"))
    graph["2"] = {"class_type": "GtRTest_TinyT5", "inputs": {"masked": True}}
    graph["5"]["inputs"].update(width=128, height=64)
    graph["6"]["inputs"].update(preset="custom", steps="6, 3, 2")
    for place, value in changes.items():
        node, name = place.split("_", 1)
        graph[node[1:]]["inputs"][name] = value
    return graph


def images(run: Run) -> list[Any]:
    from gtr_tests.client import pixels

    return [pixels(image) for image in run.images["10"]]


def test_the_whole_graph_in_a_server(client: Client) -> None:
    base = client.prompt(small_graph())
    assert base.node_errors == {} and base.images["10"] and base.previews
    assert images(base)[0][0] == (128, 64)
    for change in ({"n4_text": "an owl"}, {"n8_seed": 43}, {"n5_height": 128}):
        assert images(client.prompt(small_graph(**change))) != images(base)
    stopped: list[float] = []

    def stop(message: Any) -> None:
        if not stopped and getattr(message, "type", "") == "progress":
            stopped.append(client.interrupt())

    assert client.prompt(small_graph(n8_seed=44), expect_errors=True, on_event=stop).status == "interrupted"
    client.free()
    assert images(client.prompt(small_graph())) == images(base)


def test_models_are_loaded_one_after_the_other(host_pack: Any, clip: Any, model: Any, comfy_base: Path) -> None:
    """The host knows text encoder, model and VAE, and gives each one's memory back when another needs it all."""
    import comfy.model_management as mm
    import folder_paths

    folder_paths.add_model_folder_path("vae", str(comfy_base / "models" / "vae"))
    vae = host_pack.host.NODE_CLASS_MAPPINGS["VAELoader"]().load_vae("sd3.5_vae.safetensors")[0]
    mm.unload_all_models()

    def loaded() -> list[Any]:
        return [entry.model for entry in mm.current_loaded_models]

    fox = encode(host_pack, clip, "a fox")
    assert loaded() == [clip.patcher]
    latent = draw(host_pack, model, fox)
    assert set(map(id, loaded())) == {id(clip.patcher), id(model.patcher)}
    assert vae.decode(latent).shape == (1, 64, 64, 3)
    assert set(map(id, loaded())) == {id(clip.patcher), id(model.patcher), id(vae.patcher)}
    mm.free_memory(
        1e30, mm.get_torch_device(), keep_loaded=[e for e in mm.current_loaded_models if e.model is vae.patcher]
    )
    assert [id(entry) for entry in loaded()] == [id(vae.patcher)]
    assert copy.copy(model.spec) == model.spec
