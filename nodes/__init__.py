"""The nodes of the pack, imported by the host through ``comfy_entrypoint`` only."""

from ..gtr_core.errors import GtRError
from ._api import ComfyExtension, io
from .cache import LazyMARNode
from .conditioning import ClassCondition
from .edit import Outpaint, Redraw
from .heatmap import HeatMap
from .latent import EmptyLatent
from .loaders import LoadLightGen, LoadMAR, LoadMARVAE
from .replaced import REPLACED, register
from .sampler import Sampler
from .schedule import BaselineScheduler, FTSNode, PreviewSchedule, Scheduler
from .text import EncodeText

# The host imports a pack under the path of its folder, and shows the module of an error to the user.
GtRError.__module__ = "gtr_mar"


class GtRExtension(ComfyExtension):
    """What ComfyUI asks for the node classes."""

    async def on_load(self) -> None:
        await register(REPLACED)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadMAR,
            LoadLightGen,
            LoadMARVAE,
            ClassCondition,
            EncodeText,
            EmptyLatent,
            Scheduler,
            BaselineScheduler,
            FTSNode,
            LazyMARNode,
            Sampler,
            PreviewSchedule,
            Redraw,
            Outpaint,
            HeatMap,
        ]
