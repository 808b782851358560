"""Schedule and FTS nodes."""

from __future__ import annotations

from dataclasses import replace

from ..gtr_core.device import Runtime
from ..gtr_core.drawing.plan_figure import plan_figure
from ..gtr_core.errors import GtRError
from ..gtr_core.plans.fts import FTS, SELECTIONS
from ..gtr_core.plans.method import LARGEST_REVISION, Method
from ..gtr_core.plans.orders import PHASES
from ..gtr_core.plans.partition import PARTITIONS
from ..gtr_core.plans.plan import make_plan
from ..gtr_core.plans.presets import PRESETS
from ..gtr_core.plans.presets import preset as named_schedule
from ..gtr_core.plans.schedule import ORDERS, SCOPES, Schedule, parse_numbers
from ._api import GtrFts, GtrSchedule, MarModel, io, ui
from ._images import to_host_image
from ._models import ModelHandle
from .latent import LatentBatch

CUSTOM = "custom"
GTR_PRESETS = [name for name in PRESETS if name.startswith("gtr-")]
# What the node is for comes first, and is seen without scrolling.
MENU = [*GTR_PRESETS, CUSTOM, *(name for name in PRESETS if name not in GTR_PRESETS)]
SCHEDULE_OUTPUT = "For schedule of GtR Sampler, Redraw Stages and Preview Schedule."
BASELINES = {
    "origin": "random",
    "step-n": "random",
    "raster": "raster",
    "subsample": "subsample",
    "halton": "halton",
    "disa": "random",
}
# Which methods read a setting; the others are read by all but the origin.
USED_BY = {
    "disa_end": {"disa"},
    "disa_profile": {"disa"},
    "disa_clip": {"disa"},
    "subsample_phases": {"subsample"},
    "halton_shift": {"halton"},
}


