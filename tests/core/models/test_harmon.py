"""Harmon and UniPic: recorded numbers, the language model beside a known implementation, layouts, files, costs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_model, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.checkpoints.stored import StoredView
from gtr_pack.gtr_core.costs.flops import count_method, count_plan, origin_of, report
from gtr_pack.gtr_core.device import Runtime
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models import build, infer_spec
from gtr_pack.gtr_core.models.harmon import BEFORE, HARMON_05B, HARMON_15B, LONGEST_PROMPT, PUBLISHED, UNIPIC, Harmon
from gtr_pack.gtr_core.models.prompts import EditCondition
from gtr_pack.gtr_core.models.qwen import QwenSpec
from gtr_pack.gtr_core.noise import image_seeds
from gtr_pack.gtr_core.plans.fts import FTS
from gtr_pack.gtr_core.plans.method import Guidance, Method
from gtr_pack.gtr_core.plans.plan import make_plan
from gtr_pack.gtr_core.plans.presets import preset
from gtr_pack.gtr_core.plans.schedule import Schedule
from gtr_pack.gtr_core.sampling.lazymar import LazyMAR
from gtr_pack.gtr_core.sampling.memory import activation_bytes
from gtr_pack.gtr_core.sampling.recap import ReCAP
from gtr_pack.gtr_core.sampling.reference import Reference
from gtr_tests.harmon import (
    LOOPS,
    PROMPTS,
    SMALL_HARMON,
    SMALL_UNIPIC,
    STEPS,
    edit,
    edit_condition,
    loop,
    prefixes,
    step,
    step_inputs,
    tables,
)
from gtr_tests.peak import Peak
from gtr_tests.recorded import error
from gtr_tests.runs import MetaNoise, inputs_of, run
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

METHOD = LOOPS["gtr"][1]


@pytest.fixture(scope="module")
def weights(golden_weights) -> dict[str, torch.Tensor]:
    return golden_weights("harmon_small_fp16")


@pytest.fixture(scope="module")
def model(weights) -> Harmon:
    """The model of the recordings; its noise process ends early, so that nothing amplifies."""
    model = Harmon(SMALL_UNIPIC)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def assert_recorded(found: dict[str, torch.Tensor], recorded: dict[str, torch.Tensor], most: float) -> None:
    assert {name: e for name, t in found.items() if (e := error(t, recorded[name])) > most} == {}


# The model


def test_prompts_and_tables_are_as_recorded(model, golden):
    assert_recorded(prefixes(model), golden("harmon_small"), 1e-5)
    assert_recorded(tables(model), golden("harmon_small"), 1e-6)


@pytest.mark.parametrize("case", STEPS)
def test_a_step_is_as_recorded_and_as_the_plain_way_computes_it(case, model, golden):
    found = step(model, case)
    assert_recorded(found, golden("harmon_small"), 1e-5)
    tokens, positions, grid = step_inputs(case)
    embedded = model.embed((PROMPTS, None), "cpu", torch.float32)
    assert error(torch.cat(model.reference(tokens, positions, embedded, grid)), found[f"{case}_z"]) < 1e-5


@pytest.mark.parametrize("name", LOOPS)
def test_a_run_is_as_recorded(name, model, golden):
    assert_recorded(loop(model, name), golden("harmon_small"), 1e-3)


def test_an_edit_is_as_recorded_and_as_the_plain_way_computes_it(model, golden):
    found = edit(model)
    assert_recorded(found, golden("harmon_small"), 1e-3)
    plain = run(model, replace(METHOD, cache=Reference()), edit_condition())
    assert error(found["edit_tokens"], plain) < 1e-3


def test_an_edit_depends_on_its_picture_and_its_instruction(model):
    both = edit_condition()
    drawn = run(model, METHOD, both)
    for k, seed in enumerate(image_seeds(3, 2)):
        assert error(run(model, METHOD, both[k : k + 1], (seed,)), drawn[k : k + 1]) < 1e-3
    for other in (
        EditCondition(both.prompts, both.pictures + 1),
        EditCondition(both.prompts.where(both.prompts != 4, 7), both.pictures),
    ):
        assert error(run(model, METHOD, other)[0], drawn[0]) > 1e-3
    same = EditCondition(both.prompts[:1].expand(3, -1), both.pictures[:1].expand(3, -1, -1, -1))
    assert len(model.start((same, None)).prompts) == 2
    stated = EditCondition(torch.tensor([SMALL_UNIPIC.empty_edit] * 2), both.pictures)
    assert torch.equal(run(model, METHOD, both, negative=stated), drawn)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda e: EditCondition(e.prompts[:, :1], e.pictures), "one picture in every prompt"),
        (lambda e: EditCondition(e.prompts, e.pictures[..., :3]), r"tokens \(images, rows, columns, 16\)"),
        (
            lambda e: EditCondition(e.prompts, e.pictures[:, :4]),
            "the picture to change has 32 tokens, the latent 8 x 8",
        ),
        (lambda e: EditCondition(e.prompts - 1, e.pictures), "out of range"),
    ],
)
def test_edits_that_cannot_be_are_refused(change, words, model):
    with pytest.raises(GtRError, match=words):
        run(model, METHOD, change(edit_condition()))


def test_an_edit_is_not_mixed_with_a_prompt_nor_given_to_harmon(model):
    with pytest.raises(GtRError, match="the other does not"):
        run(model, METHOD, edit_condition(), negative=PROMPTS)
    with pytest.raises(GtRError, match="the other does not"):
        run(model, METHOD, PROMPTS, negative=edit_condition())
    with pytest.raises(GtRError, match="harmon was not trained to change pictures: load UniPic"):
        run(Harmon(SMALL_HARMON), METHOD, edit_condition())


@pytest.mark.parametrize("name", LOOPS)
def test_a_run_equals_its_reference(name, model):
    spec, method = LOOPS[name]
    plain = run(model, replace(method, cache=Reference()), PROMPTS)
    assert error(run(model, method, PROMPTS), plain) < 1e-3


def test_the_language_model_is_qwen2(model):
    """Of one causal run over prompt and rows: transformers' own model of the same weights."""
    transformers = pytest.importorskip("transformers", reason="transformers comes with ComfyUI")
    spec = model.spec.llm
    config = transformers.Qwen2Config(
        vocab_size=spec.vocabulary,
        hidden_size=spec.dim,
        intermediate_size=spec.hidden,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_base},
        rope_theta=spec.rope_base,
    )
    theirs, ours = transformers.Qwen2Model(config).eval(), model.llm["model"]
    theirs.load_state_dict(ours.state_dict())
    prompts = [ours.embed_tokens(torch.tensor(ids)) for ids in ((3, 1, 4, 1, 5), (9, 2))]
    rows = torch.randn(3, 11, spec.dim, generator=torch.Generator().manual_seed(1))
    found = ours(rows, [(2, ours.remember(prompts[0])), (1, ours.remember(prompts[1]))])
    for index, prompt in enumerate((prompts[0], prompts[0], prompts[1])):
        with torch.no_grad():
            whole = theirs(inputs_embeds=torch.cat([prompt, rows[index]])[None]).last_hidden_state
        assert error(found[index], whole[0, len(prompt) :]) < 1e-5


