"""Faults and hostile values in a real ComfyUI: interrupts, memory that runs out, absurd widgets, no network."""

from __future__ import annotations

import copy
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from gtr_tests.client import Client, Run
    from gtr_tests.in_process import HostPack

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTS = 8


def demo(seed: int = 7, **changes: Any) -> dict[str, Any]:
    """The demo workflow with two images, few steps and changed inputs, as n5_steps="2, 1"."""
    graph = json.loads((ROOT / "workflows" / "api" / "demo.json").read_text(encoding="utf-8"))
    graph["4"]["inputs"]["batch_size"] = 2
    graph["5"]["inputs"].update(
        preset="custom", steps="4, 2, 1", diffusion_start=8, diffusion_end=6, diffusion_reconstruction=6
    )
    graph["7"]["inputs"]["seed"] = seed
    for place, value in changes.items():
        node, _, name = place.partition("_")
        graph[node[1:]]["inputs"][name] = value
    return graph


def images(run: Run) -> list[Any]:
    from gtr_tests.client import pixels

    return [pixels(image) for node in sorted(run.images) for image in run.images[node]]


def test_interrupts_at_random_moments(client: Client) -> None:
    moments, caught = random.Random(3), 0
    expected = images(client.prompt(demo(seed=1000)))
    for number in range(INTERRUPTS):
        at, answers = moments.randint(0, 6), []

        def stop(message: Any) -> None:
            if not answers and getattr(message, "type", "") == "progress" and message.data["value"] >= at:
                time.sleep(moments.random() * 0.1)
                answers.append(client.interrupt())

        run = client.prompt(demo(seed=2000 + number), expect_errors=True, on_event=stop)
        assert run.status in ("interrupted", "success")
        caught += run.status == "interrupted"
    assert caught >= INTERRUPTS // 2
    client.free()
    assert images(client.prompt(demo(seed=1000))) == expected


ABSURD = {
    "7_cfg": (math.nan, math.inf, 1e308, -5, "x", None, [], {}, ["7", 0], True),
    "7_seed": (-1, 2**64, 1e300, "abc", None, 10**400),
    "7_temperature": (math.nan, -1, 1e9, "hot"),
    "7_cfg_schedule": ("wavy", 0, None, "../linear"),
    "4_width": (-16, 2**31, 1e18, "wide", 17),
    "4_batch_size": (0, -1, 10**9, math.nan),
    "5_preset": ("../../etc/passwd", "", 5, None),
    "5_steps": ("9" * 5000, "1," * 20_000, "nan", "-1", "\n", "1;2;x", "\u0663\u0664", "0x10", 3, [[["5", 0]]]),
    "5_rates": ("inf", "nan", "1e-300", "-2", "1e308,1", "x" * 100_000),
    "5_diffusion_start": (0, 10**9, -1, 1.5, "many"),
    "6_fraction": (math.nan, math.inf, -1, 0, 5, "all"),
    "6_detail_steps": (0, 10**9, -1),
    "3_class_list": ("x" * 1_000_000, "-1", "9" * 5000, "\x00", "\u2028", "0," * 5000),
    "3_class_name": ("nobody", "999999: x", 5, "demo x: y"),
    "1_model_name": ("../../../etc/passwd", "/etc/passwd", "", None, "demo (built-in)/..", "x.pth"),
    "10_rows": (0, 257, 10**9, -1),
}


def test_absurd_widget_values(client: Client) -> None:
    """Refused by the host's own checks, or ended by one line of ours; afterwards the server works as before."""
    expected, ends = images(client.prompt(demo())), Counter()
    for place, values in ABSURD.items():
        for value in values:
            run = client.prompt(demo(**{f"n{place}": value}), expect_errors=True, timeout=60)
            ends[run.status] += 1
            if run.status == "error":
                said = run.error["exception_message"].strip()
                assert "GtRError" in run.error["exception_type"], (place, repr(value)[:80], said[:300])
                assert said.isprintable() and len(said) < 1100, (place, repr(value)[:80])
    print(f"{sum(ends.values())} absurd values: {dict(ends)}")
    assert ends["refused"] + ends["error"] > 40
    assert images(client.prompt(demo())) == expected


@pytest.fixture
def inference() -> Iterator[None]:
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


class Nodes:
    """The pack's nodes by id, called as the host calls them."""

    def __init__(self, pack: HostPack) -> None:
        self.pack, self.counts = pack, Counter()
        self.model = self("GtR_LoadMAR", model_name="demo (built-in)")[0]

    def __call__(self, node: str, **inputs: Any) -> tuple:
        return self.pack.classes[node].execute(**inputs).result

    def draw(self, acceleration: str = "auto") -> torch.Tensor:
        """A small run."""
        label = self("GtR_ClassCondition", model=self.model, class_name="", class_list="0")[0]
        schedule = self(
            "GtR_Scheduler",
            preset="custom",
            steps="2, 1",
            diffusion_start=3,
            diffusion_end=3,
            diffusion_reconstruction=3,
        )[0]
        latent = self("GtR_EmptyLatent", model=self.model, width=0, height=0)[0]
        return self(
            "GtR_Sampler",
            model=self.model,
            positive=label,
            schedule=schedule,
            latent_image=latent,
            seed=1,
            cfg=2.0,
            cfg_schedule="linear",
            temperature=1.0,
            acceleration=acceleration,
        )[0]["samples"]


