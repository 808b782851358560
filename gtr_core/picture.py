"""Pictures of a plan: the order of the tokens, and tokens and diffusion steps per AR step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .fts import FTS
from .plan import Plan

# Okabe and Ito's colours, which colour-blind people can tell apart; one per stage, in light to full shades by step.
STAGE_COLOURS = np.array([(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233)])
INK, PAPER, KNOWN, FAINT = (40, 40, 40), (255, 255, 255), (225, 225, 225), (190, 190, 190)
MAP, MARGIN, CHART, SCALE = 384, 16, 420, 2

# A 3 x 5 font; every digit is a row of three bits.
FONT = dict(
    zip(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.:/%+=,()_±",
        (
            "25755 65656 34443 65556 74647 74644 34553 55755 72227 11152 55655 44447 57755 65555 25552 65644 25573 "
            "65655 34216 72222 55557 55552 55775 55255 55222 71247 75557 26227 61247 61216 55711 74616 34757 71222 "
            "75757 75716 00700 00002 02020 11244 51245 02720 07070 00024 12221 42224 00007 27207"
        ).split(),
    )
)


def draw_plan(plan: Plan, fts: FTS | None = None, image: int = 0) -> np.ndarray:
    """The plan of one image as (H, W, 3) uint8: left the order (dark = late within its stage), right the steps."""
    colours = _step_colours(plan)
    cell = max(2, MAP // max(plan.grid))
    height, width = plan.grid[0] * cell, plan.grid[1] * cell
    lines = _legend(plan, fts)
    legend = 6 * SCALE * len(lines)
    canvas = np.full((max(height, MAP) + legend + 3 * MARGIN, width + CHART + 3 * MARGIN, 3), PAPER, np.uint8)
    _draw_map(canvas[MARGIN:, MARGIN:], plan, colours, cell, image)
    _draw_chart(canvas[MARGIN:MARGIN + max(height, MAP), width + 2 * MARGIN:-MARGIN], plan, colours)
    for row, (text, colour) in enumerate(lines):
        top = max(height, MAP) + 2 * MARGIN + row * 6 * SCALE
        if colour is not None:
            canvas[top:top + 10, MARGIN:MARGIN + 10] = colour
        draw_text(canvas, text, top, MARGIN + 16)
    return canvas


def draw_bars(rows: list[tuple[str, float, str]], title: str, errors: Sequence[float] = ()) -> np.ndarray:
    """Horizontal bars for (name, value, label) as (H, W, 3) uint8, with half widths of intervals if given."""
    line, left, width = 24, 190, 640
    canvas = np.full((2 * MARGIN + line * (len(rows) + 1), left + width + 260, 3), PAPER, np.uint8)
    draw_text(canvas, title, MARGIN, MARGIN)
    errors = tuple(errors) or (0.0,) * len(rows)
    top = max((value + error for (_, value, _), error in zip(rows, errors)), default=1.0) or 1.0
    for index, ((name, value, label), error) in enumerate(zip(rows, errors), start=1):
        y, length = MARGIN + line * index, max(1, int(width * value / top))
        draw_text(canvas, name, y + 4, MARGIN)
        canvas[y:y + line - 6, left:left + length] = STAGE_COLOURS[0 if index == 1 else 1]
        reach = int(width * error / top)
        if reach:
            canvas[y + 8:y + 10, max(left, left + length - reach):left + length + reach] = INK
        draw_text(canvas, label, y + 4, left + length + reach + 8)
    return canvas


def draw_text(canvas: np.ndarray, text: str, top: int, left: int, colour=INK) -> None:
    """Write ``text`` in capitals into (H, W, 3), clipped at the border."""
    for index, glyph in enumerate(FONT.get(character, "00000") for character in text.upper()):
        bits = np.array([[int(row) >> shift & 1 for shift in (2, 1, 0)] for row in glyph], bool)
        bits = bits.repeat(SCALE, 0).repeat(SCALE, 1)
        area = canvas[top:top + 5 * SCALE, left + 4 * SCALE * index:left + 4 * SCALE * index + 3 * SCALE]
        area[bits[:area.shape[0], :area.shape[1]]] = colour


def _step_colours(plan: Plan) -> list[np.ndarray]:
    """One colour per AR step: the stage's hue, from light (first) to full (last)."""
    colours = []
    for step in plan.steps:
        own = [s for s in plan.steps if s.stage == step.stage]
        share = (own.index(step) + 1) / len(own)
        hue = STAGE_COLOURS[(step.stage - 1) % len(STAGE_COLOURS)]
        colours.append((255 - (255 - hue) * (0.25 + 0.75 * share)).astype(np.uint8))
    return colours


def _draw_map(area: np.ndarray, plan: Plan, colours: list[np.ndarray], cell: int, image: int) -> None:
    order = np.full((plan.tokens, 3), KNOWN, np.uint8)
    for step, colour in zip(plan.steps, colours):
        order[step.positions[image]] = colour
    picture = order.reshape(*plan.grid, 3).repeat(cell, 0).repeat(cell, 1)
    picture[::cell] = picture[:, ::cell] = PAPER
    area[:picture.shape[0], :picture.shape[1]] = picture


def _draw_chart(area: np.ndarray, plan: Plan, colours: list[np.ndarray]) -> None:
    """Bars: tokens per AR step (above), diffusion steps per AR step (below)."""
    middle = area.shape[0] // 2
    rows = ((area[:middle - 8], [step.tokens for step in plan.steps], "tokens per AR step"),
            (area[middle + 8:], [step.diffusion_steps for step in plan.steps], "diffusion steps per AR step"))
    for panel, values, title in rows:
        top = max(values, default=1)
        draw_text(panel, f"{title} (max {top})", 0, 0)
        base, span, width = panel.shape[0] - 2, panel.shape[0] - 24, panel.shape[1] / max(len(values), 1)
        panel[base:base + 2] = FAINT
        for index, (value, colour) in enumerate(zip(values, colours)):
            left, right = int(index * width), max(int((index + 1) * width) - 1, int(index * width) + 1)
            panel[base - max(1, span * value // top):base, left:right] = colour


def _legend(plan: Plan, fts: FTS | None) -> list[tuple[str, np.ndarray | None]]:
    schedule = plan.schedule
    lines: list[tuple[str, np.ndarray | None]] = [
        (f"{schedule.name}: {len(plan.steps)} AR steps, {plan.grid[0]} x {plan.grid[1]} tokens, "
         f"{schedule.decoder_scope} decoder scope" + (f", {schedule.partition}" if schedule.stages > 2 else ""), None)]
    for stage in range(1, schedule.stages + 1):
        own = [step for step in plan.steps if step.stage == stage]
        if own:
            kind = "reconstruction" if own[0].reconstruction else "generation"
            diffusion = " - ".join(map(str, dict.fromkeys((own[0].diffusion_steps, own[-1].diffusion_steps))))
            lines.append((f"stage {stage} ({kind}): {sum(step.tokens for step in own)} tokens in {len(own)} steps, "
                          f"{diffusion} diffusion steps", STAGE_COLOURS[(stage - 1) % len(STAGE_COLOURS)]))
    if fts is not None and any(step.reconstruction for step in plan.steps):
        lines.append((f"FTS: {fts.selection} {fts.fraction:.0%} of each reconstruction step: {fts.detail_steps} "
                      "diffusion steps", None))
    return lines
