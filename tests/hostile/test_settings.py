"""Settings of every kind at random: what is accepted gives a plan that covers every token once, the rest one line."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.drawing.plan_figure import plan_figure
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.labels import parse_labels
from gtr_pack.gtr_core.models.mar import mar_spec
from gtr_pack.gtr_core.plans.fts import FTS, SELECTIONS, select
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.orders import ORDERS, PHASES
from gtr_pack.gtr_core.plans.partition import PARTITIONS
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import PRESETS
from gtr_pack.gtr_core.plans.schedule import PROFILES, SCOPES, Schedule
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = settings(
    max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
COUNTS = st.one_of(st.integers(1, 12), st.sampled_from((0, -1, 64, 65_536, 65_537, 2**31, 2**63, 10**30)))
RATES = st.one_of(st.floats(1, 20), st.sampled_from((0.0, -1.0, math.nan, math.inf, 1e-320, 1e308)))
SIDES = st.one_of(st.integers(1, 12), st.sampled_from((0, -1, 257, 2**31, 2**63)))
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        (
            "",
            "nan",
            "inf",
            "-1",
            "1e400",
            "9" * 6000,
            "24,6,2",
            "٣",
            "\n",
            "1" + ",1" * 5000,
            "1,,2",
            "0x10",
            "--",
            "-o",
            "\ud800",
        )
    ),
)


def one_line(error: Exception) -> None:
    text = str(error)
    assert text.isprintable() and 10 < len(text) < 1100, repr(text)


def choice(options) -> st.SearchStrategy:
    """Mostly one of the options, at times another word."""
    return st.one_of(st.sampled_from(list(options)), st.sampled_from(list(options)), st.text(max_size=5))


SCHEDULES = st.fixed_dictionaries(
    {"name": st.just("x"), "order": choice(ORDERS)},
    optional={
        "steps": st.lists(COUNTS, max_size=4).map(tuple),
        "rates": st.lists(RATES, max_size=4).map(tuple),
        "diffusion": st.lists(st.one_of(st.integers(1, 50), COUNTS), min_size=2, max_size=4).map(tuple),
        "partition": choice(PARTITIONS),
        "decoder_scope": choice(SCOPES),
        "profile": choice(PROFILES),
        "max_timestep": st.one_of(st.none(), COUNTS),
        "phases": choice(PHASES),
        "shift": st.booleans(),
    },
)


@FEW
@given(SCHEDULES, st.tuples(SIDES, SIDES), st.integers(0, 3), st.randoms(use_true_random=False))
def check_schedule(counts, fields: dict, grid: tuple[int, int], batch: int, chance) -> None:
    counts["settings"] += 1
    try:
        schedule = Schedule(**fields)
        unknown = None
        if min(grid) > 0 and max(grid) < 13 and chance.random() < 0.5:
            unknown = np.array([[chance.random() < 0.5 for _ in range(grid[1])] for _ in range(grid[0])])
        plan = make_plan(Method(schedule), grid, tuple(range(batch)), unknown=unknown)
    except GtRError as error:
        return one_line(error)
    wanted = np.flatnonzero(np.ones(grid, bool) if unknown is None else unknown)
    for image in range(batch):
        decoded = np.concatenate([step.targets[image] for step in plan.steps] or [np.array([], int)])
        assert sorted(decoded) == wanted.tolist()
    assert all(1 <= step.diffusion_steps <= 1000 for step in plan.steps)
    if plan.steps:
        assert plan_figure(plan).dtype == np.uint8 and json.dumps(plan.to_dict())


@FEW
@given(
    st.sampled_from((8, 8, 8, 0, 7, 40)), st.sampled_from((8, 8, 8, 0, 64)), st.integers(-3, 103), st.integers(0, 10)
)
def check_masks(counts, rows: int, columns: int, percent: int, seed: int) -> None:
    """Masks of any shape, against a grid that is another."""
    counts["masks"] += 1
    mask = np.random.default_rng(seed).random((rows, columns)) < percent / 100
    try:
        plan = make_plan(Method(PRESETS["origin"]), (8, 8), (seed,), unknown=mask)
    except GtRError as error:
        return one_line(error)
    assert sum(step.tokens for step in plan.steps) == mask.sum()


@FEW
@given(
    st.one_of(st.floats(0.001, 1), st.floats()),
    COUNTS,
    choice(SELECTIONS),
    st.integers(1, 30),
    st.tuples(*[COUNTS] * 5),
    st.floats(),
    choice(("linear", "constant")),
)
def check_small_settings(counts, fraction, detail, selection, tokens, lazy, scale, schedule) -> None:
    counts["small settings"] += 1
    for make in (lambda: FTS(fraction, detail, selection), lambda: LazyMAR(*lazy), lambda: Guidance(scale, schedule)):
        try:
            made = make()
        except GtRError as error:
            one_line(error)
            continue
        if isinstance(made, FTS):
            rows = select(made, torch.randn(2, tokens, 8), torch.arange(tokens).expand(2, -1))
            assert sorted(torch.cat(rows, 1)[0].tolist()) == list(range(tokens)) and rows[0].shape[1] >= 1


@FEW
@given(WORDS)
def check_labels(counts, text: str) -> None:
    counts["class lists"] += 1
    try:
        labels = parse_labels(text, mar_spec("mar-b"))
    except GtRError as error:
        return one_line(error)
    assert labels and all(0 <= label < 1000 for label in labels)


OPTIONS = (
    "--preset",
    "--grid",
    "--seed",
    "--steps",
    "--rates",
    "--diffusion",
    "--partition",
    "--scope",
    "--order",
    "--fts",
    "--fts-fraction",
    "--fts-steps",
    "--model",
    "--cache",
    "--json",
    "--no-cfg",
    "--heads",
    "--weird",
)
VALUES = st.one_of(
    WORDS,
    COUNTS.map(str),
    st.lists(COUNTS, max_size=4).map(lambda c: ",".join(map(str, c))),
    st.sampled_from([*PRESETS, *ORDERS, *PARTITIONS, *SCOPES, "16x16", "3x5", "0x0", "mar-b", "lightgen"]),
    RATES.map(str),
)


@FEW
@given(
    st.sampled_from(("schedule", "flops", "info", "generate", "bench", "nothing")),
    st.lists(st.tuples(st.sampled_from(OPTIONS), VALUES), max_size=4),
)
def check_arguments(counts, verb: str, pairs: list[tuple[str, str]]) -> None:
    """0 with a report, or 2 with a line that begins with error (argparse's own has the usage above it)."""
    counts["command lines"] += 1
    end = {"info": ["nowhere"], "generate": ["--model", "nowhere"], "bench": ["--presets", "nothing"]}.get(verb, [])
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([verb, *(word for pair in pairs for word in pair), *end])
        except SystemExit as error:
            code = error.code
    text = err.getvalue()
    assert code in (0, 2), text
    if code:
        assert "error: " in text.splitlines()[-1] or "usage: " in text and "error: " in text
        assert text.startswith("usage: ") or text.count("\n") == 1
        assert "Traceback" not in text


@pytest.mark.parametrize(
    "check",
    [check_schedule, check_masks, check_small_settings, check_labels, check_arguments],
    ids=lambda check: check.__name__.removeprefix("check_"),
)
def test_settings_are_accepted_or_end_in_one_line(check, tally) -> None:
    counts = Counter()
    check(counts)
    for what, count in counts.items():
        tally(what, count)
