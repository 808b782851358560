"""Every way to edit an image, in a real ComfyUI: kept tokens come back bitwise, all others are drawn anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from gtr_tests import rest, sharing
from safetensors.torch import load_file

if TYPE_CHECKING:
    from gtr_tests.client import Client

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
DEMO = "demo (built-in)"
# The nodes that give the latent of the image and of what becomes of it.
GIVEN = {"inpaint": "11", "variations": "7", "outpaint": "7"}
DRAWN = "20"
"""The nodes of the shipped editing workflows that make the image and change it."""


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


class Editing:
    """The demo model, a short schedule and the host's node classes."""

    def __init__(self, pack: Any) -> None:
        self.pack = pack
        self.model = self.run("GtR_LoadMAR", model_name=DEMO)[0]
        self.schedule = self.run(
            "GtR_Scheduler",
            preset="custom",
            steps="3, 2, 1",
            diffusion_start=4,
            diffusion_end=3,
            diffusion_reconstruction=3,
        )[0]
        self.positive = self.run(
            "GtR_ClassCondition", model=self.model, class_name="demo 0: animal face", class_list="0, 1"
        )[0]
        spec = self.model.spec
        self.grid, self.token = spec.grid, spec.latent.stride * spec.latent.patch

    def run(self, node: str, **inputs: Any) -> tuple:
        return self.pack.classes[node].execute(**inputs).result

    def image(self, batch: int = 2) -> dict:
        """Random values in the place of an image's latent."""
        shape = (batch, self.model.spec.latent.channels, *(side * self.model.spec.latent.patch for side in self.grid))
        return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(4))}

    def sample(self, latent: dict, **inputs: Any) -> tuple:
        return self.run(
            "GtR_Sampler",
            **{
                "model": self.model,
                "positive": self.positive,
                "schedule": self.schedule,
                "latent_image": latent,
                "seed": 5,
                "cfg": 2.0,
                "cfg_schedule": "linear",
                "temperature": 1.0,
            }
            | inputs,
        )

    def redraw(self, latent: dict, redraw: str, **inputs: Any) -> dict:
        return self.run("GtR_Redraw", model=self.model, schedule=self.schedule, latent=latent, redraw=redraw, **inputs)[
            0
        ]

    def outpaint(self, latent: dict, **tokens: int) -> dict:
        return self.run(
            "GtR_Outpaint",
            model=self.model,
            latent=latent,
            **{side: count * self.token for side, count in tokens.items()},
        )[0]


@pytest.fixture(scope="module")
def editing(host_pack: Any) -> Editing:
    with torch.inference_mode():
        return Editing(host_pack)


def parity(rows: int, columns: int) -> torch.Tensor:
    """(i + j) mod 2: 1 is the colour of the reconstruction."""
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (i + j) % 2 == 1


def assert_drawn(before: torch.Tensor, after: torch.Tensor, drawn: torch.Tensor) -> None:
    """``drawn`` (h, w) or (B, h, w) tokens have new values in every channel, all others are bitwise the same."""
    patch = after.shape[-1] // drawn.shape[-1]
    cells = drawn.repeat_interleave(patch, -1).repeat_interleave(patch, -2)
    cells = (cells if cells.ndim == 3 else cells[None])[:, None].expand_as(after)
    assert torch.equal(after[~cells], before[~cells])
    assert (after[cells] != before[cells]).all() and torch.isfinite(after).all()


