"""The model card: images and measured figures of the shipped files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gtr_core.checkpoints import load_model, load_vae
from gtr_core.demo import DEMO_JUDGE, DEMO_MAR, DEMO_REFERENCE, DEMO_VAE
from gtr_core.drawing.bars import write_chart
from gtr_core.evaluation.classifier import Classifier, load_classifier
from gtr_core.models.mar import MAR
from gtr_core.models.vae import KLVAE
from gtr_core.pipeline import decode_images, generate_latents
from gtr_core.plans.method import Method
from gtr_core.plans.presets import preset

from . import data, figures, runs
from .judge import JudgePlan
from .models import POSTERIOR, REVISED, VAE_SPEC
from .train_mar import MARPlan
from .train_vae import VAEPlan, posterior_width, psnr

GRID_SEED = 7
SHOWN, COLUMNS, ROWS = ("origin", "gtr-paper"), 6, 8


@dataclass(frozen=True)
class VAEFigures:
    psnr: float
    width: float


@torch.no_grad()
def measure_vae(vae: KLVAE, count: int = 100) -> VAEFigures:
    """Reconstruction and posterior width on fresh images."""
    images, _ = data.batch(count, runs.step_generator(6, 0))
    moments = [vae.moments(part) for part in images.split(4)]
    out = torch.cat([vae.decode(mean) for mean, _ in moments])
    return VAEFigures(psnr(out, images), posterior_width(*(torch.cat(column) for column in zip(*moments))))


def draw_samples(model: MAR, vae: KLVAE, method: Method, labels: Tensor, seed: int) -> Tensor:
    """Images (n, 3, H, W) in [-1, 1]; image k has the seed ``seed + k``."""
    latents = generate_latents(model, method, labels, seed)
    return torch.from_numpy(decode_images(vae, latents)).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss_curve(folder: Path, target: Path) -> None:
    rows = runs.read_log(folder / "mar.jsonl")
    series = {
        name: [(row["images"] / 1000, max(row[key], 1e-6)) for row in rows]
        for name, key in (("eps error", "eps"), ("variational", "vb"))
    }
    write_chart(target, figures.curve(series, x_label="1000 images"))


def sample_grid(model: MAR, vae: KLVAE, target: Path) -> None:
    """48 images by ``origin`` on the left, 48 by ``gtr-paper`` on the right, of the same classes and seeds, revised as
    the demo's templates do."""
    labels = torch.arange(COLUMNS * ROWS) % len(data.CLASS_NAMES)
    methods = [Method(preset(name), revise=REVISED) for name in SHOWN]
    halves = [figures.grid(draw_samples(model, vae, method, labels, GRID_SEED), COLUMNS) for method in methods]
    width, gap = halves[0].width, data.SIZE // 4
    sheet = Image.new("RGB", (2 * width + gap, halves[0].height), "white")
    for index, half in enumerate(halves):
        sheet.paste(half, (index * (width + gap), 0))
    runs.replace_file(target, lambda part: sheet.save(part, "JPEG", quality=92))


def write_card(docs: Path, folder: Path) -> None:
    """Images and ``MODEL_CARD.md`` in ``docs``, of the shipped files and the logs in ``folder``."""
    model, vae = load_model(DEMO_MAR), load_vae(DEMO_VAE)
    loss_curve(folder, docs / "loss.png")
    sample_grid(model, vae, docs / "samples.jpg")
    text = card_text(model, load_classifier(DEMO_JUDGE), folder, measure_vae(vae))
    runs.replace_file(docs / "MODEL_CARD.md", lambda part: part.write_text(text))


