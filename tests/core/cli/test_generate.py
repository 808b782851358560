"""``generate``: images from classes, from encoded prompts, and from a given image of which a part is resampled."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model, load_vae
from gtr_pack.gtr_core.cli import generate, main
from gtr_pack.gtr_core.demo import DEMO_MAR, DEMO_VAE
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.models.latents import latent_to_tokens
from gtr_pack.gtr_core.pipeline import (
    Canvas,
    decode,
    decode_images,
    encode_images,
    generate_latents,
    masked_tokens,
    plan_decoding,
)
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.partition import stage_of_tokens
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_tests.evaluations import VAE
from PIL import Image

FAST = ["--steps", "3,2,1", "--diffusion", "6,4,4", "--fts-steps", "6"]
METHOD = Method(
    Schedule("custom", "gtr", (3, 2, 1), diffusion=(6, 4, 4), decoder_scope="stage"), Guidance(3.0), FTS(0.1, 6)
)
CELL = 4  # pixels of the demo model's latent cells
GRID = (16, 16)


@pytest.fixture(scope="module")
def demo():
    return load_model(DEMO_MAR), load_vae(DEMO_VAE)


@pytest.fixture(scope="module")
def image(demo) -> np.ndarray:
    """What the demo model draws, (128, 128, 3)."""
    model, vae = demo
    return decode_images(vae, generate_latents(model, METHOD, [3], 11))[0]


@pytest.fixture
def image_file(image, tmp_path) -> Path:
    Image.fromarray(image).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def mask_file(tmp_path) -> Path:
    Image.fromarray(mask_pixels()).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture
def decoded(monkeypatch) -> list[torch.Tensor]:
    """The latents that the verb decodes, as they come."""
    found = []

    def watch(vae, latents):
        found.append(latents)
        return decode_images(vae, latents)

    monkeypatch.setattr(generate, "decode_images", watch)
    return found


def mask_pixels() -> np.ndarray:
    """White in rows 40 to 79, columns 19 to 64: tokens 5 to 9 down, 2 to 8 across."""
    mask = np.zeros((128, 128), np.uint8)
    mask[40:80, 19:65] = 255
    return mask


def mask_tokens() -> np.ndarray:
    """The tokens that :func:`mask_pixels` touches."""
    tokens = np.zeros(GRID, bool)
    tokens[5:10, 2:9] = True
    return tokens


def pixels(file: str | Path) -> np.ndarray:
    return np.array(Image.open(file))


def cells(tokens: np.ndarray) -> torch.Tensor:
    """A mask (h, w) of the demo model's tokens as one of latent cells: a token has 2 x 2."""
    return torch.from_numpy(tokens.repeat(2, 0).repeat(2, 1))


