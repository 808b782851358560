"""Nodes that prepare a picture's latent for the sampler: what of it to draw anew, or more room around it."""

from __future__ import annotations

import torch

from ..gtr_core.errors import GtRError
from ..gtr_core.plans.regions import REDRAWS, redrawn_tokens, windows
from ..gtr_core.plans.schedule import Schedule
from ._api import GtrSchedule, MarModel, io
from ._models import ModelHandle
from .latent import LatentBatch


class Redraw(io.ComfyNode):
    """LATENT of a picture -> LATENT whose mask leaves some of the schedule's stages to be drawn anew."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_Redraw",
            display_name="Redraw Stages",
            category="GtR/latent",
            description="Keeps the tokens that a schedule decodes first, a picture's structure, and has the sampler "
            "draw the others anew: variations of a picture, or only its finish.",
            search_aliases=["variations", "denoise", "image to image", "img2img", "gtr"],
            inputs=[
                MarModel.Input("model", tooltip="The model that draws: its tokens are what is kept."),
                GtrSchedule.Input("schedule", tooltip="The sampler's schedule: its stages say what structure is."),
                io.Latent.Input(
                    "latent",
                    tooltip="A picture: from a sampler, or from VAE Encode with the model's VAE. "
                    "A mask that it has stays in force: what it protects is kept too.",
                ),
                io.Combo.Input(
                    "redraw",
                    options=list(REDRAWS),
                    default="variations",
                    tooltip="reconstruction: the last stage, half of the tokens; variations: all stages but "
                    "the first; denoise: the share set below.",
                ),
                io.Float.Input(
                    "denoise",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="For redraw 'denoise': share of the tokens that are drawn anew, the schedule's "
                    "last ones; 0 = nothing, 1 = everything.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
        )

    @classmethod
    def execute(
        cls, model: ModelHandle, schedule: Schedule, latent: io.Latent.Type, redraw: str, denoise: float = 0.5
    ) -> io.NodeOutput:
        batch = LatentBatch.read_image(latent, model)
        redrawn = torch.from_numpy(redrawn_tokens(schedule, batch.canvas.grid, redraw, denoise))
        return io.NodeOutput(batch.masked(batch.canvas.only(redrawn)))


class Outpaint(io.ComfyNode):
    """LATENT of a picture -> larger LATENT whose mask covers what is new."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(name, default=0, min=0, max=4096, step=16, tooltip=f"Pixels to add at the {name}.")

        return io.Schema(
            node_id="GtR_Outpaint",
            display_name="Outpaint",
            category="GtR/latent",
            description="Adds room around a picture for the sampler to fill. A MAR model draws one size only, so the "
            "sampler slides a window of that size over the room; LightGen draws all of it at once.",
            search_aliases=["outpainting", "extend", "pad", "sliding window", "gtr"],
            inputs=[
                MarModel.Input("model", tooltip="The model that draws: its size is the window's."),
                io.Latent.Input(
                    "latent",
                    tooltip="A picture, at least of the model's size for MAR: from a sampler, or "
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
                    advanced=True,
                    tooltip="MAR: pixels that neighbouring windows share at least; more is slower and fits "
                    "better together. 0 = half a window.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
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
