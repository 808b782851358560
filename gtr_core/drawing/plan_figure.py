"""Pictures of a plan: stage, AR step and diffusion steps of the tokens, and what every AR step does."""

from __future__ import annotations

import numpy as np

from ..plans.fts import FTS
from ..plans.plan import Plan, Step
from .canvas import (
    FAINT,
    INK,
    KNOWN,
    LINE,
    PAPER,
    STAGE_COLOURS,
    blank,
    draw_colour_bar,
    draw_text,
    enlarge,
    text_width,
    viridis,
)

MAP, GAP, CHART = 288, 24, 120


def draw_plan(plan: Plan, fts: FTS | None = None, image: int = 0) -> np.ndarray:
    """The plan of one image as (H, W, 3) uint8: maps of the grid, bars per AR step, and a legend below."""
    lines = _legend(plan, fts)
    cell = max(1, MAP // max(plan.grid))
    maps, charts = GAP + 2 * LINE, GAP + 3 * LINE + cell * plan.grid[0] + LINE + GAP
    legend = charts + LINE + CHART + LINE + GAP
    sheet = blank(legend + LINE * len(lines) + GAP, 3 * MAP + 4 * GAP)
    draw_text(sheet, _title(plan), GAP, GAP)
    _draw_maps(sheet[maps:], plan, cell, image)
    half = (sheet.shape[1] - 3 * GAP) // 2
    tokens, diffusion = [step.tokens for step in plan.steps], [step.diffusion_steps for step in plan.steps]
    detail = [fts.detail_steps if fts is not None and step.reconstruction else 0 for step in plan.steps]
    _draw_bars(sheet[charts:, GAP : GAP + half], plan, tokens, [0] * len(tokens), "tokens")
    _draw_bars(sheet[charts:, 2 * GAP + half : 2 * GAP + 2 * half], plan, diffusion, detail, "diffusion steps")
    for row, (text, colour) in enumerate(lines):
        top = legend + LINE * row
        if colour is not None:
            sheet[top : top + 14, GAP : GAP + 14] = colour
        draw_text(sheet, text, top, GAP + 22)
    return sheet


def stage_colour(stage: int) -> np.ndarray:
    """The colour of stage 1, 2, ..."""
    return STAGE_COLOURS[(stage - 1) % len(STAGE_COLOURS)]


def token_values(plan: Plan, values: list[int], image: int = 0) -> np.ndarray:
    """A value per AR step as a map of the tokens, (h, w) int64; 0 where the plan leaves a token alone."""
    result = np.zeros(plan.tokens, np.int64)
    for step, value in zip(plan.steps, values):
        result[step.targets[image]] = value
    return result.reshape(plan.grid)


def _draw_maps(area: np.ndarray, plan: Plan, cell: int, image: int) -> None:
    """Side by side: stage in the stages' colours, AR step and diffusion steps from dark to light."""
    stage = token_values(plan, [step.stage for step in plan.steps], image)
    order = token_values(plan, list(range(1, len(plan.steps) + 1)), image)
    diffusion = token_values(plan, [step.diffusion_steps for step in plan.steps], image)
    below = LINE + cell * plan.grid[0] + 6
    colours = np.stack([KNOWN, *(stage_colour(k) for k in range(1, plan.schedule.stages + 1))])[stage]
    left = _draw_map(area, colours, cell, 0, "stage")
    for k in range(1, plan.schedule.stages + 1):
        place = left + 44 * (k - 1)
        area[below : below + 14, place : place + 14] = stage_colour(k)
        draw_text(area, str(k), below, place + 18)
    for column, (values, title) in enumerate(((order, "AR step"), (diffusion, "diffusion steps")), start=1):
        low, high = (int(f(values[stage > 0])) if plan.steps else 0 for f in (np.min, np.max))
        shades = viridis((values - low) / max(high - low, 1))
        left = _draw_map(area, np.where(stage[..., None] > 0, shades, KNOWN), cell, column, title)
        if low < high:
            draw_colour_bar(area, below, left, MAP, str(low), str(high))
        else:
            draw_text(area, f"{low} everywhere", below, left)


def _draw_map(area: np.ndarray, colours: np.ndarray, cell: int, column: int, title: str) -> int:
    """Draws colours (h, w, 3) below a title; returns the left edge."""
    left = GAP + column * (MAP + GAP)
    draw_text(area, title, 0, left)
    picture = enlarge(colours, cell)
    if cell > 4:
        picture[::cell] = picture[:, ::cell] = PAPER
    area[LINE : LINE + picture.shape[0], left : left + picture.shape[1]] = picture
    return left


def _draw_bars(panel: np.ndarray, plan: Plan, values: list[int], outlines: list[int], title: str) -> None:
    """A bar per AR step in its stage's colour, inside the outline of another value where that is larger."""
    top, base = max([*values, *outlines], default=1), LINE + CHART
    draw_text(panel, f"{title} (at most {top})", 0, 0)
    panel[base : base + 2] = FAINT
    width = panel.shape[1] / max(len(values), 1)
    for index, (step, value, outline) in enumerate(zip(plan.steps, values, outlines)):
        left, right = int(index * width), max(int((index + 1) * width) - 1, int(index * width) + 1)
        height, frame = (max(1, (CHART - 8) * number // top) for number in (value, outline))
        if outline > value:
            panel[base - frame : base, left:right] = INK
            panel[base - frame + 2 : base, left + 2 : right - 2] = PAPER
        panel[base - height : base, left:right] = stage_colour(step.stage)
    draw_text(panel, "1", base + 6, 0)
    draw_text(panel, "AR step", base + 6, (panel.shape[1] - text_width("AR step")) // 2)
    draw_text(panel, str(len(values)), base + 6, panel.shape[1] - text_width(str(len(values))))


def _title(plan: Plan) -> str:
    schedule = plan.schedule
    return (
        f"{schedule.name}: {len(plan.steps)} AR steps, {plan.grid[0]} x {plan.grid[1]} tokens, {schedule.order} "
        f"order, {schedule.decoder_scope} decoder scope"
    )


def _legend(plan: Plan, fts: FTS | None) -> list[tuple[str, np.ndarray | tuple | None]]:
    lines: list[tuple[str, np.ndarray | tuple | None]] = []
    for stage in range(1, plan.schedule.stages + 1):
        own = [step for step in plan.steps if step.stage == stage]
        if own:
            lines.append((_describe(own), stage_colour(stage)))
    given = plan.tokens - sum(step.tokens for step in plan.steps)
    if given:
        lines.append((f"given: {given} tokens", KNOWN))
    if fts is not None and any(step.reconstruction for step in plan.steps):
        lines.append(
            (
                f"FTS (outlined): {fts.selection} {fts.fraction:.0%} of each reconstruction step, "
                f"{fts.detail_steps} diffusion steps",
                None,
            )
        )
    return lines


def _describe(steps: list[Step]) -> str:
    """One stage in words."""
    kind = "reconstruction" if steps[0].reconstruction else "generation"
    diffusion = " - ".join(map(str, dict.fromkeys((steps[0].diffusion_steps, steps[-1].diffusion_steps))))
    return (
        f"stage {steps[0].stage}, {kind}: {sum(step.tokens for step in steps)} tokens in {len(steps)} AR step"
        f"{'s' * (len(steps) > 1)}, {diffusion} diffusion steps"
    )