def test_the_encoder_runs_once_for_both_branches_and_a_prompt_once_per_run(model):
    same = PROMPTS[:1].expand(3, -1)
    steps = 7
    rows = inputs_of(model.mar.encoder_blocks[0], lambda: run(model, METHOD, same))
    assert [shape[0] for shape in rows] == [2] + [3] * (steps - 1)  # the first step: a row per distinct prompt
    embedded = inputs_of(model.llm["model"].embed_tokens, lambda: run(model, METHOD, same))
    assert embedded == [torch.Size([7]), torch.Size([3])]


def test_images_of_one_batch_may_share_prompts_in_any_order(model):
    mixed = PROMPTS[[0, 1, 0, 1, 1]]
    together = run(model, METHOD, mixed)
    for k, seed in enumerate(image_seeds(3, 5)):
        assert error(run(model, METHOD, mixed[k : k + 1], (seed,)), together[k : k + 1]) < 1e-3
    assert torch.equal(run(model, METHOD, mixed), together)


def test_another_head_is_the_head_of_a_twin_only(model):
    head = Harmon(SMALL_UNIPIC).head
    twin = model.with_head(head)
    assert twin.head is head and model.head is not head and twin.proj_in is model.proj_in
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_how_a_prompt_is_filled_up_changes_nothing(model):
    wider = torch.nn.functional.pad(PROMPTS, (0, 5), value=-1)
    assert torch.equal(run(model, METHOD, wider), run(model, METHOD, PROMPTS))


def test_guidance_leads_away_from_the_unconditional_prompt_or_a_negative(model):
    guided = run(model, METHOD, PROMPTS)
    unguided = run(model, replace(METHOD, guidance=Guidance(1.0)), PROMPTS)
    stated = torch.tensor([SMALL_HARMON.empty_prompt] * 2)
    assert torch.equal(run(model, METHOD, PROMPTS, negative=stated), guided)
    assert error(run(model, METHOD, PROMPTS, negative=PROMPTS), unguided) < 1e-3
    assert error(run(model, METHOD, PROMPTS, negative=PROMPTS.flip(0)), guided) > 1e-3


