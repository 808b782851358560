"""GtR for ComfyUI: masked autoregressive image models (MAR, LightGen) with two-stage sampling.

Nothing heavy is imported here: the host calls ``comfy_entrypoint`` when it wants the nodes.
"""

WEB_DIRECTORY = "./web"
# The oldest ComfyUI that the tests run with; requires-comfyui in pyproject.toml says the same to installers.
OLDEST_COMFYUI = (0, 20, 1)


async def comfy_entrypoint():
    """ComfyUI's entry point (V3): the extension that lists the nodes."""
    import logging

    if complaint := too_old(_host_version()):
        logging.getLogger("gtr_mar").error("%s", complaint)
    try:
        from .nodes import GtRExtension
    except Exception:
        logging.getLogger("gtr_mar").exception("GtR: the nodes could not be imported")
        raise
    return GtRExtension()


def too_old(version: str) -> str:
    """One line about a ComfyUI of this version that is older than the oldest tested one, else nothing."""
    import re

    numbers = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    if numbers is None or tuple(int(number or 0) for number in numbers.groups()) >= OLDEST_COMFYUI:
        return ""
    oldest = ".".join(map(str, OLDEST_COMFYUI))
    return f"GtR: expected ComfyUI {oldest} or newer, found {version}, where images can come out wrong: update ComfyUI"


def _host_version() -> str:
    """The version of the ComfyUI that imports this, empty where it does not say. Its main program has read it."""
    import sys

    return getattr(sys.modules.get("comfyui_version"), "__version__", "")
