"""The model card: pictures and measured figures of the shipped files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
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

from . import data, pictures, runs
from .judge import JudgePlan
from .models import VAE_SPEC
from .train_mar import MARPlan
from .train_vae import VAEPlan, posterior_width, psnr

GRID_SEED = 7
SHOWN = ("origin", "gtr-full")


@dataclass(frozen=True)
class VAEFigures:
    psnr: float
    width: float


@torch.no_grad()
def measure_vae(vae: KLVAE, count: int = 100) -> VAEFigures:
    """Reconstruction and posterior width on fresh pictures."""
    images, _ = data.batch(count, runs.step_generator(6, 0))
    moments = [vae.moments(part) for part in images.split(4)]
    out = torch.cat([vae.decode(mean) for mean, _ in moments])
    return VAEFigures(psnr(out, images), posterior_width(*(torch.cat(column) for column in zip(*moments))))


def draw_samples(model: MAR, vae: KLVAE, name: str, labels: Tensor, seed: int) -> Tensor:
    """Pictures (n, 3, H, W) in [-1, 1] by preset ``name``; picture k has the seed ``seed + k``."""
    latents = generate_latents(model, Method(preset(name)), labels, seed)
    return torch.from_numpy(decode_images(vae, latents)).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss_curve(folder: Path, target: Path) -> None:
    rows = runs.read_log(folder / "mar.jsonl")
    series = {
        name: [(row["images"] / 1000, max(row[key], 1e-6)) for row in rows]
        for name, key in (("eps error", "eps"), ("variational", "vb"))
    }
    write_chart(target, pictures.curve(series, x_label="1000 images"))


def sample_grid(model: MAR, vae: KLVAE, target: Path) -> None:
    """One column per class; two rows by ``origin``, two by ``gtr-full``."""
    labels = torch.arange(20) % len(data.CLASS_NAMES)
    images = torch.cat([draw_samples(model, vae, name, labels, GRID_SEED) for name in SHOWN])
    sheet = pictures.grid(images, len(data.CLASS_NAMES)).quantize(256)
    runs.replace_file(target, lambda part: sheet.save(part, "PNG", optimize=True))


def write_card(docs: Path, folder: Path) -> None:
    """Pictures and ``MODEL_CARD.md`` in ``docs``, of the shipped files and the logs in ``folder``."""
    model, vae = load_model(DEMO_MAR), load_vae(DEMO_VAE)
    loss_curve(folder, docs / "loss.png")
    sample_grid(model, vae, docs / "samples.png")
    text = card_text(model, load_classifier(DEMO_JUDGE), folder, measure_vae(vae))
    runs.replace_file(docs / "MODEL_CARD.md", lambda part: part.write_text(text))


def card_text(model: MAR, judge: Classifier, folder: Path, figures: VAEFigures) -> str:
    plan, spec = MARPlan(), model.spec
    accuracy = ", ".join(f"{name} {share:.1%}" for name, share in judge.spec.accuracy.items())
    return f"""# The demo model

A class-conditional MAR with its VAE, small enough for a repository and trained from nothing on a CPU. It is there to
try every node and command offline, for tests, and to judge decoding methods as far as such a model can:
[docs/quality.md](../docs/quality.md) says how far that is.