def test_given_tokens_come_back_bitwise(model):
    unknown = np.zeros((6, 10), bool)
    unknown[2:5, 1:6] = True
    given = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(5))
    out, fresh = (
        run(model, METHOD, PROMPTS, grid=(6, 10), unknown=unknown, tokens=given),
        torch.from_numpy(unknown.ravel()),
    )
    assert torch.equal(out[:, ~fresh], given[:, ~fresh]) and (out[:, fresh] != given[:, fresh]).all()


def test_the_transformer_may_have_16_bit(model, weights):
    low = Harmon(SMALL_UNIPIC, dtype=torch.bfloat16).requires_grad_(False)
    low.load_state_dict(weights)
    tokens, positions, grid = step_inputs("some")
    memory = low.start((PROMPTS, None), dtype=torch.bfloat16)
    z = torch.cat(low(tokens.bfloat16(), positions, memory, grid))
    assert z.dtype == torch.bfloat16 and low.head.dtype == torch.float32
    assert error(z.float(), step(model, "some")["some_z"]) < 0.05


@pytest.mark.parametrize(
    "condition, words",
    [
        (torch.zeros(2, 5, 11), "token ids of prompts \\(images, ids\\), found torch.float32"),
        (torch.tensor([1, 2]), "found torch.int64 of shape \\(2,\\)"),
        (torch.tensor([[1, 40], [1, 2]]), "ids 0 to 39"),
        (torch.tensor([[1, -1, 2], [1, 2, 3]]), "ids of a prompt are missing"),
        (torch.tensor([[-1, -1], [1, 2]]), "ids of a prompt are missing"),
    ],
)
def test_what_is_no_prompt_is_refused(condition, words, model):
    with pytest.raises(GtRError, match=words):
        run(model, METHOD, condition)


@pytest.mark.parametrize("cache, words", [(ReCAP(), "ReCAP does not work with"), (LazyMAR(), "LazyMAR works with MAR")])
def test_caches_of_other_families_are_refused(cache, words, model):
    with pytest.raises(GtRError, match=words):
        run(model, replace(LOOPS["random"][1], cache=cache), PROMPTS)


def test_prompts_go_into_the_chat_template():
    texts = []
    found = SMALL_HARMON.encode_prompts(["a {cat}", "b"], lambda text: texts.append(text) or [1] * (3 + len(texts)))
    assert texts[0] == "<|im_start|>user\nGenerate an image: a {cat}<|im_end|>\n<|im_start|>assistant\n"
    assert found.tolist() == [[1, 1, 1, 1, -1], [1, 1, 1, 1, 1]] and texts[1].startswith(BEFORE)
    found = SMALL_HARMON.encode_edits([" go {now} \n"], lambda text: texts.append(text) or [7, 8])
    assert texts[-2:] == ["<|im_start|>user\n", "\ngo {now}<|im_end|>\n<|im_start|>assistant\n"]
    assert found.tolist() == [[7, 8, -2, 7, 8]]
    with pytest.raises(GtRError, match="has 1025 tokens.*at most 1024.*shorten it"):
        SMALL_HARMON.encode_prompts(["x"], lambda text: [1] * (LONGEST_PROMPT + 1))
    assert SMALL_HARMON.length_note(torch.ones(1, 128)) is None
    assert "has 129 tokens, harmon was trained with at most 128" in SMALL_HARMON.length_note(torch.ones(1, 129))


# Sizes and files

# Millions of parameters: the language model's layers and norm, its embedding, MAR with its head, connectors.
SIZES = {
    "harmon-0.5b": (357.9, 136.1, 207.2, 3.0),
    "harmon-1.5b": (1310.3, 233.4, 941.1, 8.7),
    "unipic": (1310.3, 233.4, 944.1, 8.7),
}


def layout(spec) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in build(spec, device="meta").state_dict().items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes_have_their_parameters_and_names(name):
    shapes, spec = layout(PUBLISHED[name]), PUBLISHED[name]
    assert infer_spec(shapes, {}) == spec
    parts = {"llm.model.layers.": 0, "llm.model.norm.": 0, "llm.model.embed_tokens.": 0, "mar.": 0, "proj_": 0}
    for tensor, shape in shapes.items():
        (part,) = [part for part in parts if tensor.startswith(part)]
        parts[part] += int(np.prod(shape))
    layers, norm, embedding, mar, connectors = (count / 1e6 for count in parts.values())
    assert (layers + norm, embedding, mar, connectors) == pytest.approx(SIZES[name], abs=0.06)
    assert len(shapes) == {24: 288 + 2 + 363 + 8, 28: 336 + 2 + 603 + 8}[spec.llm.depth]
    assert shapes["llm.model.layers.0.self_attn.k_proj.bias"] == (2 * spec.llm.head_dim,)
    assert shapes["mar.diffusion_pos_embed_learned"] == (1, 1024 if name == "unipic" else 256, spec.dim)


