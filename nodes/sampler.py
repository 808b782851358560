"""The sampler node."""

from __future__ import annotations

import logging
from functools import partial

from ..gtr_core.costs.report import decoding_report
from ..gtr_core.drawing.heatmap import StepCounts
from ..gtr_core.pipeline import decode
from ..gtr_core.plans.fts import FTS
from ..gtr_core.plans.method import GUIDANCE_SCHEDULES, Cache, Guidance, Method
from ..gtr_core.plans.plan import ar_steps
from ..gtr_core.plans.schedule import Schedule
from ._api import GtrCache, GtrFts, GtrSchedule, GtrSteps, MarModel, io, ui
from ._device import activation_budget, bring_to_device, fitting_threads, host_runtime, kept_for_the_next, peak_bytes
from ._models import ModelHandle
from ._progress import RunMonitor, show_text
from .conditions import read_condition
from .latent import LatentBatch
from .schedule import revise_input

logger = logging.getLogger("gtr_mar")

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
            "image of seed + k, whatever the batch size. A latent with a noise mask keeps its other tokens.",
            search_aliases=[
                "gtr",
                "mar sampler",
                "masked autoregressive",
                "ksampler",
                "k-sampler",
                "generate",
                "t2i",
                "inpaint",
            ],
            inputs=[
                MarModel.Input("model", tooltip="The model that draws, from one of the loaders of this pack."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What to draw: Class Label for MAR, LightGen Text Encode for LightGen, Harmon Text Encode "
                    "for Harmon and UniPic.",
                ),
                GtrSchedule.Input(
                    "schedule",
                    tooltip="Which tokens are decoded when, and in how many diffusion steps: from GtR Scheduler or "
                    "Baseline Scheduler.",
                ),
                io.Latent.Input(
                    "latent_image",
                    tooltip="Size and batch, from Empty MAR Latent. Of an image only the masked tokens are resampled: "
                    "give it a mask with Redraw Stages, Outpaint or Set Latent Noise Mask, or nothing of it is kept.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same image. Image k of a batch has the seed + k, so a queue of "
                    "batches that increments it by 1 repeats images: add the batch size instead.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    tooltip="Guidance scale. Higher follows the condition more closely with less variety; 1 = off and "
                    "twice as fast.",
                ),
                io.Combo.Input(
                    "cfg_schedule",
                    options=list(GUIDANCE_SCHEDULES),
                    default="linear",
                    optional=True,
                    tooltip="linear: guidance grows with the decoded part, for more variety; constant: full from the "
                    "start.",
                ),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    tooltip="Scale of the diffusion's noise. Lower gives smoother, more typical images; higher gives "
                    "more variety and more mistakes.",
                ),
                GtrFts.Input(
                    "fts",
                    optional=True,
                    tooltip="Frequency-Weighted Token Selection: more diffusion steps for the tokens with most detail.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance leads away from. If unconnected, what the original code uses: the learned "
                    "null condition of MAR and LightGen, Harmon's and UniPic's prompt 'Generate an image.'.",
                ),
                GtrCache.Input(
                    "cache",
                    optional=True,
                    tooltip="ReCAP Cache, or LazyMAR Cache for MAR with guidance: faster, and a little different.",
                ),
                io.Combo.Input(
                    "acceleration",
                    options=list(ACCELERATIONS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="auto: CUDA graphs, 16 bit in most of the head's steps where the "
                    "transformer has 16 bit, packed weights on a processor with AVX-512. off: none of these. Images "
                    "are the same up to rounding, which in 16 bit may show in details.",
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
                    tooltip="The share of the tokens that is decoded without guidance first, at half the cost: the "
                    "linear schedule guides them little anyway. 0 = guidance from the first step on.",
                ),
                revise_input(
                    "The share of the tokens, those drawn first, that one more step draws again when it knows all "
                    "others. 0.25 takes away nearly all of the demo model's misplaced tokens. 0 = none, as in the "
                    "paper."
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For VAE Decode with the model's own VAE, or another edit."
                ),
                io.String.Output(
                    display_name="report", tooltip="What the run did: steps, FLOPs and seconds per stage, and notes."
                ),
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
        cfg: float = 3.0,
        cfg_schedule: str = "linear",
        temperature: float = 1.0,
        fts: FTS | None = None,
        negative: io.Conditioning.Type | None = None,
        cache: Cache | None = None,
        acceleration: str = "auto",
        cfg_start: float = 0.0,
        revise: float = 0.0,
    ) -> io.NodeOutput:
        method = Method(schedule, Guidance(cfg, cfg_schedule, cfg_start), fts, cache, temperature, revise)
        latent = LatentBatch.read(latent_image, model)
        read = partial(read_condition, batch=latent.conditioned, spec=model.spec)
        condition = read(positive, what="positive")
        against = None if negative is None else read(negative, what="negative")
        runtime = host_runtime(model, accelerate=acceleration == "auto")
        decoding = latent.plan(method, seed, runtime, activation_budget(model, runtime))
        network, runtime = bring_to_device(model, decoding, runtime)
        monitor = RunMonitor(model, latent.canvas.grid, decoding.ar_steps)
        tokens = latent.tokens()
        with kept_for_the_next(model, runtime), fitting_threads(model, len(tokens), runtime):
            decoded = decode(network, decoding, tokens, condition, negative=against, runtime=runtime, observer=monitor)
        show_text(f"done: {ar_steps(monitor.done)}")
        done = decoding_report(decoding, decoded, model.spec, peak_bytes(model.patcher))
        notes = noted([schedule.remark, *latent.remarks()])
        report = "\n".join([*model.notes, *([done] if done else []), *notes])
        steps = StepCounts.between(decoded.steps, decoded.scheduled, latent.canvas.grid)
        return io.NodeOutput(latent.finished(decoded.tokens), report, steps, ui=ui.PreviewText(report))


def noted(remarks: list[str]) -> list[str]:
    """Lines of the report on what had no effect, also for the log; empty remarks are none."""
    found = [remark for remark in remarks if remark]
    for remark in found:
        logger.warning("%s", remark)
    return [f"note: {remark}" for remark in found]
