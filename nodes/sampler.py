"""The sampler node."""

from __future__ import annotations

import comfy.model_management as mm
import torch
from torch import Tensor

from ..gtr_core.engine import GUIDANCE_SCHEDULES, Guidance
from ..gtr_core.fts import FTS
from ..gtr_core.latent import latent_to_tokens, tokens_to_latent
from ..gtr_core.lazymar import LazyMAR
from ..gtr_core.memory import activation_bytes, check_run
from ..gtr_core.noise import SeededNoise, image_seeds
from ..gtr_core.plan import Plan, make_plan
from ..gtr_core.report import run_report
from ..gtr_core.sampler import sample
from ..gtr_core.spec import LightGenSpec, ModelSpec
from . import host
from ._api import GtrCache, GtrFts, GtrSchedule, MarModel, io, ui
from .conditioning import labels_for_batch
from .latent import batch_images, latent_samples, token_grid, unknown_tokens
from .text import texts_for_batch


class Sampler(io.ComfyNode):
    """Runs a schedule: MAR_MODEL, CONDITIONING, GTR_SCHEDULE, LATENT -> LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_Sampler",
            display_name="GtR Sampler",
            category="GtR/sampling",
            description="Decodes the tokens of a masked autoregressive model by a schedule. Image k of a batch is the "
            "picture of seed + k, whatever the batch size. A latent with a noise mask keeps its other tokens.",
            search_aliases=["gtr", "mar sampler", "ksampler"],
            inputs=[
                MarModel.Input("model"),
                io.Conditioning.Input("positive"),
                GtrSchedule.Input("schedule"),
                io.Latent.Input("latent_image"),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance; 1 = off and twice as fast.",
                ),
                io.Combo.Input(
                    "cfg_schedule",
                    options=list(GUIDANCE_SCHEDULES),
                    default="linear",
                    tooltip="linear: grows with the decoded part, more variety; constant: stronger.",
                ),
                io.Float.Input("temperature", default=1.0, min=0.0, max=2.0, step=0.01, round=0.001),
                GtrFts.Input("fts", optional=True),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance leads away from. Left open: what the model learned for no "
                    "condition, as upstream.",
                ),
                GtrCache.Input("cache", optional=True, tooltip="LazyMAR Cache: MAR models, with guidance."),
            ],
            outputs=[io.Latent.Output(display_name="latent"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, model, positive, schedule, latent_image, seed: int, cfg: float, cfg_schedule: str,
                temperature: float, fts: FTS | None = None, negative=None,
                cache: LazyMAR | None = None) -> io.NodeOutput:
        spec = model.spec
        samples = latent_samples(latent_image, model.patcher, spec)
        batch, grid = samples.shape[0], token_grid(samples, spec)
        images = batch_images(latent_image, batch)
        condition = condition_for_batch(positive, images, spec, "positive")
        against = None if negative is None else condition_for_batch(negative, images, spec, "negative")
        seeds, guidance = image_seeds(seed, images), Guidance(cfg, cfg_schedule)
        unknown = unknown_tokens(latent_image, batch, grid)
        plans = [(rows, make_plan(schedule, grid, [seeds[k] for k in rows], unknown=unknown[rows[0]].numpy()))
                 for rows in same_masks(unknown)]

        compute = load_model(model, plans, guided=guidance.enabled, fts=fts)
        host.reset_peak(model.patcher)
        monitor = host.RunMonitor(model, grid, sum(len(plan.steps) for _, plan in plans))
        tokens = latent_to_tokens(samples, spec.latent).cpu()
        decoded, reports = torch.empty_like(tokens), list(model.notes)
        for rows, plan in plans:
            decoded[rows] = sample(
                model.patcher.model.diffusion_model, plan, condition[rows],
                SeededNoise(tuple(seeds[k] for k in rows), spec.head.channels), tokens=tokens[rows],
                negative=None if against is None else against[rows], guidance=guidance, temperature=temperature,
                fts=fts, cache=cache, device=model.patcher.load_device, dtype=compute, callback=monitor).cpu()
            reports.append(
                run_report(
                    plan,
                    spec,
                    guided=guidance.enabled,
                    fts=fts,
                    cache=cache,
                    unknown=unknown[rows[0]].numpy(),
                    seconds=monitor.take_seconds(),
                    peak_bytes=host.peak_bytes(model.patcher),
                )
            )
        report = "\n".join(reports)
        result = tokens_to_latent(decoded, grid, spec.latent)
        return io.NodeOutput(finished_latent(latent_image, samples, result, unknown), report,
                             ui=ui.PreviewText(report))


def condition_for_batch(conditioning, images: list[int], spec: ModelSpec, what: str) -> Tensor:
    """What the model's family conditions on, one row per image: labels (B,) or text states (B, T, D)."""
    read = texts_for_batch if isinstance(spec, LightGenSpec) else labels_for_batch
    return read(conditioning, images, spec, what)


def load_model(model: host.ModelHandle, plans: list[tuple[list[int], Plan]], *, guided: bool,
               fts: FTS | None) -> torch.dtype:
    """Have the host bring the model to its device with room for every plan; returns the compute dtype."""
    dtype = model.patcher.model.compute_dtype
    for _, plan in plans:
        check_run(plan, model.spec, guided=guided, itemsize=dtype.itemsize, device=model.patcher.load_device, fts=fts)
    memory = max(
        activation_bytes(plan, model.spec, guided=guided, fts=fts, itemsize=dtype.itemsize) for _, plan in plans
    )
    mm.load_models_gpu([model.patcher], memory_required=memory)
    return dtype


def same_masks(unknown: Tensor) -> list[list[int]]:
    """Images with equal masks together: a plan has one set of unknown tokens."""
    groups: dict[bytes, list[int]] = {}
    for index, mask in enumerate(unknown):
        groups.setdefault(mask.numpy().tobytes(), []).append(index)
    return list(groups.values())


def finished_latent(latent: dict, before: Tensor, after: Tensor, unknown: Tensor) -> dict:
    """The LATENT to pass on: known tokens exactly as they came, bookkeeping of empty latents dropped."""
    cells = unknown[:, None].repeat_interleave(after.shape[2] // unknown.shape[1], 2)
    cells = cells.repeat_interleave(after.shape[3] // unknown.shape[2], 3)
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    return kept | {"samples": host.to_wire(torch.where(cells, after, before.to(after)))}