def test_unipic_differs_by_its_tables_and_its_beta_cap():
    shapes = layout(HARMON_15B)
    longer = {name: (1, shape[1] + 768, shape[2]) if "pos_embed" in name else shape for name, shape in shapes.items()}
    assert infer_spec(longer, {}) == UNIPIC and UNIPIC.diffusion.beta_cap == 0.2 and UNIPIC.grid == (64, 64)
    assert HARMON_15B.diffusion.beta_cap == 0.999 and HARMON_15B.grid == HARMON_05B.grid == (32, 32)
    assert (UNIPIC.origin, HARMON_05B.origin) == ("unipic-origin", "harmon-origin")


@pytest.fixture
def published(weights) -> dict[str, torch.Tensor]:
    """The names that a published file may have, with what nobody needs."""
    siglip = {f"siglip2.vision_model.encoder.layers.{k}.mlp.fc1.weight": torch.ones(3, 3) for k in range(2)}
    vae = {
        f"vae.{name}": torch.ones(2)
        for name in ("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight")
    }
    return {
        "llm.lm_head.weight": weights["llm.model.embed_tokens.weight"],
        "llm.model.rotary_emb.inv_freq": torch.ones(4),
        **weights,
        "mar.class_emb.weight": torch.ones(1000, 32),
        **siglip,
        "siglip2_proj.0.weight": torch.ones(48, 3),
        **vae,
    }


