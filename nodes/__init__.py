"""The nodes of the pack, imported by the host through ``comfy_entrypoint`` only."""

import logging

from ..gtr_core.device import outdated_torch
from ..gtr_core.errors import GtRError
from ._api import ComfyExtension, io
from .cache import LazyMARNode, ReCAPNode
from .conditioning import ClassCondition
from .edit import Outpaint, Redraw
from .heatmap import HeatMap
from .latent import EmptyLatent
from .loaders import LoadHarmon, LoadLightGen, LoadMAR, LoadMARVAE
from .prompt import EncodeEdit, EncodePrompt
from .replaced import REPLACED, register
from .sampler import Sampler
from .schedule import BaselineScheduler, FTSNode, PreviewSchedule, Scheduler
from .text import EncodeText

logger = logging.getLogger("gtr_mar")
# The host imports a pack under the path of its folder, and shows the module of an error to the user.
GtRError.__module__ = "gtr_mar"


class GtRExtension(ComfyExtension):
    """What ComfyUI asks for the node classes."""

    async def on_load(self) -> None:
        outdated = outdated_torch()
        if outdated:
            logger.warning("%s", outdated)
        await register(REPLACED)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadMAR,
            LoadLightGen,
            LoadHarmon,
            LoadMARVAE,
            ClassCondition,
            EncodeText,
            EncodePrompt,
            EncodeEdit,
            EmptyLatent,
            Scheduler,
            BaselineScheduler,
            FTSNode,
            LazyMARNode,
            ReCAPNode,
            Sampler,
            PreviewSchedule,
            Redraw,
            Outpaint,
            HeatMap,
        ]