class Scheduler(io.ComfyNode):
    """Preset or settings -> GTR_SCHEDULE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        custom = f"Used when preset is '{CUSTOM}'. "
        return io.Schema(
            node_id="GtR_Scheduler",
            display_name="GtR Scheduler",
            category="GtR/sampling/schedulers",
            description="Generation then Reconstruction: a checkerboard of structure tokens slowly, then all other "
            "tokens in very few steps, with fewer diffusion steps as the image takes shape.",
            search_aliases=[
                "gtr",
                "generation then reconstruction",
                "mar schedule",
                "checkerboard",
                "sigmas",
                "steps",
                "preset",
                "gtr-paper",
            ],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=MENU,
                    default="gtr-paper",
                    tooltip="Start with gtr-paper (MAR), gtr-lightgen (LightGen), gtr-harmon (Harmon) or gtr-unipic "
                    "(UniPic). origin is exact and slowest, gtr-extreme is for drafts, and the step, halton and disa "
                    "presets are for comparison.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default="gtr",
                    optional=True,
                    advanced=True,
                    tooltip=custom + "gtr: stages of a checkerboard; the others have one stage; random is MAR's own.",
                ),
                io.String.Input(
                    "steps",
                    default="24, 6, 2",
                    optional=True,
                    advanced=True,
                    tooltip=custom + "AR steps of every stage; the number of entries is K.",
                ),
                io.String.Input(
                    "rates",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip=custom + "Tokens per AR step of every stage, such as 2.67, 10.67, 64. Used "
                    "instead of steps when not empty.",
                ),
                io.Combo.Input(
                    "partition",
                    options=list(PARTITIONS),
                    default="diagonal",
                    optional=True,
                    advanced=True,
                    tooltip=custom + "How the checkerboard is divided into stages.",
                ),
                io.Combo.Input(
                    "decoder_scope",
                    options=list(SCOPES),
                    default="stage",
                    optional=True,
                    advanced=True,
                    tooltip=custom + "stage: the decoder sees mask tokens up to the present stage only "
                    "(faster); full: all of them.",
                ),
                io.Int.Input(
                    "diffusion_start",
                    default=50,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip=custom + "Diffusion steps of the first AR step.",
                ),
                io.Int.Input(
                    "diffusion_end",
                    default=20,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip=custom + "Diffusion steps at the end of the generation stage.",
                ),
                io.Int.Input(
                    "diffusion_reconstruction",
                    default=20,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip=custom + "Diffusion steps of the reconstruction stage.",
                ),
            ],
            outputs=[GtrSchedule.Output(display_name="schedule", tooltip=SCHEDULE_OUTPUT)],
        )

    @classmethod
    def execute(
        cls,
        preset: str,
        order: str = "gtr",
        steps: str = "24, 6, 2",
        rates: str = "",
        partition: str = "diagonal",
        decoder_scope: str = "stage",
        diffusion_start: int = 50,
        diffusion_end: int = 20,
        diffusion_reconstruction: int = 20,
    ) -> io.NodeOutput:
        if preset != CUSTOM:
            unused = changed(
                cls,
                order=order,
                steps=steps,
                rates=rates,
                partition=partition,
                decoder_scope=decoder_scope,
                diffusion_start=diffusion_start,
                diffusion_end=diffusion_end,
                diffusion_reconstruction=diffusion_reconstruction,
            )
            way_out = f"choose '{CUSTOM}' to use them"
            return io.NodeOutput(remarked(named_schedule(preset), unused, f"preset '{preset}'", way_out))
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
            display_name="Baseline Scheduler (MAR)",
            category="GtR/sampling/schedulers",
            description="The schedules of other methods, for comparison: MAR's own, fewer steps, other orders, DiSA.",
            search_aliases=["halton", "disa", "raster", "subsample", "step", "original", "sigmas", "gtr"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(BASELINES),
                    default="step-n",
                    tooltip="origin: MAR's 64 AR and 100 diffusion steps; step-n: the same order in ar_steps; "
                    "raster, subsample, halton: other orders; disa: falling diffusion steps.",
                ),
                io.Int.Input(
                    "ar_steps",
                    default=16,
                    min=1,
                    max=4096,
                    optional=True,
                    tooltip="AR steps; fewer is faster and coarser. Not used by origin.",
                ),
                io.Int.Input(
                    "diffusion_steps",
                    default=100,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="Diffusion steps of every token; fewer is faster and coarser. DiSA: of the first AR step, "
                    "50 in its paper. Not used by origin.",
                ),
                io.Int.Input(
                    "disa_end",
                    default=5,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="DiSA: diffusion steps of the last AR step.",
                ),
                io.Combo.Input(
                    "disa_profile",
                    options=["linear", "cosine", "two-stage"],
                    default="linear",
                    optional=True,
                    advanced=True,
                    tooltip="DiSA: how diffusion steps fall from the first AR step to the last.",
                ),
                io.Boolean.Input(
                    "disa_clip",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="DiSA: clip timesteps at 950, as its code does and its paper does not say.",
                ),
                io.Combo.Input(
                    "subsample_phases",
                    options=list(PHASES),
                    default="checkerboard",
                    optional=True,
                    advanced=True,
                    tooltip="subsample: which of the four parities of row and column come first.",
                ),
                io.Boolean.Input(
                    "halton_shift",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="halton: start the sequence at a random place in every image.",
                ),
            ],
            outputs=[GtrSchedule.Output(display_name="schedule", tooltip=SCHEDULE_OUTPUT)],
        )

    @classmethod
    def execute(
        cls,
        method: str,
        ar_steps: int = 16,
        diffusion_steps: int = 100,
        disa_end: int = 5,
        disa_profile: str = "linear",
        disa_clip: bool = True,
        subsample_phases: str = "checkerboard",
        halton_shift: bool = False,
    ) -> io.NodeOutput:
        settings = {
            "ar_steps": ar_steps,
            "diffusion_steps": diffusion_steps,
            "disa_end": disa_end,
            "disa_profile": disa_profile,
            "disa_clip": disa_clip,
            "subsample_phases": subsample_phases,
            "halton_shift": halton_shift,
        }
        unused = [
            name for name in changed(cls, **settings) if method not in USED_BY.get(name, {*BASELINES} - {"origin"})
        ]
        disa = method == "disa"
        last = disa_end if disa else diffusion_steps
        schedule = (
            named_schedule("origin")
            if method == "origin"
            else Schedule(
                f"{method.removesuffix('-n')}-{ar_steps}",
                BASELINES[method],
                (ar_steps,),
                diffusion=(diffusion_steps, last, last),
                profile=f"disa-{disa_profile}" if disa else "linear",
                max_timestep=950 if disa and disa_clip else None,
                phases=subsample_phases if method == "subsample" else "checkerboard",
                shift=halton_shift and method == "halton",
            )
        )
        if schedule != PRESETS.get(schedule.name, schedule):  # a preset's name never changes its meaning
            schedule = replace(schedule, name=f"{schedule.name} (changed)")
        return io.NodeOutput(remarked(schedule, unused, f"method '{method}'", "choose the method that they belong to"))


class FTSNode(io.ComfyNode):
    """FTS settings -> GTR_FTS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_FTS",
            display_name="Frequency-Weighted Token Selection (GtR)",
            category="GtR/sampling/settings",
            description="In the reconstruction stage the tokens with the most high-frequency energy get more diffusion "
            "steps than the others.",
            search_aliases=["fts", "gtr", "detail", "quality"],
            inputs=[
                io.Float.Input(
                    "fraction",
                    default=0.1,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Share of the tokens that get more steps. More is slower.",
                ),
                io.Int.Input(
                    "detail_steps",
                    default=50,
                    min=1,
                    max=1000,
                    optional=True,
                    tooltip="Diffusion steps of these tokens. More is slower and finer.",
                ),
                io.Combo.Input(
                    "selection",
                    options=list(SELECTIONS),
                    default="high",
                    optional=True,
                    tooltip="Which tokens. high: those with most high-frequency energy, the method; low, random and "
                    "all: for comparison.",
                ),
            ],
            outputs=[GtrFts.Output(display_name="fts", tooltip="For fts of GtR Sampler and Preview Schedule.")],
        )

    @classmethod
    def execute(cls, fraction: float = 0.1, detail_steps: int = 50, selection: str = "high") -> io.NodeOutput:
        return io.NodeOutput(FTS(fraction, detail_steps, selection))