WRAPPERS = {
    "flat": lambda t: t,
    "mmengine": lambda t: {"state_dict": t, "meta": {"epoch": 1}},
    "DeepSpeed": lambda t: {"module": t},
    "model": lambda t: {"model": t},
    "data parallel": lambda t: {f"module.{name}": value for name, value in t.items()},
    "compiled": lambda t: {f"_orig_mod.{name}": value for name, value in t.items()},
    "attribute": lambda t: {f"model.{name}": value for name, value in t.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_it_is_recognised_behind_every_wrapper(wrapper, published, weights, tmp_path, monkeypatch):
    """Of a file only what is needed is loaded."""
    loaded, load = [], StoredView.load
    monkeypatch.setattr(StoredView, "load", lambda self: loaded.append(self) or load(self))
    torch.save(WRAPPERS[wrapper](published), tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth", kind="model")
    assert (
        found.tensors.keys() == weights.keys() and len(loaded) == len(weights) and found.warning(SMALL_UNIPIC) is None
    )
    assert all(torch.equal(found.tensors[name], value) for name, value in weights.items())


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_sharded_file_is_joined(kind, published, weights, tmp_path):
    names = list(published)
    shards = [names[: len(names) // 2], names[len(names) // 2 :]]
    places = {}
    for index, some in enumerate(shards, start=1):
        stem = "model" if kind == "safetensors" else "pytorch_model"
        path = tmp_path / f"{stem}-{index:05}-of-00002.{kind}"
        tensors = {name: published[name].clone() for name in some}
        save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
        places |= {name: path.name for name in some}
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for path in (index, tmp_path / places[names[0]]):
        assert read_checkpoint(path).tensors.keys() == weights.keys()


def test_a_converted_file_is_the_model(published, weights, tmp_path, capsys):
    from gtr_pack.gtr_core.cli import main

    source, target = tmp_path / "raw.safetensors", tmp_path / "small.safetensors"
    save_file({k: v.clone() for k, v in published.items()}, source, spec_metadata(SMALL_UNIPIC, "model"))
    assert main(["convert", str(source), str(target), "--dtype", "bfloat16"]) == 0
    spec, tensors = checked_model(read_checkpoint(target))
    # A real file's tables tell that UniPic changes pictures.
    assert replace(spec, edits=True) == SMALL_UNIPIC and tensors.keys() == weights.keys()
    heads = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert heads == {name for name in weights if name.startswith("mar.diffloss.")}
    capsys.readouterr()
    assert main(["info", str(target), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["family"], facts["variant"], facts["image"]) == ("Harmon", "unipic", [128, 128])
    assert load_model(target, dtype="bfloat16").head.dtype == torch.float32


@pytest.mark.parametrize(
    "lost, words",
    [
        ("llm.model.layers.2.", "blocks are missing"),
        ("mar.decoder_blocks.1.", "blocks are missing"),
        ("proj_out.2.bias", "1 of the .* tensors of harmon are missing"),
    ],
)
def test_an_incomplete_file_is_refused(lost, words, weights, tmp_path):
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(lost)}
    save_file(kept, tmp_path / "x.safetensors", spec_metadata(SMALL_HARMON, "model"))
    with pytest.raises(GtRError, match=words):
        load_model(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "names, words",
    [
        (("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"), "a language model alone"),
        (("transformer_blocks.0.attn.to_q.weight", "pos_embed.proj.weight"), "a diffusion transformer.*UniPic 2"),
    ],
)
def test_files_of_its_neighbours_are_named(names, words, tmp_path):
    save_file({name: torch.ones(4, 4) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(GtRError, match=words):
        load_model(tmp_path / "x.safetensors")


def test_another_vocabulary_is_refused(weights, tmp_path):
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(GtRError, match="--heads|vocabulary of 40 tokens"):
        convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", heads=2)


# Costs

ORIGINS = {"harmon-0.5b": (95.8, 41.2), "harmon-1.5b": (382.0, 148.0), "unipic": (942.5, 272.3)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_origins_cost_what_upstream_computes(name):
    flops = count_method(origin_of(PUBLISHED[name]), PUBLISHED[name]).tera()
    assert (flops["total"], flops["llm"]) == pytest.approx(ORIGINS[name], rel=0.001)
    assert set(flops) == {"encoder", "llm", "decoder", "head", "total"}


@pytest.mark.parametrize(
    "model, name, speed",
    [
        ("harmon-0.5b", "gtr-harmon", 5.25),
        ("harmon-1.5b", "gtr-harmon", 5.24),
        ("harmon-1.5b", "gtr-harmon-fast", 6.42),
        ("unipic", "gtr-unipic", 3.89),
        ("unipic", "gtr-unipic-fast", 5.63),
    ],
)
def test_its_presets_reach_their_speeds(model, name, speed):
    facts = report(Method(preset(name), Guidance(3.0), FTS()), PUBLISHED[model])
    assert facts["speedup"] == pytest.approx(speed, rel=0.005)


@pytest.mark.parametrize("guidance", [Guidance(3.0), Guidance(3.0, start=0.5)], ids=str)
def test_its_flops_agree_with_torchs_counter(guidance):
    """Torch counts every pair of causal attention, also those that are not computed, and the prompts' own rows."""
    spec = replace(HARMON_05B, encoder_depth=2, decoder_depth=1, grid=(16, 16), llm=QwenSpec(896, 2, 14, 4864))
    method = Method(Schedule("s", "gtr", (3, 2, 1), diffusion=(4, 2, 2), decoder_scope="stage"), guidance)
    model, prompts = Harmon(spec, device="meta").requires_grad_(False), spec.random_condition(1)
    with FlopCounterMode(display=False) as counter:
        model.start((prompts, None), "meta")
    before = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        reference = replace(method, cache=Reference())
        run(model, reference, prompts, (0,), noise=MetaNoise, runtime=Runtime("meta"))
    plan = make_plan(method, spec.grid, (0,))
    counted, pairs = count_plan(plan, spec), 0
    for each in plan.steps:
        rows = spec.buffer + each.known.shape[1]
        for prompt in (24, 12)[: each.branches]:
            pairs += (prompt + rows) ** 2 - rows * 18 - rows * (rows + 1) // 2
    pairs *= 4 * spec.llm.depth * spec.llm.dim
    assert counter.get_total_flops() - before - pairs == pytest.approx(counted.total, rel=1e-4)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", ["gtr-harmon", "harmon-origin"])
def test_its_memory_is_estimated(batch, name):
    llm = QwenSpec(896, 2, 14, 4864, vocabulary=100)
    spec = replace(HARMON_05B, encoder_depth=2, decoder_depth=2, grid=(16, 16), llm=llm, empty_prompt=(1, 2, 3))
    schedule = replace(preset(name), steps=(2, 2, 2, 1) if name == "gtr-harmon" else (4,), diffusion=(6, 4, 4))
    method, model = Method(schedule, Guidance(3.0), FTS(0.1, 6)), Harmon(spec, device="meta").requires_grad_(False)
    seeds, runtime = image_seeds(0, batch), Runtime("meta")
    with Peak(model) as peak:
        run(model, method, spec.random_condition(batch), seeds, noise=MetaNoise, runtime=runtime)
    estimate = activation_bytes(make_plan(method, spec.grid, seeds), spec, runtime)
    assert peak.most <= estimate <= 5 * peak.most
