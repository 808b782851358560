"""The sampler node."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..gtr_core.costs.report import decoding_report
from ..gtr_core.drawing.heatmap import StepCounts
from ..gtr_core.pipeline import Decoded, decode
from ..gtr_core.plans.fts import FTS
from ..gtr_core.plans.method import GUIDANCE_SCHEDULES, Cache, Guidance, Method
from ..gtr_core.plans.schedule import Schedule
from ._api import GtrCache, GtrFts, GtrSchedule, GtrSteps, MarModel, io, ui
from ._device import activation_budget, bring_to_device, host_runtime, peak_bytes
from ._models import ModelHandle
from ._progress import RunMonitor, show_text
from .conditions import read_condition
from .latent import LatentBatch

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
        model: ModelHandle,
        positive: io.Conditioning.Type,
        schedule: Schedule,
        latent_image: io.Latent.Type,
        seed: int,
        cfg: float,
        cfg_schedule: str,
        temperature: float,
        fts: FTS | None = None,
        negative: io.Conditioning.Type | None = None,
        cache: Cache | None = None,
        acceleration: str = "auto",
        cfg_start: float = 0.0,
    ) -> io.NodeOutput:
        method = Method(schedule, Guidance(cfg, cfg_schedule, cfg_start), fts, cache, temperature)
        latent = LatentBatch.read(latent_image, model)
        read = partial(read_condition, images=latent.images, spec=model.spec)
        condition = read(positive, what="positive")
        against = None if negative is None else read(negative, what="negative")
        runtime = host_runtime(model, accelerate=acceleration == "auto")
        decoding = latent.plan(method, seed, runtime, activation_budget(model.patcher))
        runtime = bring_to_device(model, decoding, runtime)
        monitor = RunMonitor(model, latent.canvas.grid, decoding.ar_steps)
        network = model.patcher.model.diffusion_model
        tokens = latent.tokens()
        decoded = decode(network, decoding, tokens, condition, negative=against, runtime=runtime, observer=monitor)
        show_text(f"done: {monitor.done} AR steps")
        done = decoding_report(decoding, decoded, model.spec, peak_bytes(model.patcher))
        report = "\n".join([*model.notes, done])
        return io.NodeOutput(
            latent.finished(decoded.tokens), report, spent_steps(decoded, latent.canvas.grid), ui=ui.PreviewText(report)
        )


def spent_steps(decoded: Decoded, grid: tuple[int, int]) -> StepCounts:
    """Diffusion steps per token for the heat map, (B, h, w): all, and those that FTS added."""
    extra = np.maximum(decoded.steps - decoded.scheduled, 0)
    return StepCounts(decoded.steps.reshape(-1, *grid), extra.reshape(-1, *grid))