def changed_tokens(latents: torch.Tensor, given: torch.Tensor) -> np.ndarray:
    """Tokens (h, w) of which a latent value differs between (1, C, H, W) and (1, C, H, W)."""
    changed = (latents != given).any(1)[0].numpy()
    return changed.reshape(changed.shape[0] // 2, 2, -1, 2).any((1, 3))


def test_one_image_per_class_whatever_the_batch(run, tmp_path):
    facts = run("generate", *FAST, "--class", "animal face, 3", "--seed", 5, "-o", tmp_path / "a.png")
    assert facts["report"].startswith("custom on demo: 2 images, 6 AR steps") and "the origin needs" in facts["report"]
    assert facts["classes"] == [0, 3] and [Path(f).name for f in facts["files"]] == ["a_000.png", "a_001.png"]
    images = [pixels(f) for f in facts["files"]]
    assert images[0].shape == (128, 128, 3) and min(image.std() for image in images) > 5
    again = run("generate", *FAST, "--class", "3", "--seed", 6, "-o", tmp_path / "b.png")
    difference = np.abs(pixels(again["files"][0]).astype(int) - images[1].astype(int))
    assert difference.max() <= 1


def test_every_order_runs(run, tmp_path):
    for order in ("raster", "subsample", "halton", "random"):
        few = ("--steps", 3, "--diffusion", "5,5,5")
        facts = run("generate", "--order", order, *few, "-o", tmp_path / "a.png")
        assert facts["report"].startswith(f"{order}-3 on demo: 1 image, 3 AR steps")


def test_lazymar_says_what_it_computed(run, tmp_path):
    few = ("--order", "random", "--steps", 8, "--diffusion", "9,9,9")
    facts = run("generate", *few, "--cache", "lazymar", "-o", tmp_path / "a.png")
    assert "LazyMAR: 6 of 8 AR steps computed in full" in facts["report"]
    facts = run("flops", "--model", "mar-b", "--preset", "gtr-full", "--cache", "lazymar")
    assert facts["speedup"] > run("flops", "--model", "mar-b", "--preset", "gtr-full")["speedup"]


def test_classes_are_repeated_up_to_the_batch(run, tmp_path):
    facts = run("generate", *FAST, "--class", "1,2", "--batch", 3, "--cfg", 1, "-o", tmp_path / "a.png")
    assert facts["classes"] == [1, 2, 1]


def test_a_foreign_vae_is_refused(refused, tmp_path):
    assert "use the model's own VAE" in refused("generate", "--vae", VAE, "-o", tmp_path / "a.png")


def test_encoded_prompts_make_images_of_any_size(run, refused, text_options, prompt_file, tmp_path):
    """LightGen and an SD3-like VAE, both small."""
    arguments = ["generate", *FAST, *text_options, "--size", "96x64", "-o", tmp_path / "a.png"]
    facts = run(*arguments, "--prompt-embeds", prompt_file)
    assert [pixels(file).shape for file in facts["files"]] == [(64, 96, 3)] * 2 and "classes" not in facts
    assert "give its encoded prompts" in refused(*arguments)
    assert "expected a tensor 'prompt_embeds'" in refused(*arguments, "--prompt-embeds", text_options[-1])


# A given image: what is not resampled stays, to the bit


def test_known_tokens_come_back_to_the_bit(demo, image):
    """Encode, decode under a mask: known tokens and known cells of the latent are those of the image."""
    model, vae = demo
    latents = encode_images(vae, np.stack([image, image[::-1]]))
    unknown = masked_tokens(torch.from_numpy(mask_pixels())[None] / 255, GRID)
    assert np.array_equal(unknown[0], mask_tokens())
    canvas = Canvas(latents, torch.ones(2, *GRID, dtype=torch.bool)).only(unknown)
    tokens = latent_to_tokens(canvas.latents, model.spec.latent)
    decoding = plan_decoding(model.spec, METHOD, (5, 6), canvas.unknown.numpy(), Runtime())
    result = decode(model, decoding, tokens, torch.tensor([3, 4]))
    known = ~torch.from_numpy(mask_tokens()).flatten()
    assert torch.equal(result.tokens[:, known], tokens[:, known])
    assert (result.tokens[:, ~known] != tokens[:, ~known]).any(2).all()
    assert (result.steps[:, known] == 0).all() and (result.steps[:, ~known] > 0).all()
    finished = canvas.finished(result.tokens, model.spec)
    assert torch.equal(finished[..., cells(~mask_tokens())], latents[..., cells(~mask_tokens())])
    assert (finished[..., cells(mask_tokens())] != latents[..., cells(mask_tokens())]).any(1).all()
    assert np.array_equal(changed_tokens(finished[:1], latents[:1]), mask_tokens())


def test_an_image_of_a_batch_is_inpainted_as_alone(demo, image):
    model, vae = demo
    latents = encode_images(vae, image[None])
    tokens = latent_to_tokens(latents, model.spec.latent)
    unknown = np.repeat(mask_tokens()[None], 2, 0)

    def inpainted(seeds: tuple[int, ...], labels: list[int]) -> torch.Tensor:
        decoding = plan_decoding(model.spec, METHOD, seeds, unknown[: len(seeds)], Runtime())
        return decode(model, decoding, tokens.repeat(len(seeds), 1, 1), torch.tensor(labels)).tokens

    assert torch.allclose(inpainted((5, 6), [3, 4])[1:], inpainted((6,), [4]), atol=1e-3)


def test_a_mask_resamples_its_tokens_alone(run, demo, image, image_file, mask_file, decoded, tmp_path):
    arguments = ["generate", *FAST, "--class", "3,4", "--image", image_file, "--mask", mask_file]
    facts = run(*arguments, "-o", tmp_path / "out.png")
    assert [Path(file).name for file in facts["files"]] == ["out_000.png", "out_001.png"] and facts["classes"] == [3, 4]
    assert facts["report"].startswith("custom on demo: 2 images")
    given, (latents,) = encode_images(demo[1], image[None]), decoded
    assert torch.equal(latents[..., cells(~mask_tokens())], given.expand(2, -1, -1, -1)[..., cells(~mask_tokens())])
    assert (latents != given)[..., cells(mask_tokens())].any(1).all()
    for file, latent in zip(facts["files"], latents):
        assert np.array_equal(pixels(file), decode_images(demo[1], latent[None])[0])


def test_a_black_mask_changes_nothing(run, demo, image, image_file, decoded, tmp_path):
    Image.new("L", (128, 128)).save(tmp_path / "black.png")
    run("generate", *FAST, "--image", image_file, "--mask", tmp_path / "black.png", "-o", tmp_path / "out.png")
    assert torch.equal(decoded[0], encode_images(demo[1], image[None]))


@pytest.mark.parametrize(
    "redraw, kept",
    [("variations", lambda stage: stage == 1), ("reconstruction", lambda stage: stage < 3)],
    ids=["variations", "reconstruction"],
)
def test_a_redraw_keeps_the_first_stages(redraw, kept, run, demo, image, image_file, decoded, tmp_path):
    run("generate", *FAST, "--class", 3, "--image", image_file, "--redraw", redraw, "-o", tmp_path / "out.png")
    stays = cells(kept(stage_of_tokens(GRID, 3, METHOD.schedule.partition)))
    given = encode_images(demo[1], image[None])
    assert torch.equal(decoded[0][..., stays], given[..., stays])
    assert (decoded[0] != given)[..., ~stays].any(1).all()
    assert pixels(tmp_path / "out.png").shape == (128, 128, 3)


def test_a_share_of_the_tokens_is_redrawn(run, demo, image, image_file, decoded, tmp_path):
    arguments = ["generate", *FAST, "--image", image_file, "--redraw", "denoise", "-o", tmp_path / "out.png"]
    for share, tokens in ((0.25, 64), (1, 256), (0, 0)):
        run(*arguments, "--denoise", share)
        assert changed_tokens(decoded.pop(), encode_images(demo[1], image[None])).sum() == tokens


def test_a_mask_limits_what_is_redrawn(run, demo, image, image_file, mask_file, decoded, tmp_path):
    both = ["--redraw", "variations", "--mask", mask_file]
    run("generate", *FAST, "--image", image_file, *both, "-o", tmp_path / "out.png")
    expected = mask_tokens() & (stage_of_tokens(GRID, 3, METHOD.schedule.partition) > 1)
    assert np.array_equal(changed_tokens(decoded[0], encode_images(demo[1], image[None])), expected)


@pytest.mark.parametrize("room", ["24,0,0,8", "0,16,8,0"])
def test_outpainting_keeps_the_image_inside(room, run, demo, image, image_file, decoded, tmp_path):
    """A MAR model draws one size: windows of it slide over the room."""
    left, top, right, bottom = map(int, room.split(","))
    facts = run("generate", *FAST, "--image", image_file, "--outpaint", room, "-o", tmp_path / "out.png")
    assert pixels(tmp_path / "out.png").shape == (128 + top + bottom, 128 + left + right, 3)
    inside = np.s_[..., top // CELL : top // CELL + 32, left // CELL : left // CELL + 32]
    given = encode_images(demo[1], image[None])
    assert torch.equal(decoded[0][inside], given)
    outside = torch.ones(decoded[0].shape[2:], dtype=torch.bool)
    outside[inside] = False
    assert decoded[0][..., outside].any(1).all() and "window 1 of" in facts["report"]


def test_a_small_image_is_outpainted_to_the_models_size(run, demo, image, decoded, tmp_path):
    Image.fromarray(image[:64, :64]).save(tmp_path / "quarter.png")
    arguments = ["generate", *FAST, "--image", tmp_path / "quarter.png", "--outpaint", "0,0,64,64"]
    facts = run(*arguments, "-o", tmp_path / "out.png")
    assert pixels(tmp_path / "out.png").shape == (128, 128, 3) and "window" not in facts["report"]
    assert torch.equal(decoded[0][..., :16, :16], encode_images(demo[1], image[None, :64, :64]))


def test_lightgen_inpaints_and_outpaints_at_once(run, text_options, prompt_file, tmp_path):
    Image.new("RGB", (96, 64), "red").save(tmp_path / "image.png")
    Image.new("L", (96, 64), 255).save(tmp_path / "mask.png")
    arguments = ["generate", *FAST, *text_options, "--prompt-embeds", prompt_file, "--image", tmp_path / "image.png"]
    facts = run(*arguments, "--mask", tmp_path / "mask.png", "-o", tmp_path / "a.png")
    assert [pixels(file).shape for file in facts["files"]] == [(64, 96, 3)] * 2
    facts = run(*arguments, "--outpaint", "0,32,16,0", "-o", tmp_path / "b.png")
    assert [pixels(file).shape for file in facts["files"]] == [(96, 112, 3)] * 2 and "window" not in facts["report"]


@pytest.mark.parametrize("name", ["photo.jpg", "photo.webp", "grey.png", "alpha.png", "palette.png"])
def test_images_of_every_common_kind_are_read(name, image, tmp_path):
    mode = {"grey.png": "L", "alpha.png": "RGBA", "palette.png": "P"}.get(name, "RGB")
    Image.fromarray(image).convert(mode).save(tmp_path / name)
    image = generate.read_image(str(tmp_path / name), "RGB")
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert generate.read_image(str(tmp_path / name), "L").shape == (128, 128)


def test_a_photo_is_read_upright(image, tmp_path):
    """As its EXIF says: ComfyUI loads it so."""
    turned = Image.fromarray(image[:64])
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(generate.read_image(str(tmp_path / "a.png"), "RGB"), np.rot90(image[:64], -1))


@pytest.mark.parametrize(
    "change, words",
    [
        (["--image", "nowhere.png", "--redraw", "variations"], "no file at nowhere.png"),
        (["--image", "text.png", "--redraw", "variations"], "text.png is not a readable image"),
        (["--image", "half.png", "--redraw", "variations"], "half.png is not a readable image"),
        (["--image", "broken.png", "--redraw", "variations"], "broken.png is not a readable image"),
        (["--image", "script.eps", "--redraw", "variations"], "script.eps is not a readable image"),
        (["--image", "bomb.png", "--redraw", "variations"], "bomb.png is not a readable image"),
        (["--image", ".", "--redraw", "variations"], ". is not a readable image"),
        (["--image", "odd.png", "--redraw", "variations"], "size 100 x 128: expected width x height in multiples of 8"),
        (["--image", "wide.png", "--redraw", "variations"], "demo draws 128 x 128 pixels only, found 256 x 128"),
        (["--image", "image.png"], "give --mask, --redraw or --outpaint"),
        (["--mask", "mask.png"], "--mask changes a given image: give it with --image"),
        (["--redraw", "variations"], "--redraw changes a given image: give it with --image"),
        (["--outpaint", "8,0,0,0"], "--outpaint changes a given image: give it with --image"),
        (["--image", "image.png", "--mask", "nowhere.png"], "no file at nowhere.png"),
        (["--image", "image.png", "--mask", "wide.png"], "the mask is 256 x 128 pixels, the image 128 x 128"),
        (["--image", "image.png", "--mask", "mask.png", "--size", "128x128"], "leave out --size"),
        (["--image", "image.png", "--redraw", "denoise", "--denoise", "1.5"], "denoise 1.5: expected 0"),
        (["--image", "image.png", "--redraw", "denoise", "--denoise", "nan"], "denoise nan: expected 0"),
        (["--image", "image.png", "--redraw", "variations", "--preset", "origin"], "'origin' has a single stage"),
        (["--image", "image.png", "--outpaint", "8,0,0"], "expected left,top,right,bottom in multiples of 8 pixels"),
        (["--image", "image.png", "--outpaint", "8,0,0,0,0"], "expected left,top,right,bottom"),
        (["--image", "image.png", "--outpaint", "7,0,0,0"], "expected left,top,right,bottom"),
        (["--image", "image.png", "--outpaint=-8,0,0,0"], "expected left,top,right,bottom"),
        (["--image", "image.png", "--outpaint", "0,0,0,0"], "expected left,top,right,bottom"),
        (["--image", "image.png", "--outpaint", "a,b,c,d"], "expected whole numbers separated by commas"),
        (["--image", "image.png", "--outpaint", "8000000,0,0,0"], "16 x 1000016 tokens: expected at most 512 a side"),
        (["--image", "image.png", "--outpaint", "8,0,0,0", "--mask", "mask.png"], "leave out --mask and --redraw"),
        (["--image", "image.png", "--outpaint", "8,0,0,0", "--redraw", "variations"], "leave out --mask and --redraw"),
        (["--image", "small.png", "--outpaint", "8,0,0,0"], "windows of 16 x 16 need at least that"),
    ],
)
def test_wrong_images_and_combinations_end_in_one_line(
    change, words, refused, image, image_file, mask_file, tmp_path, monkeypatch
):
    data = image_file.read_bytes()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "broken.png").write_bytes(data.replace(b"IDAT", b"IDAU", 1))
    (tmp_path / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 128 128\nshowpage\n%%EOF\n")
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    Image.fromarray(image[:, :100]).save(tmp_path / "odd.png")
    Image.fromarray(np.hstack([image, image])).save(tmp_path / "wide.png")
    Image.fromarray(image[:64, :64]).save(tmp_path / "small.png")
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    schedule = [] if "--preset" in change else FAST
    assert words in refused("generate", *schedule, *change, "-o", "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "change, words",
    [
        (["--class", "12"], "class 12 is out of range: demo has classes 0 to 11"),
        (["--class", "-1"], "out of range"),
        (["--class", "zebra"], "demo has no class 'zebra'"),
        (["--class", " , "], "no class given"),
        (["--class", "1,2", "--batch", "1"], "give --batch 2"),
        (["--model", DEMO_MAR], "give the model's VAE file with --vae"),
        (["--output", "x.jpg"], "ends in .png"),
        (["--model", "nowhere.safetensors", "--vae", "x"], "no file at nowhere.safetensors"),
        (["--cfg", "nan"], "guidance scale nan: expected a number from -1000 to 1000"),
        (["--fts-fraction", "2"], "above 0 and at most 1"),
        (["--steps", "4,x"], "expected whole numbers separated by commas"),
        (["--class", "+-5"], "demo has no class '+-5'"),
        (["--class", "9" * 5000], "demo has no class"),
        (["--batch", "0"], "expected at least 1"),
        (["--output", "none/x.png"], "no folder none"),
        (["--device", "toaster"], "cannot be used here"),
        (["--class", "10000000000"], "demo has no class '10000000000'"),
        (["--batch", "5000"], "4096"),
        (["--temperature", "-1"], "temperature -1.0: expected 0 or more"),
        (["--cfg-start", "2"], "expected a share of the tokens, 0 to 1"),
        (["--size", "256x128"], "found 256 x 128: use the model's own size (leave out --size)"),
        (["--size", "128"], "expected width x height"),
        (["--prompt-embeds", "x"], "leave out --prompt-embeds"),
        (["--cache", "lazymar", "--cfg", "1"], "LazyMAR needs guidance"),
    ],
)
def test_wrong_options_end_in_one_line(change, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("generate", *change)
    assert not list(tmp_path.iterdir())


def test_an_image_carries_how_it_was_made(run, tmp_path):
    facts = run("generate", *FAST, "--class", "2,5", "--seed", 7, "-o", tmp_path / "a.png")
    texts = [Image.open(file).text for file in facts["files"]]
    assert [(text["seed"], text["class"]) for text in texts] == [("7", "2"), ("8", "5")]
    assert texts[1]["model"] == "demo" and texts[1]["preset"] == "custom" and texts[1]["report"] == facts["report"]
    assert json.loads(texts[1]["settings"])["schedule"]["steps"] == [3, 2, 1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def generate_with(stderr: io.StringIO, *arguments) -> str:
    """What a run writes on standard error."""
    with contextlib.redirect_stderr(stderr):
        assert main(["generate", *FAST, *map(str, arguments)]) == 0
    return stderr.getvalue()


def test_a_terminal_sees_a_progress_bar_that_is_full_in_the_end(tmp_path):
    text = generate_with(Terminal(), "-o", tmp_path / "a.png")
    last = text.rpartition("\r")[2]
    assert last.startswith("stage 3/3, step 6/6 100% |") and last.endswith("\n") and text.count("\n") == 1


def test_a_log_file_and_json_see_no_progress_bar(tmp_path):
    assert generate_with(io.StringIO(), "-o", tmp_path / "a.png") == ""
    assert generate_with(Terminal(), "--json", "-o", tmp_path / "a.png") == ""


def test_a_refusal_begins_a_line_of_its_own_below_the_progress_bar(tmp_path):
    with contextlib.redirect_stderr(Terminal()) as stderr:
        assert main(["generate", *FAST, "--temperature", "nan", "-o", str(tmp_path / "a.png")]) == 2
    assert stderr.getvalue().splitlines()[-1].startswith("error: ")


def test_recap_says_what_it_saved(run, tmp_path):
    random = ["--order", "random", "--steps", 9, "--diffusion", "3,3,3"]
    facts = run("generate", *random, "--cache", "recap", "-o", tmp_path / "a.png")
    assert "ReCAP: 7 full and 2 local AR steps, " in facts["report"]
    facts = run("generate", *FAST, "--cache", "recap", "--recap", "0,2", "-o", tmp_path / "a.png")
    assert "ReCAP: 3 full and 3 local AR steps, " in facts["report"]
