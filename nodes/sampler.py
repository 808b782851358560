"""The sampler node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import comfy.model_management as mm
import numpy as np
import torch
from torch import Tensor

from ..gtr_core.costs.report import run_report
from ..gtr_core.drawing.heatmap import StepCounts, planned_steps
from ..gtr_core.models import ModelSpec
from ..gtr_core.models.latents import latent_to_tokens, tokens_to_latent
from ..gtr_core.models.lightgen import LightGenSpec
from ..gtr_core.noise import SeededNoise, image_seeds
from ..gtr_core.plans.fts import FTS
from ..gtr_core.plans.method import GUIDANCE_SCHEDULES, Guidance
from ..gtr_core.plans.plan import Plan
from ..gtr_core.plans.regions import Region, whole_grid, window_regions
from ..gtr_core.plans.schedule import Schedule
from ..gtr_core.sampling.lazymar import LazyMAR
from ..gtr_core.sampling.memory import activation_bytes, check_run, images_that_fit
from ..gtr_core.sampling.sampler import sample
from . import host
from ._api import GtrCache, GtrFts, GtrSchedule, GtrSteps, MarModel, io, ui
from .conditioning import labels_for_batch
from .latent import WINDOWS, batch_images, latent_samples, token_grid, unknown_tokens
from .text import texts_for_batch

ACCELERATIONS = ("auto", "off")


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
                io.Combo.Input(
                    "acceleration",
                    options=list(ACCELERATIONS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="auto, while the whole model is on its device: CUDA graphs of the diffusion head, 16 bit "
                    "in most of its steps where the transformer has 16 bit, packed weights on a processor with "
                    "AVX-512. off: none of these. Pictures are the same up to rounding, which in 16 bit may show in "
                    "details.",
                ),
                io.Float.Input(
                    "cfg_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="The part of the tokens that is drawn without guidance first, at half the cost: the "
                    "linear schedule guides them little anyway. 0 = guidance from the first step on.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.String.Output(display_name="report"),
                GtrSteps.Output(display_name="steps", tooltip="Diffusion steps per token, for Diffusion Heat Map."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        schedule,
        latent_image,
        seed: int,
        cfg: float,
        cfg_schedule: str,
        temperature: float,
        fts: FTS | None = None,
        negative=None,
        cache: LazyMAR | None = None,
        acceleration: str = "auto",
        cfg_start: float = 0.0,
    ) -> io.NodeOutput:
        spec = model.spec
        samples = latent_samples(latent_image, model.patcher, spec)
        batch, grid = samples.shape[0], token_grid(samples, spec)
        images = batch_images(latent_image, batch)
        condition = condition_for_batch(positive, images, spec, "positive")
        against = None if negative is None else condition_for_batch(negative, images, spec, "negative")
        seeds, guidance = image_seeds(seed, images), Guidance(cfg, cfg_schedule, cfg_start)
        unknown = unknown_tokens(latent_image, batch, grid)
        groups = [
            (
                rows,
                plan_regions(
                    schedule, spec, [seeds[k] for k in rows], unknown[rows[0]].numpy(), latent_image.get(WINDOWS)
                ),
            )
            for rows in same_masks(unknown)
        ]
        accelerate = acceleration == "auto"
        device, cached = model.patcher.load_device, cache is not None
        settings = {
            "guided": guidance.enabled,
            "fts": fts,
            "device": device,
            "cached": cached,
            "graphs": accelerate and not cached and device.type == "cuda",
        }
        split = [in_parts(model, region.plan, **settings) for _, regions in groups for region in regions]
        load_model(model, sum(split, []), **settings)
        host.reset_peak(model.patcher)
        monitor = host.RunMonitor(model, grid, sum(len(part.steps) for parts in split for part in parts))
        draw = partial(
            sample,
            model.patcher.model.diffusion_model,
            guidance=guidance,
            temperature=temperature,
            fts=fts,
            cache=cache,
            accelerate=accelerate and host.stays_resident(model.patcher),
            device=device,
            dtype=model.patcher.model.compute_dtype,
            callback=monitor,
        )
        tokens = latent_to_tokens(samples, spec.latent).cpu().clone()
        steps, planned = np.zeros((2, batch, tokens.shape[1]), np.int64)
        reports, plans_left = list(model.notes), iter(split)
        for rows, regions in groups:
            for index, region in enumerate(regions):
                plans, seconds = next(plans_left), []
                for part, its_rows in parts_of(region, rows, plans):
                    area = np.ix_(its_rows, part.positions)
                    monitor.enter((*regions[:index], part, *regions[index + 1 :]), index, tokens[its_rows[0]])
                    tokens[area] = draw(
                        part.plan,
                        condition[its_rows],
                        SeededNoise(part.seeds, spec.head.channels),
                        tokens=tokens[area],
                        negative=None if against is None else against[its_rows],
                    ).cpu()
                    steps[area] += monitor.spent
                    planned[area] += planned_steps(part.plan)
                    seconds.append(monitor.take_seconds())
                reports += [f"window {index + 1} of {len(regions)}:"] if len(regions) > 1 else []
                reports.append(
                    run_report(
                        region.plan,
                        spec,
                        guided=guidance.enabled,
                        unguided=cfg_start,
                        fts=fts,
                        cache=cache,
                        unknown=region.unknown,
                        seconds=[sum(step) for step in zip(*seconds)],
                        peak_bytes=host.peak_bytes(model.patcher),
                    )
                )
                if len(plans) > 1:
                    reports.append(
                        f"the batch ran in {len(plans)} parts of at most {plans[0].batch} images to fit memory"
                    )
        report = "\n".join(reports)
        host.show_text(f"done: {monitor.done} AR steps")
        spent = StepCounts(*(values.reshape(batch, *grid) for values in (steps, np.maximum(steps - planned, 0))))
        result = tokens_to_latent(tokens, grid, spec.latent)
        return io.NodeOutput(
            finished_latent(latent_image, samples, result, unknown), report, spent, ui=ui.PreviewText(report)
        )


def plan_regions(
    schedule: Schedule, spec: ModelSpec, seeds: list[int], unknown: np.ndarray, windows: int | None
) -> tuple[Region, ...]:
    """The plans of a run: one, or for a grid that the model cannot draw at once one per window."""
    if windows is None or isinstance(spec, LightGenSpec) or unknown.shape == spec.grid:
        return whole_grid(schedule, seeds, unknown)
    return window_regions(schedule, spec.grid, seeds, unknown, windows)


def condition_for_batch(conditioning, images: list[int], spec: ModelSpec, what: str) -> Tensor:
    """What the model's family conditions on, one row per image: labels (B,) or text states (B, T, D)."""
    read = texts_for_batch if isinstance(spec, LightGenSpec) else labels_for_batch
    return read(conditioning, images, spec, what)