@pytest.fixture
def nodes(host_pack: HostPack, inference: None) -> Nodes:
    return Nodes(host_pack)


def test_memory_that_runs_out_in_the_host(nodes: Nodes) -> None:
    """The error keeps the type by which the host knows it and unloads its models; the next run is right. Without
    acceleration, which goes on without packed weights where they find no memory."""
    import comfy.model_management as mm
    from gtr_tests.faults import Fault

    expected, accelerated = nodes.draw("off"), nodes.draw()
    with Fault() as whole:
        nodes.draw("off")
    for share in (0.05, 0.3, 0.6, 0.95):
        fault = Fault(int(whole.count * share))
        with pytest.raises(mm.OOM_EXCEPTION) as caught, fault:
            nodes.draw("off")
        del caught
        mm.unload_all_models()
        assert torch.equal(nodes.draw("off"), expected) and torch.equal(nodes.draw(), accelerated)


def test_no_network_in_the_host(nodes: Nodes) -> None:
    """Python reports every connection and name look-up to audit hooks; a hook stays, so it listens only here."""
    seen, listening = [], [True]

    def hook(event: str, arguments: tuple) -> None:
        if listening and event.startswith(("socket.connect", "socket.getaddrinfo", "subprocess.", "os.system")):
            seen.append((event, arguments))

    sys.addaudithook(hook)
    try:
        samples = nodes.draw()
        vae = nodes("GtR_LoadMARVAE", vae_name="demo (built-in)")[0]
        assert vae.decode(samples).ndim == 4
    finally:
        listening.clear()
    assert seen == []


NUMBER = st.one_of(st.integers(-2, 70), st.sampled_from((0, 256, 257, 1000, 1001, 2**31, 2**64)))
TEXT = st.one_of(
    st.lists(NUMBER, max_size=4).map(lambda n: ", ".join(map(str, n))),
    st.text(max_size=12),
    st.sampled_from(("nan", "inf, 1", "1e9", "2.67, 10.67, 64", ";;", "9" * 5000)),
)


def test_node_widgets_at_random(nodes: Nodes) -> None:
    """Values that the host would let through, and others: a node answers, or says in one line why not."""
    schemas = {name: cls.GET_SCHEMA() for name, cls in nodes.pack.classes.items()}

    def options(node: str, name: str) -> st.SearchStrategy:
        found = next(i for i in schemas[node].inputs if i.id == name)
        return st.one_of(st.sampled_from(list(found.options)), st.text(max_size=4))

    widgets = st.fixed_dictionaries(
        {
            "GtR_Scheduler": st.fixed_dictionaries(
                {
                    "preset": st.just("custom"),
                    "order": options("GtR_Scheduler", "order"),
                    "steps": TEXT,
                    "rates": TEXT,
                    "partition": options("GtR_Scheduler", "partition"),
                    "decoder_scope": options("GtR_Scheduler", "decoder_scope"),
                    "diffusion_start": NUMBER,
                    "diffusion_end": NUMBER,
                    "diffusion_reconstruction": NUMBER,
                }
            ),
            "GtR_BaselineScheduler": st.fixed_dictionaries(
                {
                    "method": st.sampled_from(("origin", "step-n", "raster", "subsample", "halton", "disa")),
                    "ar_steps": NUMBER,
                    "diffusion_steps": NUMBER,
                    "disa_end": NUMBER,
                    "halton_shift": st.booleans(),
                }
            ),
            "GtR_FTS": st.fixed_dictionaries(
                {"fraction": st.floats(), "detail_steps": NUMBER, "selection": options("GtR_FTS", "selection")}
            ),
            "GtR_LazyMAR": st.fixed_dictionaries(
                dict.fromkeys(("start_step", "period", "prune_block", "extra", "head_period"), NUMBER)
            ),
            "GtR_EmptyLatent": st.fixed_dictionaries(
                {"width": NUMBER.map(lambda n: 16 * n), "height": NUMBER, "batch_size": st.integers(1, 4096)}
            ),
            "GtR_ClassCondition": st.fixed_dictionaries({"class_name": st.text(max_size=8), "class_list": TEXT}),
        }
    )

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(widgets, st.integers(1, 20), st.integers(1, 20))
    def check(values: dict[str, dict], rows: int, columns: int) -> None:
        made = {}
        for node, inputs in copy.deepcopy(values).items():
            if node in ("GtR_EmptyLatent", "GtR_ClassCondition"):
                inputs["model"] = nodes.model
            nodes.counts["tried"] += 1
            try:
                made[node] = nodes(node, **inputs)[0]
            except ValueError as error:
                one_line(error)
        for node in ("GtR_Scheduler", "GtR_BaselineScheduler"):
            if node in made:
                try:
                    make_plan = nodes.pack.module("gtr_core.plans.plan").make_plan
                    method = nodes.pack.module("gtr_core.plans.method").Method(made[node])
                    assert make_plan(method, (rows, columns), (1,)).steps
                except ValueError as error:
                    one_line(error)

    def one_line(error: ValueError) -> None:
        nodes.counts["refused"] += 1
        assert type(error).__name__ == "GtRError" and str(error).isprintable() and len(str(error)) < 1100, repr(error)

    check()
    print(f"{nodes.counts['tried']} widget settings, {nodes.counts['refused']} refused")
