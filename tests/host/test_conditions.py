"""Conditions that ComfyUI's own nodes have edited: the sampler does what is meant, or refuses in one line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from gtr_tests.recorded import error

DEMO = "demo (built-in)"
CFG = 3.0


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


class Wires:
    """The host's nodes and the pack's, and a short run of the demo model."""

    def __init__(self, pack: Any) -> None:
        self.pack = pack
        with ThreadPoolExecutor(1) as pool:  # Zero Out is built in, the rest of the extras too
            pool.submit(asyncio.run, pack.host.init_builtin_extra_nodes()).result()
        self.model = self.own("GtR_LoadMAR", model_name=DEMO)
        self.schedule = self.own(
            "GtR_Scheduler",
            preset="custom",
            steps="2, 1",
            diffusion_start=4,
            diffusion_end=3,
            diffusion_reconstruction=3,
        )

    def own(self, node: str, **inputs: Any) -> Any:
        return self.pack.classes[node].execute(**inputs).result[0]

    def stock(self, node: str, **inputs: Any) -> Any:
        found = self.pack.host.NODE_CLASS_MAPPINGS[node]
        if hasattr(found, "GET_SCHEMA"):
            return found.execute(**inputs).result[0]
        return getattr(found(), found.FUNCTION)(**inputs)[0]

    def label(self, classes: str) -> Any:
        return self.own("GtR_ClassCondition", model=self.model, class_name="demo 0: animal face", class_list=classes)

    def draw(self, positive: Any, model: Any = None, batch: int = 1, size: int = 0, **inputs: Any) -> torch.Tensor:
        model = model or self.model
        latent = self.own("GtR_EmptyLatent", model=model, width=size, height=size, batch_size=batch)
        settings = {"seed": 1, "cfg": CFG, "cfg_schedule": "constant", "temperature": 1.0}
        return self.own(
            "GtR_Sampler",
            **{"model": model, "positive": positive, "schedule": self.schedule, "latent_image": latent}
            | settings
            | inputs,
        )["samples"]


@pytest.fixture(scope="module")
def wires(host_pack: Any) -> Wires:
    with torch.inference_mode():
        return Wires(host_pack)


# -- class labels ------------------------------------------------------------------------------------------------------


def test_a_zeroed_negative_is_the_null_condition(wires: Wires) -> None:
    """The idiom of the stock templates for 'no negative'."""
    three = wires.label("3")
    plain, unguided = wires.draw(three), wires.draw(three, cfg=1.0)
    zeroed = wires.draw(three, negative=wires.stock("ConditioningZeroOut", conditioning=three))
    assert error(zeroed, plain) < 1e-4 < error(zeroed, unguided)
    assert torch.equal(wires.draw(three, negative=times(wires, wires.label("5"), 0.0)), zeroed)


def test_class_0_is_not_the_null_condition(wires: Wires) -> None:
    three = wires.label("3")
    assert error(wires.draw(three, negative=wires.label("0")), wires.draw(three)) > 1e-3


def test_a_zeroed_positive_draws_without_a_class(wires: Wires) -> None:
    zeroed = [wires.stock("ConditioningZeroOut", conditioning=wires.label(name)) for name in ("3", "7")]
    one, other = (wires.draw(condition, cfg=1.0) for condition in zeroed)
    assert torch.equal(one, other) and torch.isfinite(one).all()
    assert error(one, wires.draw(wires.label("3"), cfg=1.0)) > 1e-3


def test_a_zeroed_list_counts_for_every_image(wires: Wires) -> None:
    both = wires.label("3, 7")
    zeroed = wires.stock("ConditioningZeroOut", conditioning=both)
    assert error(wires.draw(both, batch=2, negative=zeroed), wires.draw(both, batch=2)) < 1e-4


def times(w: Wires, c: Any, factor: float) -> Any:
    """Conditioning Multiply, which the oldest supported host does not have."""
    if "ConditioningMultiply" in w.pack.host.NODE_CLASS_MAPPINGS:
        return w.stock("ConditioningMultiply", conditioning=c, multiplier=factor)
    return [[values * factor, extra] for values, extra in c]


UNCHANGED: dict[str, Callable[[Wires, Any], Any]] = {
    "average at 1": lambda w, c: w.stock(
        "ConditioningAverage", conditioning_to=c, conditioning_from=w.label("5"), conditioning_to_strength=1.0
    ),
    "multiply by 1": lambda w, c: times(w, c, 1.0),
    "strength 1": lambda w, c: w.stock("ConditioningSetAreaStrength", conditioning=c, strength=1.0),
    "all steps": lambda w, c: w.stock("ConditioningSetTimestepRange", conditioning=c, start=0.0, end=1.0),
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_an_edit_that_changes_nothing_is_let_through(wires: Wires, case: str) -> None:
    three = wires.label("3")
    assert torch.equal(wires.draw(UNCHANGED[case](wires, three)), wires.draw(three))


def average(w: Wires, strength: float, other: str = "5", classes: str = "3") -> Any:
    return w.stock(
        "ConditioningAverage",
        conditioning_to=w.label(classes),
        conditioning_from=w.label(other),
        conditioning_to_strength=strength,
    )


def area(w: Wires, c: Any) -> Any:
    return w.stock("ConditioningSetArea", conditioning=c, width=64, height=64, x=0, y=0, strength=1.0)


def share(w: Wires, c: Any) -> Any:
    return w.stock("ConditioningSetAreaPercentage", conditioning=c, width=0.5, height=1.0, x=0.0, y=0.0, strength=1.0)


def masked(w: Wires, c: Any) -> Any:
    mask = torch.zeros(1, 64, 64)
    return w.stock("ConditioningSetMask", conditioning=c, mask=mask, strength=1.0, set_cond_area="default")


def ranged(w: Wires, c: Any) -> Any:
    return w.stock("ConditioningSetTimestepRange", conditioning=c, start=0.0, end=0.5)


def strong(w: Wires, c: Any) -> Any:
    return w.stock("ConditioningSetAreaStrength", conditioning=c, strength=0.0)


REFUSED: dict[str, tuple[Callable[[Wires], Any], str]] = {
    "average": (lambda w: average(w, 0.5), "blends or scales class labels.*class_list"),
    "average that lands on a class": (lambda w: average(w, 0.5, other="7"), "blends or scales"),
    "average at 0": (lambda w: average(w, 0.0), "blends or scales"),
    "average of lists": (lambda w: average(w, 0.5, classes="3, 4"), "blends or scales"),
    "average from a list": (lambda w: average(w, 1.0, other="3, 4"), "blends or scales"),
    "multiply": (lambda w: times(w, w.label("3"), 2.0), "blends or scales"),
    "nan": (lambda w: [[torch.full((1, 1, 1), float("nan")), w.label("3")[0][1]]], "blends or scales"),
    "concat": (
        lambda w: w.stock("ConditioningConcat", conditioning_to=w.label("3"), conditioning_from=w.label("4")),
        "joins class labels.*Concat",
    ),
    "combine": (
        lambda w: w.stock("ConditioningCombine", conditioning_1=w.label("3"), conditioning_2=w.label("4")),
        "combines 2 conditions.*list of classes",
    ),
    "area": (lambda w: area(w, w.label("3")), "Set Area.*Set Latent Noise Mask"),
    "area in parts": (lambda w: share(w, w.label("3")), "Set Area.*Set Latent Noise Mask"),
    "mask": (lambda w: masked(w, w.label("3")), "a mask.*Set Latent Noise Mask"),
    "timestep range": (lambda w: ranged(w, w.label("3")), "range of steps.*remove that node"),
    "strength": (lambda w: strong(w, w.label("3")), "a strength.*set cfg"),
    "zeroed and masked": (
        lambda w: masked(w, w.stock("ConditioningZeroOut", conditioning=w.label("3"))),
        "a mask.*Set Latent Noise Mask",
    ),
    "flux guidance": (
        lambda w: w.stock("FluxGuidance", conditioning=w.label("3"), guidance=3.5),
        "Flux Guidance.*set cfg",
    ),
    "an unknown setting": (lambda w: [[w.label("3")[0][0], w.label("3")[0][1] | {"frame_rate": 25}]], "'frame_rate'"),
}


@pytest.mark.parametrize("slot", ["positive", "negative"])
@pytest.mark.parametrize("case", REFUSED)
def test_an_edited_label_is_refused(wires: Wires, case: str, slot: str) -> None:
    make, words = REFUSED[case]
    inputs = {"positive": wires.label("3"), "batch": 2} | {slot: make(wires)}
    with pytest.raises(ValueError, match=f"^{slot} .*{words}") as caught:
        wires.draw(**inputs)
    assert "\n" not in str(caught.value)


def test_inpaint_model_conditioning_goes_with_its_latent(wires: Wires) -> None:
    """Its conditions repeat what the mask of its latent says; without that latent they would be ignored."""
    vae, three, four = wires.own("GtR_LoadMARVAE", vae_name=DEMO), wires.label("3"), wires.label("4")
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    node = wires.pack.host.NODE_CLASS_MAPPINGS["InpaintModelConditioning"]()
    positive, negative, latent = node.encode(three, four, torch.rand(1, 128, 128, 3), vae, mask, True)
    out = wires.draw(positive, negative=negative, latent_image=latent)
    assert torch.equal(out, wires.draw(three, negative=four, latent_image=latent))
    with pytest.raises(ValueError, match="positive asks for an image to inpaint.*the latent of that node"):
        wires.draw(positive, negative=negative)


# -- texts -------------------------------------------------------------------------------------------------------------


class Texts:
    """LightGen with the tests' T5."""

    def __init__(self, wires: Wires, models: Path) -> None:
        import folder_paths
        from gtr_tests import tiny_t5

        folder_paths.add_model_folder_path("diffusion_models", str(models / "diffusion_models"))
        self.wires = wires
        self.model = wires.own("GtR_LoadLightGen", model_name="lightgen-512.safetensors")
        with torch.inference_mode(False):
            self.clip = tiny_t5.build()

    def text(self, prompt: str, **settings: Any) -> Any:
        return self.wires.own("GtR_EncodeText", clip=self.clip, text=prompt, **settings)

    def stock(self, prompt: str) -> Any:
        return self.wires.stock("CLIPTextEncode", clip=self.clip, text=prompt)

    def draw(self, positive: Any, **inputs: Any) -> torch.Tensor:
        return self.wires.draw(positive, self.model, size=64, **inputs)


