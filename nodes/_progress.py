"""Progress, previews and texts while a node is executed."""

from __future__ import annotations

import time

import comfy.model_management as mm
import comfy.utils
import latent_preview
from comfy.cli_args import args
from comfy_execution.utils import get_executing_context
from PIL import Image

from ..gtr_core.costs.report import progress_text
from ..gtr_core.drawing.preview import preview_figure, state_of
from ..gtr_core.models.latents import preview_colours
from ..gtr_core.pipeline import Place
from ..gtr_core.sampling.sampler import Progress
from ._models import ModelHandle

PREVIEW_SECONDS, PREVIEW_PIXELS = 0.25, 512


class RunMonitor:
    """Observes one node execution: interrupt, progress bar, progress text and preview."""

    def __init__(self, model: ModelHandle, grid: tuple[int, int], steps: int):
        self.latent = model.spec.latent
        self.grid = grid
        self.done = 0
        form = model.patcher.model.latent_format
        bias = form.latent_rgb_factors_bias or (0.0, 0.0, 0.0)
        self.rgb = form.latent_rgb_factors and [*form.latent_rgb_factors, bias]
        self.bar = comfy.utils.ProgressBar(steps)
        self.previews = args.preview_method != latent_preview.LatentPreviewMethod.NoPreviews
        self.last_preview = 0.0

    def __call__(self, progress: Progress, place: Place) -> None:
        mm.throw_exception_if_processing_interrupted()
        if progress.diffusion_step:
            return
        now, ended = time.monotonic(), progress.step == progress.steps
        preview = None
        if self.previews and progress.step and (now - self.last_preview > PREVIEW_SECONDS or ended):
            self.last_preview = now
            preview = ("JPEG", self._preview(progress, place), PREVIEW_PIXELS)
        self.bar.update_absolute(self.done + progress.step, preview=preview)
        if ended:
            self.done += progress.steps
        else:
            show_text(progress_text(place.plan, progress.step, place.window + 1, len(place.regions)))

    def _preview(self, progress: Progress, place: Place) -> Image.Image:
        """The first image in approximate colours, with what is still to come marked."""
        tokens = place.tokens.clone()
        tokens[place.regions[place.window].positions] = progress.tokens[0].cpu()
        colours = preview_colours(tokens[None], self.grid, self.latent, self.rgb)[0]
        state = state_of(place.regions, place.window, progress.step, self.grid)
        return Image.fromarray(preview_figure((colours * 255).round().byte().numpy(), state, PREVIEW_PIXELS))


def show_text(text: str) -> None:
    """Show ``text`` in the node that is being executed; outside of a server's execution there is none."""
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer

    PromptServer.instance.send_progress_text(text, context.node_id, PromptServer.instance.client_id)
