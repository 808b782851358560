"""Cache nodes."""

from __future__ import annotations

from ..gtr_core.sampling.lazymar import LazyMAR
from ..gtr_core.sampling.recap import ReCAP
from ._api import GtrCache, io


class LazyMARNode(io.ComfyNode):
    """LazyMAR settings -> GTR_CACHE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_LazyMAR",
            display_name="LazyMAR Cache",
            category="GtR/sampling/settings",
            description="Reuses what changes little between AR steps and between diffusion steps of a MAR model. Needs "
            "guidance and a schedule with the full decoder scope (origin, step-N, gtr-full).",
            search_aliases=["lazymar", "cache", "speed up", "teacache", "gtr"],
            inputs=[
                io.Int.Input(
                    "start_step",
                    default=5,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="So many first AR steps compute everything. More is slower and closer to no cache.",
                ),
                io.Int.Input(
                    "period",
                    default=9,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="After them every so many steps compute everything. Less is slower and closer to no cache.",
                ),
                io.Int.Input(
                    "prune_block",
                    default=3,
                    min=0,
                    max=64,
                    optional=True,
                    advanced=True,
                    tooltip="The decoder block, counted from 0, after which only few tokens go on; the last one where "
                    "a model has fewer. Higher is slower and closer to no cache.",
                ),
                io.Int.Input(
                    "extra",
                    default=15,
                    min=0,
                    max=256,
                    optional=True,
                    advanced=True,
                    tooltip="How many tokens more than needed go on. More is slower and closer to no cache.",
                ),
                io.Int.Input(
                    "head_period",
                    default=7,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="Every so many diffusion steps the head computes everything; 1 = always.",
                ),
            ],
            outputs=[GtrCache.Output(display_name="cache", tooltip="For cache of GtR Sampler.")],
        )

    @classmethod
    def execute(
        cls, start_step: int = 5, period: int = 9, prune_block: int = 3, extra: int = 15, head_period: int = 7
    ) -> io.NodeOutput:
        return io.NodeOutput(LazyMAR(start_step, period, prune_block, extra, head_period))


BUFFERS = ("keep", "again")


class ReCAPNode(io.ComfyNode):
    """ReCAP settings -> GTR_CACHE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_ReCAP",
            display_name="ReCAP Cache (MAR)",
            category="GtR/sampling/settings",
            description="Puts cheap local steps between full AR steps: they compute the tokens that are decoded now "
            "and reuse keys and values of all others. For MAR and LightGen, with any schedule.",
            search_aliases=["recap", "cache", "speed", "gtr"],
            inputs=[
                io.Int.Input(
                    "start_step",
                    default=4,
                    min=0,
                    max=256,
                    optional=True,
                    tooltip="The first AR steps compute everything. Fewer is faster; the first few steps decide most.",
                ),
                io.Int.Input(
                    "local_steps",
                    default=1,
                    min=0,
                    max=16,
                    optional=True,
                    tooltip="Local steps after every full one. More is faster and less exact; 0 switches it off.",
                ),
                io.Combo.Input(
                    "buffer",
                    options=list(BUFFERS),
                    default="keep",
                    optional=True,
                    advanced=True,
                    tooltip="keep reuses the class rows' keys and values; again computes them in every local step, "
                    "which is a little more exact and several times as expensive.",
                ),
            ],
            outputs=[GtrCache.Output(display_name="cache", tooltip="For GtR Sampler.")],
        )

    @classmethod
    def execute(cls, start_step: int = 4, local_steps: int = 1, buffer: str = "keep") -> io.NodeOutput:
        return io.NodeOutput(ReCAP(start_step, local_steps, keep_buffer=buffer == "keep"))
