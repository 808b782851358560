"""The only place that imports ComfyUI's node API, and the wire types of the pack."""

from comfy_api.latest import ComfyAPI, ComfyExtension, io, ui

MarModel = io.Custom("MAR_MODEL")
GtrSchedule = io.Custom("GTR_SCHEDULE")
GtrFts = io.Custom("GTR_FTS")
GtrCache = io.Custom("GTR_CACHE")
GtrSteps = io.Custom("GTR_STEPS")

__all__ = ["ComfyAPI", "ComfyExtension", "GtrCache", "GtrFts", "GtrSchedule", "GtrSteps", "MarModel", "io", "ui"]
