"""GtR for ComfyUI: masked autoregressive image models (MAR, LightGen) with two-stage sampling.

Nothing heavy is imported here: the host calls ``comfy_entrypoint`` when it wants the nodes.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """ComfyUI's entry point (V3): the extension that lists the nodes."""
    import logging

    try:
        from .nodes import GtRExtension
    except Exception:
        logging.getLogger("gtr_mar").exception("GtR: the nodes could not be imported")
        raise
    return GtRExtension()