def square(rows: int, columns: int) -> torch.Tensor:
    """The inpainting workflow's mask: the middle."""
    drawn = torch.zeros(rows, columns, dtype=torch.bool)
    drawn[rows // 4 : -(rows // 4), columns // 4 : -(columns // 4)] = True
    return drawn


def structure_kept(rows: int, columns: int) -> torch.Tensor:
    """All but stage 1 of three: what (row + column) mod 4 = 0 holds is kept."""
    return (torch.arange(rows)[:, None] + torch.arange(columns)) % 4 != 0


SHIPPED: dict[str, Callable[[int, int], torch.Tensor]] = {"inpaint": square, "variations": structure_kept}


def latents(client: Client, base: Path, name: str, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a shipped editing workflow with few steps; its image's latent before and after."""
    graph = json.loads((API / f"demo_{name}.json").read_text(encoding="utf-8"))
    graph["5"]["inputs"].update(
        preset="custom", steps="3, 2, 1", diffusion_start=4, diffusion_end=3, diffusion_reconstruction=3
    )
    for node, inputs in changes.items():
        graph[node.lstrip("n")]["inputs"].update(inputs)
    if name == "inpaint":
        rest.upload(client.url, sharing.EXAMPLE.name, sharing.EXAMPLE.read_bytes())
    for node in (GIVEN[name], DRAWN):
        graph[f"9{node}"] = {
            "class_type": "SaveLatent",
            "inputs": {"samples": [node, 0], "filename_prefix": f"edit/{name}_{node}"},
        }
    client.prompt(graph)
    files = [
        max((base / "output" / "edit").glob(f"{name}_{node}_*.latent"), key=lambda path: path.name)
        for node in (GIVEN[name], DRAWN)
    ]
    before, after = (load_file(file)["latent_tensor"] for file in files)
    return before, after


@pytest.mark.parametrize("name", SHIPPED)
def test_masks_of_the_shipped_workflows(client: Client, comfy_base: Path, editing: Editing, name: str) -> None:
    before, after = latents(client, comfy_base, name)
    assert_drawn(before.expand_as(after), after, SHIPPED[name](*editing.grid))
    # Variations of one image differ from each other wherever they are drawn.
    for one, other in zip(after, after[1:]):
        assert_drawn(one[None], other[None], SHIPPED[name](*editing.grid))


@pytest.mark.parametrize("redraw, drawn", [("reconstruction", 1 / 2), ("denoise", 1 / 4)])
def test_redraws_over_http(client: Client, comfy_base: Path, editing: Editing, redraw: str, drawn: float) -> None:
    before, after = latents(
        client, comfy_base, "variations", n11={"redraw": redraw, "denoise": drawn}, n12={"amount": 1}
    )
    patch = editing.model.spec.latent.patch
    changed = (before != after).any(1)[0, ::patch, ::patch]
    assert int(changed.sum()) == drawn * changed.numel()
    assert (changed <= parity(*editing.grid)).all()
    assert_drawn(before, after, changed)


def test_the_shipped_outpainting(client: Client, comfy_base: Path, editing: Editing) -> None:
    before, after = latents(client, comfy_base, "outpaint")
    rows, columns = editing.grid
    graph = json.loads((API / "demo_outpaint.json").read_text(encoding="utf-8"))
    left, right = (graph["11"]["inputs"][side] // editing.token for side in ("left", "right"))
    place = torch.arange(left + columns + right).expand(rows, -1)
    drawn = (place < left) | (place >= left + columns)
    patch = editing.model.spec.latent.patch
    padded = torch.nn.functional.pad(before, (left * patch, right * patch))
    assert after.shape == padded.shape
    assert_drawn(padded, after, drawn)


@pytest.mark.parametrize("redraw", ["reconstruction", "variations"])
def test_redraws_keep_the_tokens_of_every_image(editing: Editing, redraw: str) -> None:
    given = editing.image()
    drawn = parity(*editing.grid) if redraw == "reconstruction" else structure_kept(*editing.grid)
    prepared = editing.redraw(given, redraw)
    assert torch.equal(prepared["samples"], given["samples"]) and "noise_mask" not in given
    assert_drawn(given["samples"], editing.sample(prepared)[0]["samples"], drawn)


def test_a_share_of_nothing_and_of_everything(editing: Editing) -> None:
    given = editing.image()
    assert torch.equal(editing.sample(editing.redraw(given, "denoise", denoise=0.0))[0]["samples"], given["samples"])
    whole = editing.sample(editing.redraw(given, "denoise", denoise=1.0))[0]["samples"]
    assert torch.equal(whole, editing.sample({"samples": given["samples"]})[0]["samples"])


def test_a_redraw_stays_inside_the_mask_of_every_image(editing: Editing) -> None:
    given, (rows, columns) = editing.image(), editing.grid
    mask = torch.zeros(2, 1, rows, columns)
    mask[0, :, : rows // 2] = 1
    mask[1, :, :, :3] = 1
    out = editing.sample(editing.redraw(given | {"noise_mask": mask}, "reconstruction"))[0]
    assert_drawn(given["samples"], out["samples"], mask[:, 0].bool() & parity(rows, columns))


def test_outpainting_on_all_sides_keeps_the_image(editing: Editing) -> None:
    given, (rows, columns) = editing.image(), editing.grid
    patch = editing.model.spec.latent.patch
    larger = editing.outpaint(given | {"noise_mask": torch.ones(1, 8, 8)}, left=2, top=3, right=4, bottom=1)
    out, report, spent = editing.sample(larger)
    drawn = torch.ones(rows + 4, columns + 6, dtype=torch.bool)
    drawn[3 : 3 + rows, 2 : 2 + columns] = False
    padded = torch.nn.functional.pad(given["samples"], [side * patch for side in (2, 4, 3, 1)])
    assert_drawn(padded, out["samples"], drawn)
    assert "window 1 of 4:" in report and "window 4 of 4:" in report
    # Every unknown token was decoded exactly once, by at most the steps of the schedule's first step.
    assert ((spent.steps > 0) == drawn.numpy()).all() and spent.steps.max() <= 4


def test_an_outpainted_image_can_be_outpainted_and_redrawn(editing: Editing) -> None:
    rows, columns = editing.grid
    first = editing.sample(editing.outpaint(editing.image(), right=2))[0]
    second = editing.outpaint(first, left=2)
    assert int(second["noise_mask"].amax((0, 1)).sum()) == 2 * rows * editing.token**2
    out = editing.sample(second)[0]
    assert torch.equal(out["samples"][..., 2 * editing.model.spec.latent.patch :], first["samples"])
    mask = torch.zeros(1, rows, columns + 4)
    mask[:, :, :4] = 1
    again = editing.sample(out | {"noise_mask": mask}, seed=9)[0]
    assert_drawn(out["samples"], again["samples"], mask[0].bool())


# -- masks that were used, images that are not -------------------------------------------------------------------------


def test_a_used_mask_does_not_stick(editing: Editing) -> None:
    """Drawn in a corner, then wholly: the second run changes every token."""
    first = editing.sample(editing.redraw(editing.image(), "denoise", denoise=0.1))[0]
    assert "noise_mask" not in first and not [key for key in first if key.startswith("gtr_")]
    second = editing.sample(editing.redraw(first, "denoise", denoise=1.0), seed=6)[0]
    assert_drawn(first["samples"], second["samples"], torch.ones(editing.grid, dtype=torch.bool))


def test_a_used_outpainting_does_not_stick(editing: Editing) -> None:
    larger = editing.sample(editing.outpaint(editing.image(), right=2))[0]
    assert "noise_mask" not in larger
    again = editing.sample(editing.redraw(larger, "denoise", denoise=1.0), seed=6)[0]
    assert_drawn(larger["samples"], again["samples"], torch.ones(again["samples"].shape[2:], dtype=torch.bool))


def test_a_mask_of_the_user_stays(editing: Editing) -> None:
    """Set Latent Noise Mask is in force until it is replaced, as in the host's own sampler; Redraw narrows it."""
    given, (rows, columns) = editing.image(), editing.grid
    mask = torch.zeros(1, 1, rows, columns)
    mask[..., : rows // 2, :] = 1
    set_mask = editing.pack.host.NODE_CLASS_MAPPINGS["SetLatentNoiseMask"]().set_mask
    once = editing.sample(given | {"noise_mask": mask})[0]
    assert torch.equal(once["noise_mask"], mask)
    narrowed = editing.redraw(editing.redraw(given | {"noise_mask": mask}, "variations"), "reconstruction")
    assert torch.equal(editing.sample(narrowed)[0]["noise_mask"], mask)
    after = set_mask(editing.redraw(given, "reconstruction"), mask)[0]
    assert torch.equal(editing.sample(after)[0]["noise_mask"], mask)


def test_a_used_mask_of_a_part_of_a_batch_does_not_stick(editing: Editing) -> None:
    """Latent From Batch and Repeat Latent Batch cut and repeat masks."""
    stock = editing.pack.host.NODE_CLASS_MAPPINGS
    (rows, columns), given = editing.grid, editing.image()
    masks = torch.zeros(2, 1, rows, columns)
    masks[0, :, :3], masks[1, :, :, :3] = 1, 1
    plain = editing.redraw(given, "reconstruction")
    two = editing.outpaint(given, right=2)
    picked = stock["LatentFromBatch"]().frombatch(plain, 1, 1)[0]
    repeated = stock["RepeatLatentBatch"]().repeat(stock["LatentFromBatch"]().frombatch(two, 0, 1)[0], 2)[0]
    for latent in (picked, repeated):
        assert "noise_mask" in latent and "noise_mask" not in editing.sample(latent)[0]
    own = editing.redraw(given | {"noise_mask": masks}, "reconstruction")
    assert torch.equal(editing.sample(own)[0]["noise_mask"], masks)
    second = stock["LatentFromBatch"]().frombatch(own, 1, 1)[0]
    assert torch.equal(editing.sample(second)[0]["noise_mask"], masks[1:])
    repeated = stock["RepeatLatentBatch"]().repeat(second, 2)[0]
    assert torch.equal(editing.sample(repeated)[0]["noise_mask"], masks[[1, 1]])


UNUSED = "nothing of the image was kept: connect Redraw Stages"


def test_an_image_without_a_mask_is_named_in_the_report(editing: Editing, caplog: pytest.LogCaptureFixture) -> None:
    empty = editing.run("GtR_EmptyLatent", model=editing.model, batch_size=2)[0]
    given = editing.image()
    quiet = (
        empty,
        {"samples": torch.full_like(given["samples"], 0.0609)},
        editing.redraw(given, "variations"),
        editing.outpaint(given, left=1),
        given | {"noise_mask": torch.ones(1, 1, *editing.grid)},
    )
    for latent in quiet:
        assert UNUSED not in editing.sample(latent)[1]
    assert UNUSED not in caplog.text
    report = editing.sample(given)[1]
    assert UNUSED in report and "Set Latent Noise Mask" in report and UNUSED in caplog.text
    # The output of a sampler is an image as any other.
    assert UNUSED in editing.sample(editing.sample(empty)[0])[1]


# -- plans of a run ----------------------------------------------------------------------------------------------------


def test_the_preview_is_the_plan_of_the_run(editing: Editing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grid, mask and seed are those of the sampler when latent and seed are."""
    drawn, run = [], []
    previews, sampler = editing.pack.module("nodes.schedule"), editing.pack.module("nodes.sampler")
    figure, decode = previews.plan_figure, sampler.decode
    monkeypatch.setattr(previews, "plan_figure", lambda plan: drawn.append(plan) or figure(plan))
    monkeypatch.setattr(
        sampler,
        "decode",
        lambda network, plans, *rest, **more: run.append(plans) or decode(network, plans, *rest, **more),
    )
    given = editing.image()
    wide = editing.outpaint(given, right=4)
    for latent in (editing.redraw(given, "variations"), given | {"batch_index": [3, 4]}, wide):
        image = editing.run(
            "GtR_PreviewSchedule", schedule=editing.schedule, model=editing.model, latent=latent, seed=5
        )[0]
        assert image.ndim == 4
        editing.sample(latent)
        shown, ran = drawn[-1], run[-1].plans[0]
        assert shown.grid == ran.grid
        assert [step.targets.tolist() for step in shown.steps] == [step.targets.tolist() for step in ran.steps]
    with pytest.raises(ValueError, match="connect the model too"):
        editing.run("GtR_PreviewSchedule", schedule=editing.schedule, latent=given)


def test_a_preview_of_nothing_to_draw(editing: Editing) -> None:
    nothing = editing.redraw(editing.image(), "denoise", denoise=0.0)
    image = editing.run("GtR_PreviewSchedule", schedule=editing.schedule, model=editing.model, latent=nothing)[0]
    assert image.ndim == 4


def test_nothing_to_draw_in_windows(editing: Editing) -> None:
    """An extended image whose mask the person has painted over: it comes back as it is, and the report says why."""
    given = editing.outpaint(editing.image(), right=4)
    given = given | {"noise_mask": torch.zeros_like(given["noise_mask"])}
    drawn, report, _ = editing.sample(given)
    assert torch.equal(drawn["samples"], given["samples"])
    assert report.startswith("note: the mask covers nothing, so nothing was drawn") and "\n" not in report
    with pytest.raises(ValueError, match="no plan to draw: paint over what is to change"):
        editing.run("GtR_PreviewSchedule", schedule=editing.schedule, model=editing.model, latent=given)


def test_windows_of_an_image_do_not_depend_on_its_batch(editing: Editing) -> None:
    larger = editing.outpaint(editing.image(), right=4, bottom=4)
    whole = editing.sample(larger)[0]["samples"]
    alone = editing.sample(larger | {"samples": larger["samples"][1:], "batch_index": [1]})[0]["samples"]
    torch.testing.assert_close(alone[0], whole[1], rtol=5e-3, atol=5e-3)


def test_the_heat_map_shows_where_fts_spent_steps(editing: Editing) -> None:
    fts = editing.run("GtR_FTS", fraction=0.1, detail_steps=7, selection="high")[0]
    spent = editing.sample(editing.redraw(editing.image(), "reconstruction"), fts=fts)[2]
    odd = parity(*editing.grid).numpy()
    count = -(-int(odd.sum()) // 10)
    assert ((spent.steps > 0) == odd).all() and ((spent.extra > 0).sum((1, 2)) == count).all()
    assert set(spent.extra[spent.extra > 0]) == {4} and ((spent.extra > 0) <= odd).all()
    images = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    for show in ("fts", "all"):
        image = editing.run("GtR_HeatMap", steps=spent, image=images, show=show)[0]
        assert image.shape[0] == 2 and image.shape[3] == 3 and 0 <= image.min() <= image.max() <= 1
    with pytest.raises(ValueError, match="1 images for the steps of 2"):
        editing.run("GtR_HeatMap", steps=spent, image=images[:1], show="fts")


MISTAKES = {
    "nothing to keep": (lambda e: e.redraw({"samples": e.image()["samples"] * 0}, "variations"), "latent is empty"),
    "nothing to extend": (lambda e: e.outpaint({"samples": e.image()["samples"] * 0}, left=2), "latent is empty"),
    "half tokens": (
        lambda e: e.run("GtR_Outpaint", model=e.model, latent=e.image(), left=e.token // 2),
        "give multiples of that",
    ),
    "no overlap left": (lambda e: e.outpaint(e.image(), left=2, overlap=e.grid[0]), "cannot overlap by"),
    "too large": (lambda e: e.outpaint(e.image(), left=600), "at most 512 a side"),
    "one stage": (
        lambda e: e.run(
            "GtR_Redraw",
            model=e.model,
            latent=e.image(),
            redraw="variations",
            schedule=e.run("GtR_Scheduler", preset="origin")[0],
        ),
        "single stage",
    ),
    "not outpainted": (
        lambda e: e.sample({"samples": torch.ones(1, e.image()["samples"].shape[1], 60, 60)}),
        "pixels only",
    ),
    "too small": (
        lambda e: e.outpaint({"samples": e.image()["samples"][..., : -4 * e.model.spec.latent.patch]}, right=2),
        "need at least that",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_explained(editing: Editing, case: str) -> None:
    action, words = MISTAKES[case]
    with pytest.raises(ValueError, match=words) as caught:
        action(editing)
    assert "\n" not in str(caught.value)
