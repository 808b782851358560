"""Train the demo model from nothing: ``python -m demo.train all`` from the repository's root.

``vae``, ``mar`` and ``judge`` train one part, ``export`` writes the shipped files from the checkpoints, and ``card``
their model card. A run that was stopped goes on where it was; with ``--steps`` it ends at another step than planned.
``--from-export`` starts a run without checkpoints from the shipped VAE and MAR instead of from nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from gtr_core.checkpoints import load_model, load_vae
from gtr_core.demo import DEMO_JUDGE, DEMO_MAR, DEMO_REFERENCE, DEMO_VAE
from gtr_core.evaluation.classifier import save_classifier
from gtr_core.models.latents import LatentSpec
from gtr_core.models.vae import KLVAE

from . import data, runs
from .card import write_card
from .export import save_mar, save_vae
from .judge import calibrated, train_judge, write_reference
from .models import VAE_SPEC, demo_mar_spec
from .pool import Pool, load_pool, measure_latent
from .train_mar import MARPlan, train_mar
from .train_vae import VAEPlan, train_vae

FOLDER = Path(__file__).parent
FITTED = 128


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("vae", "mar", "judge", "export", "card", "all"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=Path, default=FOLDER / "runs", help="checkpoints and logs; a run is resumed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--steps", type=int, default=MARPlan.steps, help="last step of the MAR's training")
    parser.add_argument(
        "--from-export",
        type=Path,
        nargs="?",
        const=DEMO_MAR.parent,
        metavar="FOLDER",
        help="start from the weights of this folder (default: the shipped ones)",
    )
    return parser.parse_args()


def start_from_export(folder: Path, exported: Path) -> None:
    """Checkpoints made of exported weights, if the run has none: a VAE that is ready, a MAR at its first step."""
    model = load_model(exported / DEMO_MAR.name)
    weights = {name: value.float() for name, value in model.named_parameters()}
    if not (folder / "vae.pt").exists():
        runs.save(
            folder / "vae.pt",
            {
                "model": load_vae(exported / DEMO_VAE.name).state_dict(),
                "optimizers": [],
                "step": VAEPlan().steps,
                "kl": 0.0,
                "seconds": 0.0,
            },
        )
        write_latent_spec(folder / "latent.json", model.spec.latent)
    if not (folder / "mar.pt").exists():
        runs.save(
            folder / "mar.pt",
            {"model": weights, "ema": dict(weights), "optimizers": [], "step": 0, "images": 0, "seconds": 0.0},
        )


def trained_vae(folder: Path, device: torch.device) -> KLVAE:
    vae = KLVAE(VAE_SPEC)
    vae.load_state_dict(runs.load(folder / "vae.pt")["model"])
    return vae.to(device).eval().requires_grad_(False)


def latent_spec(path: Path, vae: KLVAE, pool: Pool) -> LatentSpec:
    """The measured token scale, stored once: a resumed run must not change it."""
    if not path.exists():
        images, _ = data.batch(FITTED, runs.step_generator(5, 0, pool.labels.device))
        spec = measure_latent(
            pool, images, torch.cat([vae.moments(part)[0] for part in images.split(4)]), VAE_SPEC.stride
        )
        write_latent_spec(path, spec)
    fields = json.loads(path.read_text())
    return LatentSpec(**{**fields, "rgb": tuple(tuple(row) for row in fields["rgb"])})


def write_latent_spec(path: Path, spec: LatentSpec) -> None:
    runs.replace_file(path, lambda temporary: temporary.write_text(json.dumps(asdict(spec))))


def run_mar(folder: Path, device: torch.device, steps: int) -> None:
    vae = trained_vae(folder, device)
    pool = load_pool(folder / "pool.pt", vae, MARPlan.pool, device)
    spec = demo_mar_spec(latent_spec(folder / "latent.json", vae, pool))
    train_mar(folder, spec, pool, device, replace(MARPlan(), steps=steps))


def run_export(folder: Path, device: torch.device) -> None:
    vae = trained_vae(folder, device)
    pool = load_pool(folder / "pool.pt", vae, MARPlan.pool, device)
    judge, calibration = calibrated(train_judge(folder, device), vae)
    runs.replace_file(folder / "calibration.json", lambda part: part.write_text(json.dumps(asdict(calibration))))
    save_vae(DEMO_VAE, vae)
    spec = demo_mar_spec(latent_spec(folder / "latent.json", vae, pool))
    save_mar(DEMO_MAR, runs.load(folder / "mar.pt")["ema"], spec)
    save_classifier(DEMO_JUDGE, judge)
    write_reference(DEMO_REFERENCE, judge)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.from_export is not None:
        start_from_export(options.runs, options.from_export)
    if options.what in ("vae", "all"):
        train_vae(options.runs, device)
    if options.what in ("mar", "all"):
        run_mar(options.runs, device, options.steps)
    if options.what in ("judge", "all"):
        train_judge(options.runs, device)
    if options.what in ("export", "all"):
        run_export(options.runs, device)
    if options.what in ("card", "all"):
        write_card(FOLDER, options.runs)


if __name__ == "__main__":
    main()