@pytest.fixture(scope="module")
def texts(wires: Wires, comfy_base: Path, model_files: frozenset[str]) -> Texts:
    with torch.inference_mode():
        return Texts(wires, comfy_base / "models")


def test_a_zeroed_negative_text_is_none(texts: Texts) -> None:
    fox = texts.text("a fox")
    plain = texts.draw(fox)
    for other in (fox, texts.text("blurry"), texts.stock("a fox")):
        zeroed = texts.wires.stock("ConditioningZeroOut", conditioning=other)
        assert torch.equal(texts.draw(fox, negative=zeroed), plain)
    assert not torch.equal(texts.draw(fox, negative=texts.text("blurry")), plain)


def test_averaged_texts_are_what_they_say(texts: Texts) -> None:
    fox, owl = texts.text("a fox"), texts.text("an owl at night")

    def mixed(strength: float) -> Any:
        return texts.wires.stock(
            "ConditioningAverage", conditioning_to=fox, conditioning_from=owl, conditioning_to_strength=strength
        )

    assert torch.equal(texts.draw(mixed(1.0)), texts.draw(fox))
    assert torch.equal(texts.draw(mixed(0.0)), texts.draw(owl))
    between = [[(fox[0][0] + owl[0][0]) / 2, fox[0][1]]]
    assert error(texts.draw(mixed(0.5)), texts.draw(between)) < 1e-4


