"""``generate``: images from classes or prompts, or a given image of which a part is resampled."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..checkpoints import load_model, load_vae, prompt_states
from ..costs.report import decoding_report, image_facts
from ..drawing.png import write_png
from ..errors import GtRError
from ..files import check_writable
from ..models.autoencoder import Autoencoder
from ..models.latents import latent_to_tokens
from ..models.model import Model
from ..models.prompts import Condition, EditCondition, pad_prompts
from ..models.spec import ModelSpec
from ..noise import image_seeds
from ..pipeline import Canvas, Place, check_pair, decode, decode_images, encode_images, masked_tokens, plan_decoding
from ..plans.method import Method
from ..plans.regions import REDRAWS, redrawn_tokens
from ..sampling.sampler import Progress
from .options import (
    LARGEST_BATCH,
    Options,
    Parser,
    Verb,
    add_guidance_options,
    add_method_options,
    add_model_options,
    add_prompt_options,
    add_runtime_options,
    conditions_of,
    grid_of,
    method_of,
    model_file,
    numbers,
    print_report,
    runtime_of,
    vae_file,
)
from .progress import progress_bar

# What Pillow decodes by itself (for EPS it would start another program), and what it raises for damaged files.
FORMATS = ("PNG", "JPEG", "WEBP")
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    LookupError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def add_options(sub: Parser) -> None:
    add_method_options(sub)
    add_model_options(sub, "MAR, LightGen, Harmon or UniPic")
    sub.add_argument(
        "--class", dest="classes", metavar="NAMES", default="0", help="indices or names, separated by commas"
    )
    sub.add_argument(
        "--prompt-embeds", metavar="FILE", help="LightGen: a .safetensors with 'prompt_embeds' (n, 128, 4096)"
    )
    add_prompt_options(sub)
    sub.add_argument("--edit", metavar="FILE", help="UniPic: change this picture as the prompt says")
    sub.add_argument(
        "--size", metavar="WIDTHxHEIGHT", help="in pixels, of LightGen and Harmon (default: the model's own)"
    )
    sub.add_argument("--seed", metavar="N", type=int, default=0, help="image k has the seed + k")
    sub.add_argument("--batch", metavar="N", type=int, help="images (default: one per class or prompt)")
    sub.add_argument("--image", metavar="FILE", help="start from this image: give a mask, a redraw or an outpaint too")
    sub.add_argument("--mask", metavar="FILE", help="inpaint: tokens with a white pixel are resampled, others stay")
    sub.add_argument("--redraw", choices=REDRAWS, help="resample the schedule's last stages, or a share of the tokens")
    sub.add_argument(
        "--denoise", metavar="SHARE", type=float, default=0.5, help="with --redraw denoise: the share, 0 to 1"
    )
    sub.add_argument("--outpaint", metavar="L,T,R,B", help="pixels to add at the left, top, right and bottom")
    add_guidance_options(sub)
    add_runtime_options(sub)
    sub.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="gtr.png",
        help="a PNG with model, preset, seed and report in its metadata; several get _000, _001, ... in their names",
    )


def run(options: Options) -> None:
    """Images from a model file or the demo model."""
    output = Path(options.output)
    if output.suffix.lower() != ".png":
        raise GtRError(f"output '{output.name}': expected a name that ends in .png")
    check_writable(output)
    runtime = runtime_of(options)
    vae_path = vae_file(options)
    model = load_model(model_file(options.model), device=runtime.device, dtype=runtime.dtype)
    vae = load_vae(vae_path, device=runtime.device)
    check_pair(model, vae)
    spec, method = model.spec, method_of(options)
    condition = condition_of(options, spec, vae)
    canvas = canvas_of(options, method, model, vae, len(condition))
    seeds = image_seeds(options.seed, len(condition))
    decoding = plan_decoding(spec, method, seeds, canvas.unknown.numpy(), runtime, overlap=canvas.overlap)
    decoding.needed_bytes(spec, runtime)  # refuses what memory cannot hold
    tokens = latent_to_tokens(canvas.latents, spec.latent)
    with progress_bar(decoding.ar_steps, silent=options.json) as bar:
        decoded = decode(model, decoding, tokens, condition, runtime=runtime, observer=_watch(bar))
    paths = [output]
    if len(condition) > 1:
        paths = [output.with_stem(f"{output.stem}_{k:03}") for k in range(len(condition))]
    latents = canvas.finished(decoded.tokens, spec)
    report = decoding_report(decoding, decoded, spec)
    labels = condition.tolist() if spec.condition == "label" else [None] * len(condition)
    for path, image, seed, label in zip(paths, decode_images(vae, latents), seeds, labels):
        write_png(path, image, image_facts(spec, method, seed, label) | {"report": report})
    facts = {"files": [str(path) for path in paths], "seconds": sum(map(sum, decoded.seconds)), "report": report}
    if spec.condition == "label":
        facts["classes"] = condition.tolist()
    print_report(options, facts, "\n".join([report, *facts["files"]]))


def condition_of(options: Options, spec: ModelSpec, vae: Autoencoder) -> Condition:
    """One label or text per image: those given, repeated in order up to the batch size."""
    given = conditions_of(options, spec, options.classes, edit=bool(options.edit))
    batch = given.count if options.batch is None else options.batch
    if not 1 <= batch <= LARGEST_BATCH:
        raise GtRError(f"a batch of {batch}: expected at least 1 and at most {LARGEST_BATCH}")
    if batch < given.count:
        kind = "classes" if given.labels else "prompts"
        raise GtRError(f"{given.count} {kind} for a batch of {batch}: give --batch {given.count} or fewer {kind}")
    rows = [k % given.count for k in range(batch)]
    if given.labels:
        return torch.tensor(given.labels)[rows]
    if given.ids:
        prompts = pad_prompts([given.ids[row] for row in rows])
        return EditCondition(prompts, edited_picture(options, spec, vae, batch)) if options.edit else prompts
    return prompt_states(given.prompts, spec)[rows].float()


def edited_picture(options: Options, spec: ModelSpec, vae: Autoencoder, batch: int) -> Tensor:
    """The picture of --edit as tokens (batch, h, w, C). Raises GtRError."""
    image = read_image(options.edit, "RGB")
    grid = spec.latent.grid(image.shape[:2])
    if grid != (grid_of(options.size, spec) or spec.grid):
        size = spec.latent.pixels(grid)
        raise GtRError(
            f"the picture is {size} pixels: give --size {size.replace(' ', '')}, or scale it to "
            f"{spec.latent.pixels(spec.grid)}, for which {spec.name} was trained"
        )
    tokens = latent_to_tokens(encode_images(vae, image[None]).cpu(), spec.latent)
    return tokens.unflatten(1, grid).expand(batch, -1, -1, -1)


def canvas_of(options: Options, method: Method, model: Model, vae: Autoencoder, batch: int) -> Canvas:
    """An empty canvas, or the given image with what is to be resampled of it. Raises GtRError."""
    spec = model.spec
    wanted = [name for name in ("mask", "redraw", "outpaint") if getattr(options, name)]
    if not options.image:
        if wanted:
            raise GtRError(f"--{wanted[0]} changes a given image: give it with --image")
        return Canvas.empty(spec, batch, grid_of(options.size, spec) or spec.grid)
    if not wanted:
        raise GtRError("nothing of the image is to be changed: give --mask, --redraw or --outpaint")
    if options.size:
        raise GtRError("the image has a size of its own: leave out --size")
    image = read_image(options.image, "RGB")
    grid = spec.latent.grid(image.shape[:2])
    if options.outpaint and len(wanted) > 1:
        raise GtRError("--outpaint keeps the whole image: leave out --mask and --redraw")
    room = _room(options.outpaint, spec) if options.outpaint else None
    if room is None:
        spec.check_grid(grid)
    latents = encode_images(vae, image[None]).cpu().expand(batch, -1, -1, -1)
    canvas = Canvas(latents, torch.ones(batch, *grid, dtype=torch.bool))
    if room is not None:
        return canvas.extended(spec, room)
    if options.redraw:
        canvas = canvas.only(torch.from_numpy(redrawn_tokens(method.schedule, grid, options.redraw, options.denoise)))
    if options.mask:
        mask = read_image(options.mask, "L")
        if mask.shape != image.shape[:2]:
            raise GtRError(
                f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.shape[1]} x {image.shape[0]}: "
                "make them the same size"
            )
        canvas = canvas.only(masked_tokens(torch.from_numpy(mask)[None] / 255, grid))
    return canvas


def read_image(path: str, mode: str) -> np.ndarray:
    """An image file, upright, as (H, W, 3) uint8 (``RGB``) or (H, W) uint8 (``L``). Raises GtRError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return np.array(ImageOps.exif_transpose(image).convert(mode))
    except FileNotFoundError as error:
        raise GtRError(f"no file at {path}: check the name") from error
    except UNREADABLE as error:
        raise GtRError(f"{path} is not a readable image ({type(error).__name__}): give a PNG or JPEG file") from error


