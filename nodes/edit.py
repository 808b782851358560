"""Nodes that prepare an image's latent for the sampler: what of it to draw anew, or more room around it."""

from __future__ import annotations

import torch

from ..gtr_core.errors import GtRError
from ..gtr_core.plans.regions import REDRAWS, redrawn_tokens, windows
from ..gtr_core.plans.schedule import Schedule
from ._api import GtrSchedule, MarModel, io
from ._models import ModelHandle
from .latent import MASK_BEFORE, EarlierMask, LatentBatch, digests_of_images, without_own_mask


class Redraw(io.ComfyNode):
    """LATENT of an image -> LATENT whose mask leaves some of the schedule's stages to be drawn anew."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_Redraw",
            display_name="Redraw Stages (MAR)",
            category="GtR/latent",
            description="Keeps the tokens that a schedule decodes first, an image's structure, and has the sampler "
            "resample the others: variations of an image, or only its finish.",
            search_aliases=["variations", "denoise", "image to image", "img2img", "i2i", "inpaint", "gtr"],
            inputs=[
                MarModel.Input("model", tooltip="The model that draws: its tokens are what is kept."),
                GtrSchedule.Input("schedule", tooltip="The sampler's schedule: its stages say what structure is."),
                io.Latent.Input(
                    "latent",
                    tooltip="An image: from a sampler, or from VAE Encode with the model's VAE. "
                    "A mask that it has stays in force: what it protects is kept too.",
                ),
                io.Combo.Input(
                    "redraw",
                    options=list(REDRAWS),
                    default="variations",
                    tooltip="What is resampled. reconstruction: the last stage, half of the tokens; variations: all "
                    "stages but the first; denoise: the share set below.",
                ),
                io.Float.Input(
                    "denoise",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="For redraw 'denoise': share of the tokens that are resampled, the schedule's last ones; "
                    "0 = nothing, 1 = everything.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The image and a mask of what to resample, for latent_image."
                )
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelHandle, schedule: Schedule, latent: io.Latent.Type, redraw: str, denoise: float = 0.5
    ) -> io.NodeOutput:
        batch = LatentBatch.read_image(latent, model)
        redrawn = torch.from_numpy(redrawn_tokens(schedule, batch.canvas.grid, redraw, denoise))
        prepared = batch.masked(batch.canvas.only(redrawn))
        before = without_own_mask(latent, len(batch.images)).get("noise_mask")
        if before is not None:
            own = digests_of_images(prepared["noise_mask"], len(batch.images))
            prepared = prepared | {MASK_BEFORE: EarlierMask(before, own)}
        return io.NodeOutput(prepared)


class Outpaint(io.ComfyNode):
    """LATENT of an image -> larger LATENT whose mask covers what is new."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(
                name, default=0, min=0, max=4096, step=16, optional=True, tooltip=f"Pixels to add at the {name}."
            )

        return io.Schema(
            node_id="GtR_Outpaint",
            display_name="Outpaint (MAR)",
            category="GtR/latent",
            description="Adds room around an image for the sampler to fill. A MAR model draws one size only, so the "
            "sampler slides a window of that size over the room; the others draw all of it at once.",
            search_aliases=["outpainting", "inpaint", "uncrop", "extend", "pad", "sliding window", "gtr"],
            inputs=[
                MarModel.Input("model", tooltip="The model that draws: its size is the window's."),
                io.Latent.Input(
                    "latent",
                    tooltip="An image, at least of the model's size for MAR: from a sampler, or "
                    "from VAE Encode with the model's VAE. Its own mask is dropped.",
                ),
                side("left"),
                side("top"),
                side("right"),
                side("bottom"),
                io.Int.Input(
                    "overlap",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    optional=True,
                    advanced=True,
                    tooltip="MAR: pixels that neighbouring windows share at least; more is slower and fits "
                    "better together. 0 = half a window.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The larger image and a mask of its new part, for latent_image."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: ModelHandle,
        latent: io.Latent.Type,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        overlap: int = 0,
    ) -> io.NodeOutput:
        spec, sides = model.spec, {"left": left, "right": right, "top": top, "bottom": bottom, "overlap": overlap}
        batch = LatentBatch.read_image(latent, model, any_size=True)
        pixels = spec.latent.stride * spec.latent.patch
        wrong = [f"{name} {value}" for name, value in sides.items() if value % pixels]
        if wrong:
            raise GtRError(f"{', '.join(wrong)}: {spec.name}'s tokens are {pixels} pixels wide, give multiples of that")
        *room, shared = (value // pixels for value in sides.values())
        larger = batch.canvas.extended(spec, room, shared)
        if larger.overlap is not None:
            windows(spec.grid, larger.unknown[0].numpy(), larger.overlap)  # refuses what cannot be covered
        return io.NodeOutput(batch.masked(larger))