def card_text(model: MAR, judge: Classifier, folder: Path, figures: VAEFigures) -> str:
    plan, spec = MARPlan(), model.spec
    calibration = json.loads((folder / "calibration.json").read_text())
    mixtures = ", ".join(f"{share:.1%} from {float(low):.0%} on" for low, share in calibration["mixtures"].items())
    accuracy = ", ".join(f"{name} {share:.1%}" for name, share in judge.spec.accuracy.items())
    return f"""# The demo model

A class-conditional MAR with its VAE, small enough for a repository and trained from scratch. With it every
node and command can be tried offline, the tests run it, and decoding methods are compared on it as far as such a model
allows ([docs/quality.md](../docs/quality.md)).

![Samples of all classes, 48 by the original schedule on the left and 48 by gtr-paper on the right](samples.jpg)

Like the demo's templates, these samples are [revised](../docs/how_it_works.md#revision). The first {REVISED:.0%} of
their tokens were drawn again when all others were known.

The classes are {", ".join(data.CLASS_NAMES)}.

## Data
The images have {data.SIZE} × {data.SIZE} pixels and are drawn by `demo/data.py`. Each shows one of
{len(data.SPRITE_NAMES)} sprites of Microsoft's Fluent Emoji in their 3D style (MIT licence,
[sprites/LICENSE](sprites/LICENSE)) with a soft shadow, before a gradient of random hue. A class has {data.PER_CLASS}
sprites, and nothing tells the model which one to draw. Its size ({len(data.SIDES)}), its place ({data.ACROSS} ×
{data.DOWN}), whether it is mirrored, its brightness and the colours of the background are random as well.
So few sprites are learned by heart. This is a world that a small model can learn and not a stand-in for photographs.
It shares one failure with them. Tokens that are decoded together before enough is known may belong to two images, and
the result is half a fox and half a panda. *Coherence* measures that.

## Model
{files_table(model)}

The MAR has {spec.grid[0]} × {spec.grid[1]} tokens of {spec.head.channels} values ({spec.latent.patch} ×
{spec.latent.patch} latents of {spec.latent.channels} channels), width {spec.dim}, {spec.encoder_depth} +
{spec.decoder_depth} blocks, {spec.heads} heads, {spec.buffer} buffer tokens, and a head of {spec.head.width} ×
{spec.head.depth}. Its noise process is MAR's with betas capped at {spec.diffusion.beta_cap} instead of 0.999, because
MAR's first reverse step multiplies the head's error by more than 300, which a head of this size cannot afford.
The VAE has {VAE_SPEC.groups} norm groups, and the node that loads it gives ComfyUI the same function with the 32 groups
that it knows. The classifier's accuracy on {JudgePlan().held_out} held-out images is {accuracy}.

Coherence is the share of images that show one sprite. The classifier's sprite head was trained on mixtures of two
sprites with the shares of the visible area as targets, and an image counts as one sprite when the head gives a sprite
a probability of {calibration["least"]} or more. Of new images {calibration["real"]:.1%} pass, and
{calibration["decoded"]:.1%} once the VAE has decoded them. Of mixtures of two sprites of a class (mixed as latents and
decoded) {mixtures} pass, by the smaller sprite's share of the area.

## Training
{training_table(folder)}

The VAE was trained on one CPU core and the MAR on one H200, in bf16 in the VAE, the transformer and the blocks of the
head and in fp32 elsewhere. The training differs from MAR's to suit a small model and little time.
- {plan.low_masks:.0%} of the mask ratios are uniform in [{plan.least:g}, 0.7] instead of MAR's truncated normal, and
  {plan.all_masked:.0%} of them are 1.
- {plan.high_noise:.0%} of the timesteps are drawn from the last tenth alone.
- Known tokens get noise of a standard deviation of 0 to {plan.known_noise:g}, because a sampler's known tokens have
  errors.
- In half of the VAE's images up to {VAEPlan().mixed:.0%} of the tokens come from another image, as latents and as
  pixels. Otherwise its decoder smooths neighbours that contradict each other and hides a sampler's faults.
- Tokens have {POSTERIOR:g} of the posterior's deviation instead of all of it. The VAE's decoder spends its last
  {VAEPlan().settle} steps on latents with small errors (a deviation of up to {VAEPlan().errors:g} of a channel's),
  with the encoder frozen. Both leave smooth backgrounds less mottled.
- Muon replaces AdamW for the matrices of the blocks and for the VAE's hidden convolutions.

As in MAR's training, the decoder sees every masked position. The stage scope of GtR was never trained.

The MAR's rate fell once before the end, from step 2730 to 3900, because the run was longer than first planned. A new
run follows the plan.

Sprites stay upright and their places are whole tokens, so that every edge of a sprite falls on the tokens in few ways.
A small model learns this up to misplaced tokens among the first of an image, of which a revision leaves few
([where they come from](../docs/quality.md#where-misplaced-tokens-come-from)).
Tilted sprites were tried for 100,000 images only.

![Training loss over the number of images, eps error and variational term](loss.png)

On new images the VAE reaches {figures.psnr:.1f} dB, with a posterior width of {figures.width:.2f} of the latents'
deviation.

## Train it yourself
`python -m demo.train all` from the repository's root trains and exports everything, on a CUDA device where there is
one. It resumes where it was stopped, with the same numbers on the same device. On a processor the images of this run
take days, and `--steps` ends a run earlier. `--from-export` starts from the shipped weights.
"""


def files_table(model: MAR) -> str:
    count = sum(p.numel() for p in model.parameters()) / 1e6
    rows = (
        (DEMO_VAE, f"KL autoencoder, 1/{VAE_SPEC.stride} size, {VAE_SPEC.embed_channels} channels, float16"),
        (DEMO_MAR, f"{count:.1f} M parameters, EMA weights, transformer float16, head float32"),
        (DEMO_JUDGE, "the classifier whose features measure quality"),
        (DEMO_REFERENCE, f"its features of {JudgePlan().reference} real images"),
    )
    lines = [f"| `{path.name}` | {path.stat().st_size / 1e6:.1f} | {what} |" for path, what in rows]
    return "\n".join(["| file | MB | what |", "|---|---|---|", *lines])


def training_table(folder: Path) -> str:
    vae, mar = (runs.read_log(folder / name)[-1] for name in ("vae.jsonl", "mar.jsonl"))
    vae_plan, plan = VAEPlan(), MARPlan()
    crops = ", ".join(f"{steps * batch} of {side} px" for steps, side, batch in vae_plan.phases)
    batches = ", ".join(str(batch) for _, _, batch in vae_plan.phases)
    rate = f"{plan.rate:g} (Muon {plan.muon_rate:g}), constant, linear decay over {plan.decay} steps"
    return f"""| | VAE | MAR |
|---|---|---|
| steps | {vae["step"]} | {mar["step"]} |
| images | {crops} | {mar["images"]} (from a pool of {plan.pool}) |
| minutes ↓ | {vae["seconds"] / 60:.0f} (one CPU core) | {mar["seconds"] / 60:.0f} (one H200) |
| batch | {batches} | {plan.batch} |
| learning rate | {vae_plan.rate:g} (Muon {vae_plan.muon_rate:g}), cosine | {rate} |
| last losses ↓ | {vae["loss"]:.3f} | eps error {mar["eps"]:.3f}, variational {mar["vb"]:.4f} |"""
