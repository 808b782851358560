"""The figure of a plan: stage, AR step and diffusion steps of every token, and what every AR step does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..plans.plan import Plan, Step, ar_steps
from .bars import write_chart
from .canvas import FAINT, KNOWN, LINE, REVISED, STAGE_COLOURS, SWATCH, Drawing, Sheet, text_width, viridis
from .png import write_png
from .vector import VectorSheet

MAP, GAP = 320, 32  # the longer side of a map, and what lies between maps
TITLE, AXIS, CHART = 24, 36, 120  # the title's letters, the width of an axis' labels, the height of a chart
MAPS_TOP = GAP + 3 * LINE + 16  # below the title, a line of facts and the maps' own titles


def plan_figure(plan: Plan, index: int = 0) -> np.ndarray:
    """The plan of a batch's image ``index`` as (H, W, 3) uint8: maps of the grid, a chart per AR step, a legend."""
    sheet = Sheet(*_size(plan))
    _draw(sheet, plan, index)
    return sheet.pixels()


def write_plan_figure(path: str | os.PathLike, plan: Plan, index: int = 0) -> None:
    """The same figure as a .png, .svg or .pdf file. Raises GtRError when that fails."""
    if Path(path).suffix.lower() == ".png":
        return write_png(path, plan_figure(plan, index))
    sheet = VectorSheet(*_size(plan))
    _draw(sheet, plan, index)
    write_chart(path, sheet.figure)


def _size(plan: Plan) -> tuple[int, int]:
    """Width and height."""
    return 3 * MAP + 4 * GAP, _legend_top(plan) + LINE * len(_legend(plan)) + GAP - LINE // 3


def _charts_top(plan: Plan) -> int:
    return MAPS_TOP + _cell(plan) * plan.grid[0] + 10 + LINE + GAP


def _legend_top(plan: Plan) -> int:
    return _charts_top(plan) + LINE + CHART + LINE + GAP


