"""The model card: pictures and measured figures of the shipped files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gtr_core.engine import Guidance
from gtr_core.mar import MAR
from gtr_core.pipeline import build_model, build_vae, decode_pictures, generate_latents
from gtr_core.schedule import preset
from gtr_core.vae import KLVAE

from . import data, pictures, runs
from .judge import Judge, accuracy, frechet
from .train_mar import MARPlan
from .train_vae import VAEPlan, posterior_width, psnr

PRESETS = ("origin", "step-16", "gtr-full", "gtr-paper")
FLOOR = "fresh pictures"
GUIDANCE = Guidance(2.0, "linear")
GRID_SEED, JUDGE_SEED, SLICE = 7, 1000, 20


@dataclass(frozen=True)
class VAEFigures:
    psnr: float
    width: float


@torch.no_grad()
def measure_vae(vae: KLVAE, count: int = 100) -> VAEFigures:
    """Reconstruction and posterior width on fresh pictures."""
    images, _ = data.batch(count, runs.step_generator(6, 0))
    moments = [vae.moments(part) for part in images.split(10)]
    out = torch.cat([vae.decode(mean) for mean, _ in moments])
    return VAEFigures(psnr(out, images), posterior_width(*(torch.cat(column) for column in zip(*moments))))


def draw_samples(model: MAR, vae: KLVAE, name: str, labels: Tensor, seed: int) -> Tensor:
    """Pictures (n, 3, H, W) in [-1, 1] by preset ``name``; picture k has the seed ``seed + k``."""
    parts = []
    for start in range(0, len(labels), SLICE):
        latents = generate_latents(model, preset(name), labels[start:start + SLICE].tolist(), seed + start,
                                   guidance=GUIDANCE)
        parts.append(torch.from_numpy(decode_pictures(vae, latents)).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return torch.cat(parts)


def judge_presets(model: MAR, vae: KLVAE, judge: Judge, count: int) -> dict[str, tuple[float, float]]:
    """Per preset, and for as many real pictures: accuracy and Frechet distance of ``count`` samples."""
    labels = torch.arange(count) % len(data.CLASS_NAMES)
    real = data.pictures(torch.arange(1000) % len(data.CLASS_NAMES), runs.step_generator(8, 0))
    fresh = data.pictures(labels, runs.step_generator(8, 1))
    figures = {FLOOR: (accuracy(judge, fresh, labels), frechet(judge, fresh, real))}
    for name in PRESETS:
        images = draw_samples(model, vae, name, labels, JUDGE_SEED)
        figures[name] = accuracy(judge, images, labels), frechet(judge, images, real)
    return figures


def loss_curve(folder: Path, target: Path) -> None:
    rows = runs.read_log(folder / "mar.jsonl")
    series = {name: [(row["images"] / 1000, max(row[key], 1e-6)) for row in rows]
              for name, key in (("eps error", "eps"), ("variational", "vb"))}
    runs.replace_file(target, lambda part: pictures.curve(series, x_label="1000 images").save(part, "PNG"))


def sample_grid(model: MAR, vae: KLVAE, target: Path) -> None:
    """One column per class; two rows by ``origin``, two by ``gtr-full``."""
    labels = torch.arange(20) % len(data.CLASS_NAMES)
    images = torch.cat([draw_samples(model, vae, name, labels, GRID_SEED) for name in ("origin", "gtr-full")])
    sheet = pictures.grid(images, len(data.CLASS_NAMES)).quantize(256)
    runs.replace_file(target, lambda part: sheet.save(part, "PNG", optimize=True))


def write_card(docs: Path, folder: Path, models: Path, judge: Judge, judged: int) -> None:
    """Pictures and ``MODEL_CARD.md`` in ``docs``; ``judged`` samples per preset are judged (0 = none)."""
    model, vae = build_model(models / "demo_mar.safetensors"), build_vae(models / "demo_vae.safetensors")
    loss_curve(folder, docs / "loss.png")
    sample_grid(model, vae, docs / "samples.png")
    table = judge_presets(model, vae, judge, judged) if judged else {}
    text = card_text(model, folder, models, measure_vae(vae), table, judged)
    runs.replace_file(docs / "MODEL_CARD.md", lambda part: part.write_text(text))


def card_text(model: MAR, folder: Path, models: Path, figures: VAEFigures, table: dict[str, tuple[float, float]],
              judged: int) -> str:
    plan, spec = MARPlan(), model.spec
    return f"""# The demo model

A class-conditional MAR with its VAE, small enough for a repository and trained from nothing on two CPU cores. It is
there to try every node and command offline, and for tests. It is no measure of how good a method is: only the
published models are.

