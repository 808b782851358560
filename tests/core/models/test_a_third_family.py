"""A family is one file: a third one, defined here, runs through all of the library without another line anywhere.

It is neither MAR nor LightGen: one stack of blocks over [text, known, masked], with the states of a text pooled to a
vector that leads the sequence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model, load_vae
from gtr_pack.gtr_core.checkpoints.metadata import parse_name, spec_metadata
from gtr_pack.gtr_core.cli import main
from gtr_pack.gtr_core.costs.flops import count_plan
from gtr_pack.gtr_core.demo import DEMO_VAE
from gtr_pack.gtr_core.device import Machine, Runtime
from gtr_pack.gtr_core.diffusion.chain import DiffusionSpec
from gtr_pack.gtr_core.diffusion.head import DiffusionHead, HeadSpec
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import FAMILIES
from gtr_pack.gtr_core.models.latents import LatentSpec
from gtr_pack.gtr_core.models.layers import Attention, Block, block_flops, empty_parameter, sdpa
from gtr_pack.gtr_core.models.model import Conditions, Model, Positions
from gtr_pack.gtr_core.models.shapes import Shapes, count_blocks, head_count, infer_head_spec, shape_of
from gtr_pack.gtr_core.models.spec import Family, Flops, ModelSpec, check_depths
from gtr_pack.gtr_core.noise import image_seeds
from gtr_pack.gtr_core.pipeline import generate
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_pack.gtr_core.sampling.memory import activation_bytes
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_tests.models import seeded
from gtr_tests.packing import WIDE, needs_packing
from gtr_tests.peak import Peak
from gtr_tests.recorded import error
from gtr_tests.runs import MetaNoise, inputs_of, run
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# --- The family: what would be gtr_core/models/pooled.py ---


@dataclass(frozen=True)
class PooledSpec(ModelSpec):
    """``pooling`` says which state of the text counts: their ``mean`` or the ``last`` one."""

    family: ClassVar[str] = "Pooled"
    origin: ClassVar[str] = "step-8"
    condition: ClassVar[str] = "text"
    classes: ClassVar[int] = 0
    stored: ClassVar[tuple[str, ...]] = (*ModelSpec.stored, "text_length", "pooling")

    name: str
    dim: int
    heads: int
    depth: int
    caption_dim: int
    head: HeadSpec
    grid: tuple[int, int] = (8, 8)
    text_length: int = 5
    pooling: str = "mean"
    latent: LatentSpec = LatentSpec(channels=4, stride=4, patch=2, scale=1.0)
    diffusion: DiffusionSpec = DiffusionSpec(beta_cap=0.2)
    mlp_ratio: int = 2
    norm_eps: float = 1e-6
    buffer: int = 1

    @property
    def depths(self) -> tuple[int, ...]:
        return self.depth, self.head.depth

    def can_draw(self, grid: tuple[int, int]) -> bool:
        return tuple(grid) == self.grid

    def check_grid(self, grid: tuple[int, int]) -> None:
        if not self.can_draw(grid):
            raise GtRError(f"{self.name} draws {self.latent.pixels(self.grid)} pixels only")

    def check_condition(self, condition: Tensor) -> None:
        if not condition.is_floating_point() or condition.shape[1:] != (self.text_length, self.caption_dim):
            raise GtRError(f"{self.name} is conditioned on text states, found {tuple(condition.shape)}")

    def random_condition(self, batch: int) -> Tensor:
        return torch.randn(batch, self.text_length, self.caption_dim, generator=torch.Generator().manual_seed(0))

    def transformer_flops(self, known: int, masked: int) -> Flops:
        stack = self.depth * block_flops(self.dim, self.mlp_ratio, self.buffer + known + masked)
        return Flops({"stack": 2 * known * self.head.channels * self.dim + stack})


POOLED = PooledSpec(name="pooled", dim=32, heads=2, depth=3, caption_dim=12, head=HeadSpec(16, 32, 32, 2))


@dataclass(frozen=True, eq=False)
class Vectors:
    """The pooled texts (B, D), one tensor per guidance branch."""

    rows: tuple[Tensor, ...]

    @property
    def branches(self) -> int:
        return len(self.rows)

    def first(self, branches: int) -> Vectors:
        return Vectors(self.rows[:branches])

    def images(self, rows: slice) -> Vectors:
        return Vectors(tuple(branch[rows] for branch in self.rows))


class Pooled(Model):
    def __init__(
        self,
        spec: PooledSpec,
        *,
        operations=nn,
        attention: Attention = sdpa,
        device=None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.spec = spec
        factory = {"device": device, "dtype": dtype}
        block = (spec.dim, spec.heads, spec.mlp_ratio, spec.norm_eps)
        self.pooled_text = operations.Linear(spec.caption_dim, spec.dim, **factory)
        self.null_text = empty_parameter(1, spec.dim, **factory)
        self.z_proj = operations.Linear(spec.head.channels, spec.dim, **factory)
        self.mask_token = empty_parameter(1, spec.dim, **factory)
        self.positions = empty_parameter(spec.tokens, spec.dim, **factory)
        self.blocks = nn.ModuleList(
            Block(*block, operations=operations, attention=attention, **factory) for _ in range(spec.depth)
        )
        self.norm = operations.LayerNorm(spec.dim, eps=spec.norm_eps, **factory)
        self.diffloss = nn.ModuleDict(
            {"net": DiffusionHead(spec.head, operations=operations, device=device, dtype=torch.float32)}
        )

    def embed(self, conditions: Conditions, device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        def one(text: Tensor | None) -> Tensor:
            if text is None:
                return self.null_text.to(device, dtype).expand(len(conditions[0]), -1)
            text = text.to(device, dtype)
            return self.pooled_text(text.mean(1) if self.spec.pooling == "mean" else text[:, -1])

        return tuple(map(one, conditions))

    def start(
        self, conditions: Conditions, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Vectors:
        return Vectors(self.embed(conditions, device, dtype))

    def forward(
        self, tokens: Tensor, positions: Positions, memory: Vectors, grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """The last block at the targets only."""
        x, targets = self._sequence(tokens, positions, memory.rows)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, targets)).chunk(memory.branches)

    def reference(
        self, tokens: Tensor, positions: Positions, embedded: Sequence[Tensor], grid: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        x, targets = self._sequence(tokens, positions, embedded)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, targets].chunk(len(embedded))

    def _sequence(self, tokens: Tensor, positions: Positions, vectors: Sequence[Tensor]) -> tuple[Tensor, slice]:
        """[text, known, masked], one branch after another in the batch, and where the targets are in it."""
        tokens, positions = tokens.repeat(len(vectors), 1, 1), positions.repeat(len(vectors))
        known, masked = positions.known, positions.masked
        values = self.z_proj(tokens.gather(1, known[..., None].expand(-1, -1, tokens.shape[-1])))
        x = torch.cat([values, self.mask_token.to(values).expand(*masked.shape, -1)], dim=1)
        x = x + self.positions.to(values)[torch.cat([known, masked], dim=1)]
        start = 1 + known.shape[1]
        targets = slice(start, start + positions.targets.shape[1])
        return torch.cat([torch.cat(list(vectors))[:, None], x], dim=1), targets


def is_pooled(shapes: Shapes) -> bool:
    return "pooled_text.weight" in shapes


def infer_pooled_spec(shapes: Shapes, *, heads: int | None = None, depths=None, **stored) -> PooledSpec:
    dim, caption_dim = shape_of(shapes, "pooled_text.weight", 2)
    head, depth = infer_head_spec(shapes, dim), count_blocks(shapes, "blocks")
    spec = PooledSpec("pooled", dim, head_count(dim, heads), depth, caption_dim, head)
    check_depths(spec, stated=depths)
    return replace(spec, **stored)


POOLED_FAMILY = Family(
    spec=PooledSpec,
    model=Pooled,
    anchors=("pooled_text.weight",),
    infer=infer_pooled_spec,
    published={POOLED.name: POOLED},
    weights="model",
    parsers={"pooling": parse_name},
)

# --- What the library makes of it ---

METHOD = Method(
    Schedule("stages", "gtr", (3, 2, 2), diffusion=(9, 5, 5), decoder_scope="stage"), Guidance(2.5), FTS(0.2, 11)
)
RANDOM = replace(METHOD, schedule=Schedule("random", "random", (5,), diffusion=(6, 6, 6)))
FAST = ["--steps", "2,1,1", "--diffusion", "3,2,2", "--fts-steps", "4"]


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The family's entry in FAMILIES."""
    monkeypatch.setitem(FAMILIES, POOLED_FAMILY.name, POOLED_FAMILY)