def _room(text: str, spec: ModelSpec) -> tuple[int, int, int, int]:
    """left,top,right,bottom in pixels -> tokens left, right, top, bottom."""
    sides, token = numbers(text, int), spec.latent.stride * spec.latent.patch
    if len(sides) != 4 or any(side < 0 or side % token for side in sides) or not any(sides):
        raise GtRError(f"--outpaint {text}: expected left,top,right,bottom in multiples of {token} pixels")
    left, top, right, bottom = (side // token for side in sides)
    return left, right, top, bottom


def _watch(bar: tqdm) -> Callable[[Progress, Place], None]:
    """Moves the progress bar."""
    done = 0.0

    def observe(progress: Progress, place: Place) -> None:
        nonlocal done
        stage = f"stage {progress.stage}/{progress.stages}, step {progress.step}/{progress.steps}"
        bar.set_description_str(stage, refresh=False)
        bar.update(done + progress.share * progress.steps - bar.n)
        if progress.step == progress.steps:
            done += progress.steps

    return observe


GENERATE = Verb(
    "generate",
    "make images",
    (
        "generate --class 2,5,8 --revise 0.25 -o images.png",
        "generate --model mar-base-ema.pth --vae kl16.safetensors --class 'golden retriever' --device cuda",
        "generate --image images_000.png --mask mask.png -o inpainted.png",
    ),
    add_options,
    run,
)