def _cell(plan: Plan) -> int:
    """The side of a token in a map."""
    return max(1, MAP // max(plan.grid))


def _draw(sheet: Drawing, plan: Plan, index: int) -> None:
    """All of the figure."""
    charts, legend = _charts_top(plan), _legend_top(plan)
    sheet.text(GAP, GAP, plan.schedule.name, size=TITLE)
    sheet.text(GAP, GAP + LINE + 8, _facts(plan))
    _draw_maps(sheet, plan, _cell(plan), index)
    half = (sheet.width - 3 * GAP) // 2
    tokens, diffusion = [step.tokens for step in plan.steps], [step.diffusion_steps for step in plan.steps]
    detail = [max((g.diffusion_steps for g in step.groups if g.detail), default=0) for step in plan.steps]
    _draw_chart(sheet, GAP, charts, half, plan, tokens, [0] * len(tokens), "tokens per AR step")
    _draw_chart(sheet, 2 * GAP + half, charts, half, plan, diffusion, detail, "diffusion steps per AR step")
    for row, (text, colour) in enumerate(_legend(plan)):
        top = legend + LINE * row
        if colour is None:
            sheet.frame(GAP, top + 2, SWATCH, SWATCH)
        else:
            sheet.swatch(GAP, top, colour)
        sheet.text(GAP + SWATCH + 10, top, text)


def stage_colour(stage: int) -> np.ndarray:
    """The colour of stage 1, 2, ..."""
    return STAGE_COLOURS[(stage - 1) % len(STAGE_COLOURS)]


def step_colour(step: Step) -> np.ndarray:
    """The colour of its stage, or of a revision."""
    return REVISED if step.revision else stage_colour(step.stage)


def token_values(plan: Plan, values: list[int], index: int = 0) -> np.ndarray:
    """A value per AR step as a map of the tokens, (h, w) int64; 0 where the plan leaves a token alone."""
    result = np.zeros(plan.tokens, np.int64)
    for step, value in zip(plan.steps, values):
        result[step.targets[index]] = value
    return result.reshape(plan.grid)


def _draw_maps(sheet: Drawing, plan: Plan, cell: int, index: int) -> None:
    """Side by side: stage in the stages' colours, AR step and diffusion steps from dark to light, all of a
    token's first drawing."""
    plan = plan.without_revision()
    stage = token_values(plan, [step.stage for step in plan.steps], index)
    order = token_values(plan, list(range(1, len(plan.steps) + 1)), index)
    diffusion = token_values(plan, [step.diffusion_steps for step in plan.steps], index)
    below = MAPS_TOP + cell * plan.grid[0] + 10
    colours = np.stack([KNOWN, *(stage_colour(k) for k in range(1, plan.schedule.stages + 1))])[stage]
    place = _draw_map(sheet, colours, cell, 0, "stage")
    for k in range(1, plan.schedule.stages + 1):
        sheet.swatch(place, below, stage_colour(k))
        sheet.text(place + SWATCH + 6, below, str(k))
        place += SWATCH + text_width(str(k)) + 24
    for column, (values, title) in enumerate(((order, "AR step"), (diffusion, "diffusion steps")), start=1):
        low, high = (int(f(values[stage > 0])) if plan.steps else 0 for f in (np.min, np.max))
        shades = viridis((values - low) / max(high - low, 1))
        left = _draw_map(sheet, np.where(stage[..., None] > 0, shades, KNOWN), cell, column, title)
        if low < high:
            sheet.colour_bar(left, below, MAP, str(low), str(high))
        else:
            sheet.text(left, below, f"{low} everywhere")


def _draw_map(sheet: Drawing, colours: np.ndarray, cell: int, column: int, title: str) -> int:
    """Draws colours (h, w, 3) below a title; returns the left edge."""
    left = GAP + column * (MAP + GAP)
    sheet.text(left, MAPS_TOP - LINE, title)
    sheet.cells(left, MAPS_TOP, colours, (cell, cell), gap=int(cell > 4))
    return left


def _draw_chart(
    sheet: Drawing, left: int, top: int, width: int, plan: Plan, values: list[int], outlines: list[int], title: str
) -> None:
    """A bar per AR step in its stage's colour, inside the outline of another value where that is larger."""
    most = max([*values, *outlines], default=1)
    sheet.text(left, top, title)
    left, top, width = left + AXIS, top + LINE + 4, width - AXIS
    base = top + CHART
    edges = [left + edge for edge in _edges(len(values), width)]
    for line, label in ((top, str(most)), (base, "0")):
        sheet.rectangle(left, line, edges[-1] - left, 1, FAINT)
        sheet.text(left - 8, line - 8, label, align="right")
    gap = 1 if len(values) <= width // 4 else 0
    for step, value, outline, start, end in zip(plan.steps, values, outlines, edges, edges[1:]):
        side = max(end - start - gap, 1)
        height, frame = (max(1, CHART * number // most) for number in (value, outline))
        if outline > value:
            sheet.frame(start, base - frame, side, frame)
        sheet.rectangle(start, base - height, side, height, step_colour(step))
    sheet.text(left, base + 8, "1")
    sheet.text((left + edges[-1]) // 2, base + 8, "AR step", align="middle")
    sheet.text(edges[-1], base + 8, str(len(values)), align="right")


def _edges(count: int, width: int) -> list[int]:
    """Where ``count`` bars begin and the last one ends: all equally wide while there is room for that."""
    if 0 < count <= width // 4:
        width -= width % count
    return [width * k // max(count, 1) for k in range(count + 1)]


def _facts(plan: Plan) -> str:
    return (
        f"{ar_steps(len(plan.steps))}, {plan.grid[0]} x {plan.grid[1]} tokens, {plan.schedule.order} order, "
        f"{plan.schedule.decoder_scope} decoder scope"
    )


def _legend(plan: Plan) -> list[tuple[str, np.ndarray | tuple | None]]:
    """Lines of text, each with its colour; None for the outline."""
    fts, lines = plan.method.fts, []
    drawn = plan.without_revision().steps
    for stage in range(1, plan.schedule.stages + 1):
        steps = [step for step in drawn if step.stage == stage]
        if steps:
            lines.append((_describe(steps), stage_colour(stage)))
    lines += [(_describe([step]), REVISED) for step in plan.steps if step.revision]
    known = plan.tokens - sum(step.tokens for step in drawn)
    if known:
        lines.append((f"known: {known} tokens", KNOWN))
    if fts is not None and any(step.reconstruction for step in plan.steps):
        lines.append(
            (
                f"FTS: {fts.selection} {fts.fraction:.0%} of each reconstruction step, "
                f"{fts.detail_steps} diffusion steps",
                None,
            )
        )
    return lines


def _describe(steps: list[Step]) -> str:
    """One stage in words."""
    first = steps[0]
    what = first.kind if first.revision else f"stage {first.stage}, {first.kind}"
    diffusion = " to ".join(map(str, dict.fromkeys((first.diffusion_steps, steps[-1].diffusion_steps))))
    return f"{what}: {sum(step.tokens for step in steps)} tokens in {ar_steps(len(steps))}, {diffusion} diffusion steps"