@pytest.fixture(scope="module")
def model() -> Pooled:
    return seeded(Pooled(POOLED))


@pytest.fixture(scope="module")
def texts() -> Tensor:
    """States of three prompts."""
    return torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def raw_file(model, tmp_path) -> Path:
    """What a training script would have saved."""
    path = tmp_path / "raw.pth"
    torch.save({"model": model.state_dict(), "model_ema": seeded(Pooled(POOLED), 2).state_dict()}, path)
    return path


@pytest.fixture
def file(raw_file, tmp_path, capsys) -> Path:
    """Converted, with metadata."""
    path = tmp_path / "pooled.safetensors"
    verb(capsys, "convert", raw_file, path, "--heads", POOLED.heads)
    return path


@pytest.fixture
def prompts(texts, tmp_path) -> Path:
    path = tmp_path / "prompts.safetensors"
    save_file({"prompt_embeds": texts}, path)
    return path


def verb(capsys, *arguments) -> dict:
    """A verb's report."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("method", [METHOD, RANDOM], ids=["gtr", "random"])
def test_a_run_equals_its_reference(method, scale, model, texts):
    method = replace(method, guidance=Guidance(scale))
    ours = run(model, method, texts)
    assert error(ours, run(model, replace(method, cache=Reference()), texts)) < 1e-3


def test_guidance_leads_away_from_the_learned_null_or_a_negative(model, texts):
    guided, unguided = run(model, METHOD, texts), run(model, replace(METHOD, guidance=Guidance(1.0)), texts)
    assert error(guided, unguided) > 1e-3
    assert error(run(model, METHOD, texts, negative=texts), unguided) < 1e-3
    assert error(run(model, METHOD, texts, negative=texts.flip(0)), guided) > 1e-3


def test_an_image_of_a_batch_is_the_image_alone(model, texts):
    together = run(model, METHOD, texts)
    assert torch.equal(run(model, METHOD, texts), together)
    for k, seed in enumerate(image_seeds(3, 3)):
        assert error(run(model, METHOD, texts[k : k + 1], (seed,)), together[k : k + 1]) < 1e-3


def test_given_tokens_come_back_bitwise(model, texts):
    unknown = np.zeros(POOLED.grid, bool)
    unknown[2:5, 1:6] = True
    given = torch.randn(3, 64, 16, generator=torch.Generator().manual_seed(5))
    out, fresh = run(model, METHOD, texts, unknown=unknown, tokens=given), torch.from_numpy(unknown.ravel())
    assert torch.equal(out[:, ~fresh], given[:, ~fresh]) and (out[:, fresh] != given[:, fresh]).all()


def test_a_processor_takes_a_few_images_at_once(model, texts):
    runtime = Runtime(machine=Machine(part_bytes=1))
    assert error(run(model, METHOD, texts, runtime=runtime), run(model, METHOD, texts)) < 1e-3
    shapes = inputs_of(model.blocks[0], lambda: run(model, METHOD, texts, runtime=runtime))
    assert {shape[0] for shape in shapes} == {2}


@needs_packing
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-3), (torch.bfloat16, 0.3)])
def test_it_runs_accelerated(dtype, most, model, texts):
    accelerated = Runtime("cpu", dtype, True, WIDE)
    assert error(run(model, METHOD, texts, runtime=accelerated), run(model, METHOD, texts)) < most


@pytest.mark.parametrize(
    "condition, words",
    [
        (torch.tensor([1, 2]), "conditioned on text states, found \\(2,\\)"),
        (torch.zeros(2, 5, 11), "conditioned on text states, found \\(2, 5, 11\\)"),
    ],
)
def test_another_familys_condition_is_refused(condition, words, model):
    with pytest.raises(GtRError, match=words):
        run(model, METHOD, condition)


def test_a_cache_of_another_family_is_refused(model, texts):
    with pytest.raises(GtRError, match="LazyMAR works with MAR models, found pooled"):
        run(model, replace(RANDOM, cache=LazyMAR()), texts)


@pytest.mark.slow
@pytest.mark.parametrize("method", [METHOD, RANDOM], ids=["gtr", "random"])
@pytest.mark.parametrize("guidance", [Guidance(3.0), Guidance(1.0), Guidance(3.0, start=0.5)], ids=str)
def test_its_flops_agree_with_torchs_counter(guidance, method):
    method = replace(method, guidance=guidance)
    model = Pooled(POOLED, device="meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        reference = replace(method, cache=Reference())
        run(model, reference, POOLED.random_condition(1), (0,), noise=MetaNoise, runtime=Runtime("meta"))
    counted = count_plan(make_plan(method, POOLED.grid, (0,)), POOLED)
    assert counter.get_total_flops() == pytest.approx(counted.total, rel=1e-3)
    assert set(counted.parts) == {"stack", "head"}


@pytest.mark.parametrize("method", [METHOD, RANDOM], ids=["gtr", "random"])
@pytest.mark.parametrize("batch", [1, 12])
def test_its_memory_is_estimated(batch, method):
    """As wide as a published model: in a tiny one what does not grow with it weighs most."""
    spec = replace(POOLED, dim=768, heads=12, grid=(16, 16), mlp_ratio=4, head=HeadSpec(16, 768, 1024, 6))
    model, seeds = Pooled(spec, device="meta").requires_grad_(False), image_seeds(0, batch)
    runtime = Runtime("meta")
    with Peak(model) as peak:
        run(model, method, spec.random_condition(batch), seeds, noise=MetaNoise, runtime=runtime)
    estimate = activation_bytes(make_plan(method, spec.grid, seeds), spec, runtime)
    assert peak.most <= estimate <= 5 * peak.most


def test_convert_and_info_tell_what_it_is(model, raw_file, tmp_path, capsys):
    path = tmp_path / "pooled.safetensors"
    verb(capsys, "convert", raw_file, path, "--heads", POOLED.heads)
    facts = verb(capsys, "info", path)
    assert (facts["family"], facts["variant"], facts["weights"]) == ("Pooled", "pooled", "model")
    assert (facts["grid"], facts["image"]) == ([8, 8], [64, 64]) and "classes" not in facts and "warning" not in facts
    assert (facts["spec"]["pooling"], facts["spec"]["text_length"]) == ("mean", 5)
    loaded = load_model(path)
    assert loaded.spec == POOLED and isinstance(loaded, Pooled)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in loaded.state_dict().items())


def test_its_own_fields_travel_in_the_metadata(model, tmp_path):
    path, spec = tmp_path / "last.safetensors", replace(POOLED, pooling="last", text_length=7, name="mine")
    save_file(model.state_dict(), path, spec_metadata(spec, "model"))
    assert load_model(path).spec == spec


def test_a_file_that_lost_blocks_is_refused(model, tmp_path, capsys):
    path = tmp_path / "lost.safetensors"
    tensors = {name: t for name, t in model.state_dict().items() if not name.startswith("blocks.2.")}
    save_file(tensors, path, spec_metadata(POOLED, "model"))
    assert main(["info", str(path)]) == 2
    assert "blocks are missing" in capsys.readouterr().err


def test_generate_draws_from_prompts(file, prompts, texts, model, tmp_path, capsys):
    output = tmp_path / "out.png"
    settings = ["--model", file, "--vae", DEMO_VAE, "--prompt-embeds", prompts, "--cfg", 2.5, "--seed", 6]
    facts = verb(capsys, "generate", *FAST, *settings, "--acceleration", "off", "-o", output)
    images = np.stack([np.array(Image.open(path)) for path in facts["files"]])
    assert images.shape == (3, 64, 64, 3) and "classes" not in facts
    assert facts["report"].startswith("custom on pooled: 3 images, 4 AR steps")
    schedule = Schedule("custom", "gtr", (2, 1, 1), diffusion=(3, 2, 2), decoder_scope="stage")
    method = Method(schedule, Guidance(2.5), FTS(0.1, 4))
    ours = generate(load_model(file), load_vae(DEMO_VAE), texts=texts, method=method, seed=6)
    assert np.abs(ours.astype(int) - images).mean() < 1  # generate of the library runs with packed weights where it may


def test_generate_continues_a_given_image(file, prompts, tmp_path, capsys):
    image, mask, output = tmp_path / "image.png", tmp_path / "mask.png", tmp_path / "out.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(image)
    Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 24)).save(mask)
    settings = ["--model", file, "--vae", DEMO_VAE, "--prompt-embeds", prompts, "--image", image, "--mask", mask]
    facts = verb(capsys, "generate", *FAST, *settings, "-o", output)
    assert len(facts["files"]) == 3
    settings[-2:] = ["--outpaint", "0,0,64,0"]
    facts = verb(capsys, "generate", *FAST, *settings, "-o", output)
    assert Image.open(facts["files"][0]).size == (128, 64) and "window 2 of 2" in facts["report"]


def test_generate_many_takes_prompts_in_turn(file, prompts, tmp_path, capsys):
    settings = ["--model", file, "--vae", DEMO_VAE, "--prompt-embeds", prompts, "--images", 5, "--manifest", "jsonl"]
    facts = verb(capsys, "generate-many", *FAST, *settings, "-o", tmp_path / "many")
    rows = [json.loads(line) for line in Path(facts["manifest"]).read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [0, 1, 2, 0, 1] and {row["class"] for row in rows} == {None}
    assert verb(capsys, "generate-many", *FAST, *settings, "-o", tmp_path / "many")["made"] == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "pooled draws from text: give its encoded prompts with --prompt-embeds"),
        (["--prompt-embeds", "PROMPTS", "--size", "64x128"], "pooled draws 64 x 64 pixels only"),
        (["--prompt-embeds", "MODEL"], "expected a tensor 'prompt_embeds' of shape \\(prompts, 5, 12\\)"),
    ],
)
def test_wrong_conditions_and_sizes_end_in_one_line(arguments, words, file, prompts, capsys):
    places = {"PROMPTS": str(prompts), "MODEL": str(file)}
    arguments = [places.get(word, word) for word in arguments]
    assert main(["generate", *FAST, "--model", str(file), "--vae", str(DEMO_VAE), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line), line


@pytest.mark.parametrize("way", ["by name", "file"])
def test_bench_measures_it(way, file, capsys):
    chosen = POOLED.name if way == "by name" else file
    facts = verb(capsys, "bench", "--model", chosen, "--presets", "reference,step-8,gtr-full@bfloat16", "--rounds", 1)
    reference, step, gtr = facts["rows"]
    assert facts["model"] == "pooled" and facts["grid"] == [8, 8]
    assert (reference["ar_steps"], step["ar_steps"], gtr["dtype"]) == (8, 8, "bfloat16")
    assert reference["tflops"] == step["tflops"] and reference["peak_bytes"] > 0


@pytest.mark.parametrize("way", ["by name", "file"])
def test_flops_are_compared_with_its_own_origin(way, file, capsys):
    chosen = POOLED.name if way == "by name" else file
    facts = verb(capsys, "flops", "--model", chosen, "--preset", "step-8")
    assert facts["speedup"] == 1 and set(facts["tflops"]) == {"stack", "head", "total"}
    assert verb(capsys, "flops", "--model", chosen, *FAST)["speedup"] > 1