![samples: two rows by the origin's schedule, two by gtr-full](samples.png)

Classes: {", ".join(data.CLASS_NAMES)}.

## Data
Synthetic pictures of {data.SIZE} x {data.SIZE} pixels, drawn by `demo/data.py` (no photographs, nobody's work): an
arrangement of objects per class, with a texture of the class. Each picture draws, once for all of its objects:
{", ".join(f"{name} ({count})" for name, count in data.FACTORS.items())}; layouts of two colours also a second hue (2).
Far-apart tokens are right only if they agree on these, and they leave fewer than 8,000 different arrangements: a world
that a small model can know, not a stand-in for photographs. The background is woven: every row and every column of
tokens has a thread or none. Threads are there to make the number of steps matter: all else of a picture is settled by
the first few tokens, and tokens drawn at once later on could not contradict each other.
The files and the pictures that they make are under the repository's licence.

## Model
{files_table(model)}

The MAR: {spec.grid[0]} x {spec.grid[1]} tokens of {spec.head.channels} values ({spec.latent.patch} x
{spec.latent.patch} latents of {spec.latent.channels} channels), width {spec.dim}, {spec.encoder_depth} +
{spec.decoder_depth} blocks, {spec.heads} heads, {spec.buffer} buffer tokens; head {spec.head.width} x
{spec.head.depth}. Its noise process is MAR's with betas capped at {spec.diffusion.beta_cap} instead of 0.999: MAR's
first reverse step multiplies the head's error by more than 300, which a head of this size cannot afford.
The VAE has {VAE_SPEC.groups} norm groups; the node that loads it gives ComfyUI the same function with the 32 groups
that it knows. The judge's held-out accuracy (n = {JudgePlan().held_out}): {accuracy}. By `seams`
it tells pictures of which some tokens (up to {JudgePlan().torn:.0%}) have threads of their own; it learned that by
pointing at the borders where threads break off.

## Training
{training_table(folder)}

Hardware: one or two CPU cores (no GPU, no bfloat16), float32, with other work on the same machine.
Training differs from MAR's, each time for the sake of a small model and little time:
- {plan.low_masks:.0%} of the mask ratios are uniform in [0, 0.7] instead of MAR's truncated normal, and
  {plan.all_masked:.0%} of them are 1;
- {plan.high_noise:.0%} of the timesteps are drawn from the last tenth alone;
- known tokens get noise of a standard deviation of 0 to {plan.known_noise:g}: those that a sampler knows have errors;
- in half of the VAE's pictures up to {VAEPlan().mixed:.0%} of the tokens are another picture's, as latents and as
  pixels: else its decoder smooths neighbours that contradict each other, and a sampler's faults are not seen;
- Muon instead of AdamW for the matrices of the blocks, and for the VAE's hidden convolutions.

As in MAR's training the decoder sees every masked position; the stage scope of GtR was never trained.

One thing it did not learn, whatever the schedule: in four tiles each tile has one of two hues, and it mixes both in
every tile. The judge's figures hardly show that; look at the samples.

The shipped weights come from a run whose plan changed on the way, each time after a decay of the rate: at step 3000,
where a texture's phase became half a token (half a period until then: not learned for textures of 16 pixels, of which
a token shows just half a period); at step 4200, where soft clouds came on the backgrounds and noise on known tokens; at
step 7400, where patches of light and dark replaced the clouds, the second hue of four tiles got tied to the first, and
from step 7750 on mask ratios below 0.7 went from 30% to {plan.low_masks:.0%}; and at step 9250, where threads replaced
the patches. The VAE followed: clouds from its step 1950 on, patches from 2400 on, mixed tokens from 3250 on, threads
from 4250 on. Steps 1200 to 1500 and 9900 to 10700 had a falling rate, as at the end of a shorter run. A fresh run has
one plan and one kind of pictures.

![loss](loss.png)

VAE on fresh pictures: {figures.psnr:.1f} dB, posterior width {figures.width:.2f} of the latents' deviation.

## Again
`python -m demo.train all` from the repository's root trains and exports everything; it resumes where it was stopped,
with the same numbers. `--device cuda` runs the same steps with bfloat16 in the transformer (not tried yet).
"""


def files_table(model: MAR) -> str:
    count = sum(p.numel() for p in model.parameters()) / 1e6
    rows = (
        (DEMO_VAE, f"KL autoencoder, 1/{VAE_SPEC.stride} size, {VAE_SPEC.embed_channels} channels, float16"),
        (DEMO_MAR, f"{count:.1f} M parameters, EMA weights, transformer float16, head float32"),
        (DEMO_JUDGE, "classifier whose features measure quality"),
        (DEMO_REFERENCE, f"what it sees in {JudgePlan().reference} real pictures"),
    )
    lines = [f"| `{path.name}` | {path.stat().st_size / 1e6:.1f} | {what} |" for path, what in rows]
    return "\n".join(["| file | MB | what |", "|---|---|---|", *lines])


def training_table(folder: Path) -> str:
    vae, mar = (runs.read_log(folder / name)[-1] for name in ("vae.jsonl", "mar.jsonl"))
    vae_plan, plan = VAEPlan(), MARPlan()
    crops = ", ".join(f"{steps * batch} of {side} px" for steps, side, batch in vae_plan.phases)
    rate = f"{plan.rate:g} (Muon {plan.muon_rate:g}), constant, linear decay over {plan.decay} steps"
    pool = len(runs.load(folder / "pool.pt")["labels"])
    return f"""| | VAE | MAR |
|---|---|---|
| steps | {vae["step"]} | {mar["step"]} |
| pictures | {crops} | {mar["images"]} (from a pool of {pool}) |
| minutes on one or two CPU cores, disturbed | {vae["seconds"] / 60:.0f} | {mar["seconds"] / 60:.0f} |
| learning rate | {vae_plan.rate:g} (Muon {vae_plan.muon_rate:g}), cosine | {rate} |
| last losses | {vae["loss"]:.3f} | eps error {mar["eps"]:.3f}, variational {mar["vb"]:.4f} |"""
