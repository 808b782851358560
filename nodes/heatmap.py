"""Where a run's diffusion steps went."""

from __future__ import annotations

from ..gtr_core.drawing.heatmap import HEATS, StepCounts, heatmap
from ..gtr_core.errors import GtRError
from ._api import GtrSteps, io, ui
from ._images import from_host_image, to_host_image


class HeatMap(io.ComfyNode):
    """GTR_STEPS and the decoded images -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_HeatMap",
            display_name="Diffusion Heat Map (MAR)",
            category="GtR/image",
            description="Shows over an image where its diffusion steps went: those that FTS added, or all of them.",
            search_aliases=["fts", "heatmap", "attention map", "gtr"],
            is_output_node=True,
            inputs=[
                GtrSteps.Input("steps", tooltip="The third output of GtR Sampler."),
                io.Image.Input("image", tooltip="The images of the same run, from VAE Decode."),
                io.Combo.Input(
                    "show",
                    options=list(HEATS),
                    default="fts",
                    optional=True,
                    tooltip="fts: the steps that FTS added to the schedule's; all: every token's steps.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The images with the map over them.")],
        )

    @classmethod
    def execute(cls, steps: StepCounts, image: io.Image.Type, show: str = "fts") -> io.NodeOutput:
        images = from_host_image(image)
        if len(images) != len(steps.steps):
            raise GtRError(
                f"{len(images)} images for the steps of {len(steps.steps)}: connect the images and the "
                "steps of the same sampler"
            )
        most = int(steps.of(show).max())
        drawn = to_host_image(*(heatmap(image, steps, show, index, most) for index, image in enumerate(images)))
        return io.NodeOutput(drawn, ui=ui.PreviewImage(drawn, cls=cls))