![samples: two rows by the origin's schedule, two by gtr-full](samples.png)

Classes: {", ".join(data.CLASS_NAMES)}.

## Data
Synthetic pictures of 64 x 64 pixels, drawn by `demo/data.py` (no photographs, nobody's work): a layout of objects
(up to 3 sizes, 8 hues, 4 backgrounds) with a texture of period 4, 8 or 16 pixels. Mirrored parts share their hue.
The files and the pictures that they make are under the repository's licence.

## Model
{files_table(model, models)}

The MAR: {spec.grid[0]} x {spec.grid[1]} tokens of {spec.head.channels} values, width {spec.dim}, \
{spec.encoder_depth} + {spec.decoder_depth} blocks, {spec.heads} heads, {spec.buffer} buffer tokens;
head {spec.head.width} x {spec.head.depth}. Its noise process is MAR's with betas capped at {spec.diffusion.beta_cap} \
instead of 0.999: MAR's first reverse step multiplies
the head's error by more than 300, which a head of this size cannot afford.
The VAE is trained with 32 channels in 8 norm groups and shipped in the shape that LDM files have (128 channels in 32
groups, the others zero): the same function, and any loader of such files can read it.

## Training
{training_table(folder)}

Hardware: one of 2 CPU cores (no GPU, no bfloat16), float32, with other work on the same machine.
Training differs from MAR's, each time for the sake of a small model and little time:
- mask ratios below 0.7 are seen too, and the empty picture more often;
- {plan.high_noise[0]:.0%} of the timesteps (from step {plan.muon_from} on {plan.high_noise[1]:.0%})
  are drawn from the last tenth alone;
- in {1 - plan.full_context:.0%} of the steps the decoder sees only the masked tokens that get a loss;
- from step {plan.muon_from} on the matrices of the blocks are trained with Muon instead of AdamW;
- until step {plan.centred_from} the objects were shifted by up to one token, from then on they are centred: the shipped
  model draws centred pictures. The decay of the average was 0.999 until step 2250, then {plan.ema:g}.

![loss](loss.png)

(The steps in the curve are the changes at steps {plan.muon_from} and {plan.centred_from}: other timesteps, \
other pictures.)

## Measured
VAE on fresh pictures: {figures.psnr:.1f} dB, posterior width {figures.width:.2f} of the latents' deviation.
Guidance {GUIDANCE.scale:g}, {GUIDANCE.schedule}. {judged_table(table, judged)}

## Again
`python -m demo.train all --judged {judged or 60}` from the repository's root trains, exports and judges;
it resumes where it was stopped, with the same numbers. `--device cuda` runs the same steps with bfloat16 in the
transformer (not tried yet).
"""


def files_table(model: MAR, models: Path) -> str:
    vae, mar = ((models / name).stat().st_size / 1e6 for name in ("demo_vae.safetensors", "demo_mar.safetensors"))
    count = sum(p.numel() for p in model.parameters()) / 1e6
    return f"""| file | MB | what |
|---|---|---|
| `demo_vae.safetensors` | {vae:.1f} | KL autoencoder, 1/4 size, 8 channels, float16 |
| `demo_mar.safetensors` | {mar:.1f} | {count:.1f} M parameters, EMA weights, transformer float16, head float32 |"""


def training_table(folder: Path) -> str:
    vae, mar = (runs.read_log(folder / name)[-1] for name in ("vae.jsonl", "mar.jsonl"))
    vae_plan, plan = VAEPlan(), MARPlan()
    quarters, whole = vae_plan.crop_steps * vae_plan.crop_batch, (vae["step"] - vae_plan.crop_steps) * vae_plan.batch
    rate = f"{plan.rate:g} (Muon {plan.muon_rate:g}), constant, linear decay over {plan.decay} steps"
    pools = " and ".join(str(len(runs.load(folder / name)["labels"])) for name in ("pool.pt", "pool_centred.pt"))
    return f"""| | VAE | MAR |
|---|---|---|
| steps | {vae["step"]} | {mar["step"]} |
| pictures | {quarters} quarters, {whole} whole | {mar["images"]} (from pools of {pools}) |
| minutes on one CPU core, disturbed | {vae["seconds"] / 60:.0f} | {mar["seconds"] / 60:.0f} |
| learning rate | {vae_plan.rate:g}, cosine | {rate} |
| last losses | {vae["loss"]:.3f} | eps error {mar["eps"]:.3f}, variational {mar["vb"]:.4f} |"""


def judged_table(table: dict[str, tuple[float, float]], judged: int) -> str:
    if not table:
        return "No samples were judged in this export."
    rows = "\n".join(f"| {name} | {share:.1%} | {distance:.1f} |" for name, (share, distance) in table.items())
    return f"""A small classifier judged {judged} samples per schedule:

| pictures by | samples classified as their class | Frechet distance of its features |
|---|---|---|
{rows}

At {judged} samples, a share of 100 % only means that at least {0.05 ** (1 / judged):.0%} are right (19 times in 20),
and the distance is a sanity check: it is biased at this number and ranks no schedules. The classifier is lenient: rough
outlines, stray tokens and mixed hues (`four tiles` is the weakest class) pass it."""