TEXT_EDITS: dict[str, tuple[Callable[[Texts], Any], str]] = {
    "concat": (
        lambda t: t.wires.stock(
            "ConditioningConcat", conditioning_to=t.text("a fox"), conditioning_from=t.text("an owl")
        ),
        "256 text positions.*joins texts",
    ),
    "concat of stock texts": (
        lambda t: t.wires.stock(
            "ConditioningConcat", conditioning_to=t.stock("a fox"), conditioning_from=t.stock("an owl")
        ),
        "joins texts.*one prompt",
    ),
    "combine": (
        lambda t: t.wires.stock("ConditioningCombine", conditioning_1=t.text("a fox"), conditioning_2=t.text("an owl")),
        "combines 2 conditions.*one prompt per line",
    ),
    "area": (lambda t: area(t.wires, t.text("a fox")), "Set Area.*Set Latent Noise Mask"),
    "mask": (lambda t: masked(t.wires, t.text("a fox")), "a mask.*Set Latent Noise Mask"),
    "timestep range": (lambda t: ranged(t.wires, t.stock("a fox")), "range of steps.*remove that node"),
    "strength": (lambda t: strong(t.wires, t.text("a fox")), "a strength.*set cfg"),
    "nan": (lambda t: [[t.text("a fox")[0][0] * float("nan"), t.text("a fox")[0][1]]], "NaN or infinite"),
    "infinite": (lambda t: [[t.text("a fox")[0][0] / 0, t.text("a fox")[0][1]]], "NaN or infinite"),
}


@pytest.mark.parametrize("slot", ["positive", "negative"])
@pytest.mark.parametrize("case", TEXT_EDITS)
def test_an_edited_text_is_refused(texts: Texts, case: str, slot: str) -> None:
    make, words = TEXT_EDITS[case]
    with pytest.raises(ValueError, match=words) as caught:
        texts.draw(**{"positive": texts.text("a fox")} | {slot: make(texts)})
    assert "\n" not in str(caught.value)


def test_a_zeroed_positive_text_is_refused(texts: Texts) -> None:
    for text in (texts.text("a fox"), texts.text("a fox\nan owl", one_per_line=True)):
        with pytest.raises(ValueError, match="positive is zeroed.*encode an empty text"):
            texts.draw(texts.wires.stock("ConditioningZeroOut", conditioning=text), batch=2)


@pytest.mark.parametrize(
    "cut, whole",
    [
        ("a \ud83e fox", "a  fox"),
        ("a fox \udd8a", "a fox "),
        ("\ud83e", ""),
        ("a \ud83e\udd8a fox", "a \U0001f98a fox"),
        ("a \ud83e\ud83e\udd8a fox", "a \U0001f98a fox"),
    ],
)
def test_half_an_emoji_is_left_out(texts: Texts, cut: str, whole: str) -> None:
    """A prompt that another program cut inside a surrogate pair, as JSON can carry it."""
    for settings in ({}, {"one_per_line": True}):
        assert torch.equal(texts.text(cut, **settings)[0][0], texts.text(whole, **settings)[0][0])