def in_parts(model: host.ModelHandle, plan: Plan, **settings) -> list[Plan]:
    """The plan in as few parts as fit the device beside the weights; an image does not depend on its part."""
    itemsize = model.patcher.model.compute_dtype.itemsize
    size = images_that_fit(host.activation_budget(model.patcher), plan, model.spec, itemsize=itemsize, **settings)
    return [plan.part(slice(start, start + size)) for start in range(0, plan.batch, size)]


def parts_of(region: Region, rows: list[int], plans: list[Plan]) -> Iterator[tuple[Region, list[int]]]:
    """The region once per part of its plan, with the rows of that part's images in the batch."""
    start = 0
    for plan in plans:
        images = slice(start, start + plan.batch)
        yield replace(region, plan=plan, seeds=tuple(region.seeds[images])), rows[images]
        start = images.stop


def load_model(model: host.ModelHandle, plans: list[Plan], **settings) -> None:
    """Have the host bring the model to its device with room for every plan."""
    itemsize = model.patcher.model.compute_dtype.itemsize
    for plan in plans:
        check_run(plan, model.spec, itemsize=itemsize, **settings)
    memory = max(activation_bytes(plan, model.spec, itemsize=itemsize, **settings) for plan in plans)
    mm.load_models_gpu([model.patcher], memory_required=memory)


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
