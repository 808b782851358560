"""Schedule and FTS nodes."""

from __future__ import annotations

from ..gtr_core.drawing.plan_figure import plan_figure
from ..gtr_core.errors import GtRError
from ..gtr_core.plans.fts import FTS, SELECTIONS
from ..gtr_core.plans.method import Method
from ..gtr_core.plans.orders import PHASES
from ..gtr_core.plans.partition import PARTITIONS
from ..gtr_core.plans.plan import make_plan
from ..gtr_core.plans.presets import PRESETS
from ..gtr_core.plans.presets import preset as named_schedule
from ..gtr_core.plans.schedule import ORDERS, SCOPES, Schedule
from ._api import GtrFts, GtrSchedule, MarModel, io, ui
from ._images import to_host_image
from ._models import ModelHandle

CUSTOM = "custom"
BASELINES = {
    "origin": "random",
    "step-n": "random",
    "raster": "raster",
    "subsample": "subsample",
    "halton": "halton",
    "disa": "random",
}


class Scheduler(io.ComfyNode):
    """Preset or settings -> GTR_SCHEDULE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        custom = f"Used when preset is '{CUSTOM}'. "
        return io.Schema(
            node_id="GtR_Scheduler",
            display_name="GtR Scheduler",
            category="GtR/sampling",
            description="Generation then Reconstruction: a checkerboard of structure tokens slowly, then all other "
            "tokens in very few steps, with fewer diffusion steps as the picture takes shape.",
            search_aliases=["gtr", "generation then reconstruction", "mar schedule"],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default="gtr-paper",
                    tooltip="; ".join(f"{name}: {schedule.note}" for name, schedule in PRESETS.items()),
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default="gtr",
                    advanced=True,
                    tooltip=custom + "gtr: stages of a checkerboard; the others have one stage; random is MAR's own.",
                ),
                io.String.Input(
                    "steps",
                    default="24, 6, 2",
                    advanced=True,
                    tooltip=custom + "AR steps of every stage; the number of entries is K.",
                ),
                io.String.Input(
                    "rates",
                    default="",
                    advanced=True,
                    tooltip=custom + "Tokens per AR step of every stage, such as 2.67, 10.67, 64. Used "
                    "instead of steps when not empty.",
                ),
                io.Combo.Input(
                    "partition",
                    options=list(PARTITIONS),
                    default="quincunx",
                    advanced=True,
                    tooltip=custom + "How the checkerboard is divided into stages.",
                ),
                io.Combo.Input(
                    "decoder_scope",
                    options=list(SCOPES),
                    default="stage",
                    advanced=True,
                    tooltip=custom + "stage: the decoder sees mask tokens up to the present stage only "
                    "(faster); full: all of them.",
                ),
                io.Int.Input(
                    "diffusion_start",
                    default=50,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip=custom + "Diffusion steps of the first AR step.",
                ),
                io.Int.Input(
                    "diffusion_end",
                    default=20,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip=custom + "Diffusion steps at the end of the generation stage.",
                ),
                io.Int.Input(
                    "diffusion_reconstruction",
                    default=20,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip=custom + "Diffusion steps of the reconstruction stage.",
                ),
            ],
            outputs=[GtrSchedule.Output(display_name="schedule")],
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        order: str = "gtr",
        steps: str = "24, 6, 2",
        rates: str = "",
        partition: str = "quincunx",
        decoder_scope: str = "stage",
        diffusion_start: int = 50,
        diffusion_end: int = 20,
        diffusion_reconstruction: int = 20,
    ) -> io.NodeOutput:
        if preset != CUSTOM:
            return io.NodeOutput(named_schedule(preset))
        rate_list = numbers("rates", rates, float)
        return io.NodeOutput(
            Schedule(
                CUSTOM,
                order,
                steps=() if rate_list else numbers("steps", steps, int),
                rates=rate_list,
                diffusion=(diffusion_start, diffusion_end, diffusion_reconstruction),
                partition=partition,
                decoder_scope=decoder_scope,
            )
        )


class BaselineScheduler(io.ComfyNode):
    """The schedules that GtR is compared with -> GTR_SCHEDULE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_BaselineScheduler",
            display_name="Baseline Scheduler",
            category="GtR/sampling",
            description="The schedules of other methods, for comparison: MAR's own, fewer steps, other orders, DiSA.",
            search_aliases=["halton", "disa", "raster", "step", "gtr"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(BASELINES),
                    default="step-n",
                    tooltip="origin: MAR's 64 AR and 100 diffusion steps; step-n: the same order in ar_steps; "
                    "raster, subsample, halton: other orders; disa: falling diffusion steps.",
                ),
                io.Int.Input("ar_steps", default=16, min=1, max=4096, tooltip="Not used by origin."),
                io.Int.Input(
                    "diffusion_steps",
                    default=100,
                    min=1,
                    max=1000,
                    tooltip="Not used by origin; DiSA's first AR step (50 in its paper).",
                ),
                io.Int.Input(
                    "disa_end", default=5, min=1, max=1000, advanced=True, tooltip="DiSA: of the last AR step."
                ),
                io.Combo.Input(
                    "disa_profile", options=["linear", "cosine", "two-stage"], default="linear", advanced=True
                ),
                io.Boolean.Input(
                    "disa_clip",
                    default=True,
                    advanced=True,
                    tooltip="DiSA's code clips timesteps at 950, which its paper does not say.",
                ),
                io.Combo.Input(
                    "subsample_phases",
                    options=list(PHASES),
                    default="checkerboard",
                    advanced=True,
                    tooltip="Which of the four parities come first.",
                ),
                io.Boolean.Input(
                    "halton_shift",
                    default=False,
                    advanced=True,
                    tooltip="Start the sequence at a random place in every image.",
                ),
            ],
            outputs=[GtrSchedule.Output(display_name="schedule")],
        )

    @classmethod
    def execute(
        cls,
        method: str,
        ar_steps: int,
        diffusion_steps: int,
        disa_end: int = 5,
        disa_profile: str = "linear",
        disa_clip: bool = True,
        subsample_phases: str = "checkerboard",
        halton_shift: bool = False,
    ) -> io.NodeOutput:
        if method == "origin":
            return io.NodeOutput(named_schedule("origin"))
        disa = method == "disa"
        return io.NodeOutput(
            Schedule(
                f"{method}-{ar_steps}",
                BASELINES[method],
                (ar_steps,),
                diffusion=(diffusion_steps, disa_end if disa else diffusion_steps, diffusion_steps),
                profile=f"disa-{disa_profile}" if disa else "linear",
                max_timestep=950 if disa and disa_clip else None,
                phases=subsample_phases,
                shift=halton_shift,
            )
        )