class PreviewSchedule(io.ComfyNode):
    """A figure of the plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_PreviewSchedule",
            display_name="Preview Schedule (MAR)",
            category="GtR/image",
            description="Draws in which order tokens are decoded, and tokens and diffusion steps per AR step.",
            search_aliases=["gtr", "plan", "token order", "visualize"],
            is_output_node=True,
            inputs=[
                GtrSchedule.Input("schedule", tooltip="What to draw the plan of."),
                io.Int.Input(
                    "rows",
                    default=16,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip="Rows of the token grid. Not used with a model or a latent.",
                ),
                io.Int.Input(
                    "columns",
                    default=16,
                    min=1,
                    max=256,
                    optional=True,
                    tooltip="Columns of the token grid. Not used with a model or a latent.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    optional=True,
                    control_after_generate=True,
                    tooltip="Of the image: the order within a stage is random. Wire one number to this and to the "
                    "sampler's seed to see its run.",
                ),
                GtrFts.Input("fts", optional=True, tooltip="Outlines what the selected tokens get."),
                MarModel.Input("model", optional=True, tooltip="Draws the plan for this model's own grid."),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="With model: draws the plan for this latent's grid, mask and first image, as GtR Sampler "
                    "will run it. Of an outpainted MAR image it shows the first window.",
                ),
                revise_input("As in GtR Sampler: a black bar shows the step that draws the first tokens again."),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The figure of the plan.")],
        )

    @classmethod
    def execute(
        cls,
        schedule: Schedule,
        rows: int = 16,
        columns: int = 16,
        seed: int = 0,
        fts: FTS | None = None,
        model: ModelHandle | None = None,
        latent: io.Latent.Type | None = None,
        revise: float = 0.0,
    ) -> io.NodeOutput:
        method = Method(schedule, fts=fts, revise=revise)
        if latent is None:
            plan = make_plan(method, (rows, columns) if model is None else model.spec.grid, (seed,))
        elif model is None:
            raise GtRError("a latent needs the model that it is for, to know its tokens: connect the model too")
        else:
            plans = LatentBatch.read(latent, model).plan(method, seed, Runtime()).plans
            if not plans:
                raise GtRError(
                    "the latent's mask covers nothing, there is no plan to draw: paint over what is to change"
                )
            plan = plans[0]
        image = to_host_image(plan_figure(plan))
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def revise_input(tooltip: str) -> io.Float.Input:
    """The share of the tokens that one more AR step draws again."""
    return io.Float.Input(
        "revise",
        default=0.0,
        min=0.0,
        max=LARGEST_REVISION,
        step=0.05,
        round=0.001,
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )


def changed(node: type[io.ComfyNode], **values: object) -> list[str]:
    """The inputs whose value is not the node's default."""
    defaults = {entry.id: getattr(entry, "default", None) for entry in node.define_schema().inputs}
    return [name for name, value in values.items() if value != defaults[name]]


def remarked(schedule: Schedule, unused: list[str], choice: str, way_out: str) -> Schedule:
    """The schedule with a remark on settings that were changed without effect, for the sampler's report."""
    if not unused:
        return schedule
    verb = "is" if len(unused) == 1 else "are"
    return replace(schedule, remark=f"{', '.join(unused)} {verb} not used by {choice}: {way_out}")


def numbers(what: str, text: str, kind: type) -> tuple:
    """A list of numbers from a text widget. Raises GtRError."""
    try:
        return parse_numbers(text, kind)
    except GtRError as error:
        raise GtRError(f"{what} {error}") from error