class FTSNode(io.ComfyNode):
    """FTS settings -> GTR_FTS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_FTS",
            display_name="Frequency-Weighted Token Selection",
            category="GtR/sampling",
            description="In the reconstruction stage the tokens with the most high-frequency energy get more diffusion "
            "steps than the others.",
            search_aliases=["fts", "gtr", "detail"],
            inputs=[
                io.Float.Input("fraction", default=0.1, min=0.01, max=1.0, step=0.01, tooltip="Share of the tokens."),
                io.Int.Input("detail_steps", default=50, min=1, max=1000, tooltip="Their diffusion steps."),
                io.Combo.Input(
                    "selection",
                    options=list(SELECTIONS),
                    default="high",
                    tooltip="high: the method; low, random and all: for comparison.",
                ),
            ],
            outputs=[GtrFts.Output(display_name="fts")],
        )

    @classmethod
    def execute(cls, fraction: float, detail_steps: int, selection: str) -> io.NodeOutput:
        return io.NodeOutput(FTS(fraction, detail_steps, selection))


class PreviewSchedule(io.ComfyNode):
    """A figure of the plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_PreviewSchedule",
            display_name="Preview Schedule",
            category="GtR/sampling",
            description="Draws in which order tokens are decoded, and tokens and diffusion steps per AR step.",
            search_aliases=["gtr", "plan"],
            is_output_node=True,
            inputs=[
                GtrSchedule.Input("schedule"),
                io.Int.Input("rows", default=16, min=1, max=256, tooltip="Of the token grid; a model's own grid wins."),
                io.Int.Input("columns", default=16, min=1, max=256),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True),
                GtrFts.Input("fts", optional=True),
                MarModel.Input("model", optional=True),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        schedule: Schedule,
        rows: int,
        columns: int,
        seed: int,
        fts: FTS | None = None,
        model: ModelHandle | None = None,
    ) -> io.NodeOutput:
        grid = (rows, columns) if model is None else model.spec.grid
        image = to_host_image(plan_figure(make_plan(Method(schedule, fts=fts), grid, (seed,))))
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def numbers(what: str, text: str, kind: type) -> tuple:
    """A list of numbers from a text widget. Raises GtRError."""
    try:
        return tuple(kind(part) for part in text.replace(";", ",").split(",") if part.strip())
    except ValueError as error:
        raise GtRError(f"{what} '{text}': expected numbers separated by commas, such as 24, 6, 2") from error
