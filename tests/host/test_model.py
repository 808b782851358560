"""The pack inside ComfyUI's own process: models, VAE, memory management, latents, masks, errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

DEMO = "demo (built-in)"
LIST = "animal face, bird"


class Graph:
    """Calls node classes as the host would, with the demo model at hand."""

    def __init__(self, pack: Any) -> None:
        self.pack = pack
        self.model = self.one("GtR_LoadMAR", model_name=DEMO, weight_dtype="default")
        self.vae = self.one("GtR_LoadMARVAE", vae_name=DEMO)

    def all(self, node: str, **inputs: Any) -> tuple:
        return self.pack.classes[node].execute(**inputs).result

    def one(self, node: str, **inputs: Any) -> Any:
        return self.all(node, **inputs)[0]

    def condition(self, classes: str = LIST, model: Any = None) -> Any:
        return self.one(
            "GtR_ClassCondition", model=model or self.model, class_name="demo 0: animal face", class_list=classes
        )

    def schedule(self, **settings: Any) -> Any:
        return self.one(
            "GtR_Scheduler",
            **{
                "preset": "custom",
                "steps": "3, 2, 1",
                "diffusion_start": 6,
                "diffusion_end": 4,
                "diffusion_reconstruction": 4,
            }
            | settings,
        )

    def latent(self, batch: int = 2) -> dict:
        return self.one("GtR_EmptyLatent", model=self.model, width=0, height=0, batch_size=batch)

    def sample(self, **inputs: Any) -> tuple[dict, str]:
        defaults = {
            "model": self.model,
            "schedule": self.schedule(),
            "latent_image": self.latent(),
            "seed": 5,
            "cfg": 2.0,
            "cfg_schedule": "linear",
            "temperature": 1.0,
        }
        if "positive" not in inputs:
            inputs["positive"] = self.condition()
        return self.all("GtR_Sampler", **defaults | inputs)[:2]

    @property
    def pixels(self) -> int:
        """Side of the demo model's images."""
        return self.model.spec.latent.size(self.model.spec.grid)[0]

    def given(self, batch: int, channels: int = 0, wider: int = 0) -> torch.Tensor:
        """Latents that no run made; some ``wider`` than the model draws."""
        latent, cells = self.model.spec.latent, self.pixels // self.model.spec.latent.stride
        generator = torch.Generator().manual_seed(4)
        return torch.randn(batch, channels or latent.channels, cells, cells + wider, generator=generator)


@pytest.fixture(scope="module")
def graph(host_pack: Any) -> Iterator[Graph]:
    with torch.inference_mode():
        yield Graph(host_pack)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


def core(graph: Graph, name: str) -> Any:
    return graph.pack.module(f"gtr_core.{name}")


def test_the_model_in_the_host_equals_the_plain_one(graph: Graph) -> None:
    """Same weights, host layers and host attention: the run's latent equals the library's."""
    out, report = graph.sample()
    plans, pipeline = core(graph, "plans.method"), core(graph, "pipeline")
    plain = core(graph, "checkpoints").load_model(core(graph, "demo").DEMO_MAR)
    method = plans.Method(graph.schedule(), plans.Guidance(2.0))
    latents = pipeline.generate_latents(plain, method, (0, 1), 5)
    torch.testing.assert_close(out["samples"], latents, rtol=5e-3, atol=5e-3)
    assert "demo: 2 images, 6 AR steps" in report


def test_a_batch_that_does_not_fit_runs_in_parts(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same images as in one go; the sampler asks the host for a part's memory, and says so in its report."""
    import comfy.model_management as mm

    asked: list[int] = []
    load = mm.load_models_gpu
    monkeypatch.setattr(
        mm,
        "load_models_gpu",
        lambda models, memory_required=0, **rest: (
            asked.append(memory_required),
            load(models, memory_required=memory_required, **rest),
        ),
    )
    inputs = {"latent_image": graph.latent(5), "positive": graph.condition("0, 1, 2, 3, 4"), "acceleration": "off"}
    whole, report = graph.sample(**inputs)
    assert "parts" not in report
    budget = asked[0] // 2
    monkeypatch.setattr(graph.pack.module("nodes.sampler"), "activation_budget", lambda *_: budget)
    parts, report = graph.sample(**inputs)
    torch.testing.assert_close(parts["samples"], whole["samples"], rtol=5e-3, atol=5e-3)
    assert "parts of at most" in report and asked[1] <= budget
    assert "5 images" in report


def test_the_host_manages_the_model(graph: Graph) -> None:
    import comfy.model_management as mm

    mm.unload_all_models()
    assert graph.model.patcher not in [loaded.model for loaded in mm.current_loaded_models]
    graph.sample()
    assert graph.model.patcher in [loaded.model for loaded in mm.current_loaded_models]
    assert graph.model.patcher.model_size() > 1e6 and graph.model.is_dynamic() is False
    mm.unload_all_models()
    assert mm.current_loaded_models == []


def test_weights_are_packed_only_where_they_stay_and_nobody_objects(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    acceleration, packs = core(graph, "sampling.acceleration"), []
    reason = acceleration.unavailable_reason(torch.float32)
    if reason is not None:
        pytest.skip(f"layers cannot be packed here: {reason}")
    pack, machine = acceleration.packed, core(graph, "device").Machine(wide_vectors=True, smallest_packed=0)
    monkeypatch.setattr(acceleration, "packed", lambda *arguments: packs.append(arguments) or pack(*arguments))
    model = replace(graph.model, machine=machine)
    quick, _ = graph.sample(model=model)
    assert len(packs) == 1 and packs[0][0] is graph.model.patcher.model.diffusion_model
    plain, _ = graph.sample(model=model, acceleration="off")
    torch.testing.assert_close(quick["samples"], plain["samples"], rtol=5e-3, atol=5e-3)
    monkeypatch.setattr(graph.pack.module("nodes._device"), "stays_resident", lambda patcher: False)
    moving, _ = graph.sample(model=model)
    assert len(packs) == 1 and torch.equal(moving["samples"], plain["samples"])


@pytest.mark.parametrize("weight_dtype", ["fp32", "bf16", "fp16"])
def test_weight_dtypes_keep_the_head_in_float32(graph: Graph, weight_dtype: str) -> None:
    model = graph.one("GtR_LoadMAR", model_name=DEMO, weight_dtype=weight_dtype)
    network = model.patcher.model.diffusion_model
    assert {p.dtype for p in network.head.parameters()} == {torch.float32}
    assert (
        network.decoder_embed.weight.dtype
        == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[weight_dtype]
    )
    out, _ = graph.sample(model=model)
    assert torch.isfinite(out["samples"]).all()


def test_layers_that_the_host_casts_give_the_same(graph: Graph) -> None:
    """What a partly loaded model does: every leaf layer casts its own weights, raw parameters are cast where used."""
    before, _ = graph.sample()
    leaves = [m for m in graph.model.patcher.model.modules() if hasattr(m, "comfy_cast_weights")]
    assert leaves
    old = [m.comfy_cast_weights for m in leaves]
    for module in leaves:
        module.comfy_cast_weights = True
    try:
        after, _ = graph.sample()
    finally:
        for module, value in zip(leaves, old):
            module.comfy_cast_weights = value
    assert torch.equal(before["samples"], after["samples"])


def test_every_weighted_layer_belongs_to_the_host(graph: Graph) -> None:
    """A layer that is not the host's would stay behind under partial loading."""
    for name, module in graph.model.patcher.model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if own and not hasattr(module, "comfy_cast_weights"):
            assert name == "diffusion_model", f"{name} holds {list(own)}"


def test_dynamic_vram_construction(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's default on NVIDIA cards: layers are built without weights, and loaded by assignment."""
    import comfy.memory_management
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self) -> bool:
            return True

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    model = graph.one("GtR_LoadMAR", model_name=DEMO, weight_dtype="default")
    assert type(model.patcher) is Dynamic
    network = model.patcher.model.diffusion_model
    assert not [name for name, p in network.named_parameters() if p.is_meta or p.requires_grad]
    expected = graph.model.patcher.model.diffusion_model.state_dict()
    found = network.state_dict()
    assert list(found) and set(found) == set(expected)
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in expected)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", False)
    labels = torch.tensor([1, 2])
    assert torch.equal(
        network.embed_labels(labels, torch.float32),
        graph.model.patcher.model.diffusion_model.embed_labels(labels, torch.float32),
    )


def moving_model(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that the host may move while it runs, as its default is on NVIDIA cards."""
    import comfy.model_patcher

    def move(layer: torch.nn.Module, inputs: Any) -> None:
        for name, parameter in layer.named_parameters(recurse=False):
            setattr(layer, name, torch.nn.Parameter(parameter.clone(), requires_grad=False))

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self) -> bool:
            return True

        def load(self, *arguments: Any, **settings: Any) -> None:
            super().load(*arguments, **settings)
            for layer in self.model.modules():
                if hasattr(layer, "comfy_cast_weights"):
                    layer.comfy_cast_weights = True
                    layer.register_forward_pre_hook(move)

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    return graph.one("GtR_LoadMAR", model_name=DEMO, weight_dtype="default")


def make_useless(module: torch.nn.Module) -> None:
    """New weights that whoever reads them notices; those of a copy stay."""
    for parameter in module.parameters():
        parameter.data = torch.full_like(parameter, float("nan"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_model_that_moves_has_a_head_that_stays(
    graph: Graph, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own head is never read, and what accelerates is made of the copy; the host holds that as a second model."""
    import comfy.model_management as mm

    machine = core(graph, "device").Machine((torch.bfloat16, torch.float32))
    other, moving = (replace(moving_model(graph, monkeypatch), machine=machine) for _ in range(2))
    for model in (other, moving):
        model.patcher.model.manual_cast_dtype = dtype
    expected, _ = graph.sample(model=other)
    prepared, runtimes, prepare = [], [], core(graph, "sampling.sampler").prepare

    def watched(network: Any, plan: Any, runtime: Any) -> Any:
        runtimes.append(runtime)
        prepared.append(prepare(network, plan, runtime))
        return prepared[-1]

    monkeypatch.setattr(core(graph, "sampling.sampler"), "prepare", watched)
    mm.unload_all_models()
    network = moving.patcher.model.diffusion_model
    copy = moving.head.model
    make_useless(network.head)
    found, _ = graph.sample(model=moving)
    assert torch.equal(found["samples"], expected["samples"])
    assert prepared[0].model.head is copy and prepared[0].model.decoder_blocks is network.decoder_blocks
    assert (prepared[0].low_precision is not None) == (dtype == torch.bfloat16)
    assert runtimes[0].accelerate and not runtimes[0].transformer_stays
    assert {each.model for each in mm.current_loaded_models} == {moving.patcher, moving.head}
    assert moving.head.model_size() == sum(p.nbytes for p in copy.parameters())
    mm.unload_all_models()
    assert mm.current_loaded_models == []


def test_a_head_that_finds_no_room_is_not_used(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model then runs as the host has it, and nothing is accelerated."""
    moving, device = moving_model(graph, monkeypatch), graph.pack.module("nodes._device")
    expected, _ = graph.sample(acceleration="off")
    monkeypatch.setattr(device, "stays_resident", lambda patcher: False)
    make_useless(moving.head.model)
    found, _ = graph.sample(model=moving)
    assert torch.equal(found["samples"], expected["samples"])


def test_a_model_that_fits_in_part_has_a_head_that_stays(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    device, residents = graph.pack.module("nodes._device"), []
    resident = device.stays_resident

    def stays(patcher: Any) -> bool:
        residents.append(patcher)
        return patcher is not graph.model.patcher and resident(patcher)

    monkeypatch.setattr(device, "stays_resident", stays)
    graph.sample()
    assert residents == [graph.model.patcher, graph.model.head]


def test_the_room_for_a_head_of_its_own_is_counted(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    moving, device = moving_model(graph, monkeypatch), graph.pack.module("nodes._device")
    plain, with_head = (device.activation_budget(moving, device.host_runtime(moving, wish)) for wish in (False, True))
    assert plain - with_head == moving.head.model_size() > 0


def test_what_a_prompt_prepared_serves_the_next_until_memory_is_freed(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queued prompts of one model pack its weights once; the host's 'free memory' frees them."""
    import comfy.model_management as mm

    acceleration, packs = core(graph, "sampling.acceleration"), []
    reason = acceleration.unavailable_reason(torch.float32)
    if reason is not None:
        pytest.skip(f"layers cannot be packed here: {reason}")
    pack, machine = acceleration.packed, core(graph, "device").Machine(wide_vectors=True, smallest_packed=0)
    monkeypatch.setattr(acceleration, "packed", lambda *arguments: packs.append(arguments) or pack(*arguments))
    model = replace(graph.model, machine=machine, preparations=core(graph, "device").Preparations())
    first, _ = graph.sample(model=model)
    second, _ = graph.sample(model=model)
    other, _ = graph.sample(model=model, seed=6, latent_image=graph.latent(1), positive=graph.condition("1"))
    assert len(packs) == 1 and torch.equal(first["samples"], second["samples"])
    torch.testing.assert_close(other["samples"], first["samples"][1:], rtol=5e-3, atol=5e-3)
    mm.unload_all_models()
    assert model.preparations.value is None
    graph.sample(model=model)
    assert len(packs) == 2 and model.preparations.value is not None
    scarce = replace(machine, available_bytes=2 * model.preparations.value.packed_bytes)
    monkeypatch.setattr(core(graph, "pipeline"), "check_run", lambda *_: None)
    graph.sample(model=replace(model, machine=scarce))
    assert model.preparations.value is None


@pytest.mark.parametrize(
    "batch, chosen, during", [(1, {}, 1), (4, {}, 1), (5, {}, 3), (1, {"OMP_WAIT_POLICY": "passive"}, 3)]
)
def test_one_thread_is_enough_for_a_small_run(
    graph: Graph, batch: int, chosen: dict, during: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it ends, also with an error, and only where nobody has said how threads wait."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    seen, before, device = [], torch.get_num_threads(), graph.pack.module("nodes._device")
    runtime = core(graph, "device").Runtime()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError), device.fitting_threads(graph.model, batch, runtime):
            seen.append(torch.get_num_threads())
            raise KeyError
        assert (seen, torch.get_num_threads()) == ([during], 3)
    finally:
        torch.set_num_threads(before)


def test_the_patcher_can_be_rebuilt_without_dynamic_vram(graph: Graph) -> None:
    factory, arguments = graph.model.patcher.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    assert again.model.diffusion_model.spec == graph.model.spec


def test_the_vae_is_the_hosts_and_equals_ours(graph: Graph, comfy_base: Any, model_files: Any) -> None:
    import comfy.sd

    for path, channels, stride in (
        (core(graph, "demo").DEMO_VAE, graph.model.spec.latent.channels, 4),
        (comfy_base / "models" / "vae" / "kl16.safetensors", 16, 16),
    ):
        ours = core(graph, "checkpoints").load_vae(path)
        vae = graph.vae if stride == 4 else load_vae(graph, path)
        assert isinstance(vae, comfy.sd.VAE) and (ours.spec.embed_channels, ours.spec.stride) == (channels, stride)
        latent = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(1))
        expected = ((ours.decode(latent) + 1) / 2).clamp(0, 1).movedim(1, -1)
        torch.testing.assert_close(vae.decode(latent), expected, rtol=0, atol=2e-3)
        image = torch.rand(1, 8 * stride, 8 * stride, 3, generator=torch.Generator().manual_seed(2))
        mean, _ = ours.moments(image.movedim(-1, 1) * 2 - 1)
        torch.testing.assert_close(vae.encode(image), mean, rtol=0, atol=5e-3)
        assert vae.decode_tiled(latent, tile_x=4, tile_y=4, overlap=1).shape == expected.shape


def test_a_vae_in_a_training_checkpoint_is_found(graph: Graph, tmp_path: Any) -> None:
    weights = load_file(core(graph, "demo").DEMO_VAE)
    with safe_open(core(graph, "demo").DEMO_VAE, "pt") as file:
        metadata = file.metadata()
    wrapped = {f"first_stage_model.{name}": t for name, t in weights.items()} | {"model.x": torch.zeros(3)}
    save_file(wrapped, tmp_path / "wrapped_vae.safetensors", metadata)
    latent = torch.randn(1, graph.model.spec.latent.channels, 8, 8)
    torch.testing.assert_close(
        load_vae(graph, tmp_path / "wrapped_vae.safetensors").decode(latent), graph.vae.decode(latent)
    )


def test_the_report_says_which_entry_of_a_checkpoint_was_taken(graph: Graph, tmp_path: Any) -> None:
    import folder_paths

    averaged = load_file(core(graph, "demo").DEMO_MAR)
    raw = {name: t + 1 for name, t in averaged.items()}
    with safe_open(core(graph, "demo").DEMO_MAR, "pt") as file:
        metadata = file.metadata() | {"gtr.weights": "unknown"}
    both = {f"model.{n}": t for n, t in raw.items()} | {f"ema.{n}": t for n, t in averaged.items()}
    save_file(both, tmp_path / "both_sets.safetensors", metadata)
    save_file({f"model.{n}": t for n, t in raw.items()}, tmp_path / "raw_set.safetensors", metadata)
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    model = graph.one("GtR_LoadMAR", model_name="both_sets.safetensors")
    assert model.notes == ("note: 'ema' of both_sets.safetensors was loaded (averaged weights)",)
    assert torch.equal(model.patcher.model.diffusion_model.mask_token, averaged["mask_token"])
    model = graph.one("GtR_LoadMAR", model_name="raw_set.safetensors")
    assert model.notes[0] == "note: 'model' of raw_set.safetensors was loaded"
    assert "may hold non-EMA weights" in model.notes[1]


def load_vae(graph: Graph, path: Any) -> Any:
    import folder_paths

    folder_paths.add_model_folder_path("vae", str(path.parent))
    return graph.one("GtR_LoadMARVAE", vae_name=path.name)


def test_images_of_a_batch_are_those_of_their_seeds(graph: Graph) -> None:
    whole, _ = graph.sample()
    alone, _ = graph.sample(latent_image=graph.latent(1), seed=6, positive=graph.condition("bird"))
    picked, _ = graph.sample(latent_image=graph.latent(1) | {"batch_index": [1]}, positive=graph.condition("bird"))
    assert torch.equal(alone["samples"], picked["samples"])
    torch.testing.assert_close(alone["samples"][0], whole["samples"][1], rtol=5e-3, atol=5e-3)


def test_an_image_picked_from_a_batch_keeps_its_class(graph: Graph) -> None:
    """The stock Latent From Batch: item 1 of 2 is the second image's seed and class."""
    whole, _ = graph.sample()
    for item in (0, 1):
        picked = graph.pack.host.NODE_CLASS_MAPPINGS["LatentFromBatch"]().frombatch(graph.latent(), item, 1)[0]
        out, _ = graph.sample(latent_image=picked)
        torch.testing.assert_close(out["samples"][0], whole["samples"][item], rtol=5e-3, atol=5e-3)


def test_the_stock_empty_latent_fits(graph: Graph) -> None:
    stock = graph.pack.host.NODE_CLASS_MAPPINGS["EmptyLatentImage"]().generate(graph.pixels, graph.pixels, 2)[0]
    out, _ = graph.sample(latent_image=stock)
    own, _ = graph.sample()
    assert torch.equal(out["samples"], own["samples"]) and set(out) == {"samples"}


def test_a_noise_mask_keeps_the_other_tokens(graph: Graph) -> None:
    given = graph.given(2)
    mask = torch.zeros(2, 1, graph.pixels, graph.pixels)
    mask[0, :, 8:24, 8:24] = 1
    mask[1, :, 40:60, 4:8] = 1
    before = given.clone()
    out, report = graph.sample(latent_image={"samples": given, "noise_mask": mask})
    patch = graph.model.spec.latent.patch
    tokens = torch.nn.functional.max_pool2d(mask, patch * graph.model.spec.latent.stride)
    tokens = tokens.repeat_interleave(patch, -1).repeat_interleave(patch, -2).bool().expand_as(given)
    assert torch.equal(given, before)
    assert torch.equal(out["samples"][~tokens], given[~tokens])
    assert (out["samples"][tokens] != given[tokens]).all() and "noise_mask" in out


def test_a_mask_of_nothing_returns_the_latent(graph: Graph) -> None:
    given = graph.given(1)
    out, _ = graph.sample(
        latent_image={"samples": given, "noise_mask": torch.zeros(1, graph.pixels, graph.pixels)},
        positive=graph.condition("1"),
    )
    assert torch.equal(out["samples"], given)


def test_inputs_are_not_written_to(graph: Graph) -> None:
    latent = graph.latent()
    kept = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in latent.items()}
    graph.sample(latent_image=latent)
    assert set(latent) == set(kept) and torch.equal(latent["samples"], kept["samples"])


@pytest.mark.parametrize("left, freed", [(1000, True), (10**6, False)])
def test_what_a_run_prepared_is_freed_however_it_ends(left: int, freed: bool, graph: Graph) -> None:
    """Unless there is ample memory."""
    cleared: list[bool] = []
    prepared = SimpleNamespace(value=SimpleNamespace(packed_bytes=1000), clear=lambda: cleared.append(True))
    model, runtime = SimpleNamespace(preparations=prepared), SimpleNamespace(available_bytes=left)
    with pytest.raises(KeyboardInterrupt), graph.pack.module("nodes._device").kept_for_the_next(model, runtime):
        raise KeyboardInterrupt
    assert bool(cleared) == freed


def test_an_interrupt_ends_the_run(graph: Graph) -> None:
    import comfy.model_management as mm

    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        graph.sample()
    mm.interrupt_current_processing(False)
    graph.sample()


def shape(latent: torch.Tensor) -> str:
    return " x ".join(map(str, latent.shape))


@pytest.mark.parametrize("case", ["channels", "size", "video", "empty batch", "audio", "larger"])
def test_a_refused_latent_is_named_by_its_shape(graph: Graph, case: str) -> None:
    """Pixels are what the model would make of it; nobody has typed them."""
    channels = graph.model.spec.latent.channels
    latents = {
        "channels": graph.given(2, channels=3),
        "size": graph.given(2, wider=8),
        "video": graph.given(2)[None].movedim(1, 2),
        "empty batch": graph.given(0),
        "audio": torch.ones(1, channels, 1, 84),
        "larger": torch.ones(1, channels, 2, 2),
    }
    with pytest.raises(ValueError, match=f"the latent's shape is {shape(latents[case])}") as caught:
        graph.sample(latent_image={"samples": latents[case]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "node, inputs, words",
    [
        ("GtR_Scheduler", {"preset": "gtr-paper", "steps": "1"}, "steps is not used by preset 'gtr-paper'"),
        (
            "GtR_Scheduler",
            {"preset": "gtr-extreme", "decoder_scope": "full", "diffusion_start": 1, "order": "raster"},
            "order, decoder_scope, diffusion_start are not used by preset 'gtr-extreme': choose 'custom'",
        ),
        ("GtR_Scheduler", {"preset": "gtr-extreme"}, ""),
        ("GtR_Scheduler", {"preset": "custom", "steps": "2, 1", "diffusion_start": 6}, ""),
        (
            "GtR_BaselineScheduler",
            {"method": "origin", "ar_steps": 4, "diffusion_steps": 6},
            "ar_steps, diffusion_steps are not used by method 'origin'",
        ),
        ("GtR_BaselineScheduler", {"method": "step-n", "ar_steps": 4, "diffusion_steps": 6}, ""),
        (
            "GtR_BaselineScheduler",
            {"method": "raster", "ar_steps": 4, "disa_end": 3, "halton_shift": True},
            "disa_end, halton_shift are not used by method 'raster'",
        ),
        ("GtR_BaselineScheduler", {"method": "halton", "ar_steps": 4, "halton_shift": True}, ""),
        ("GtR_BaselineScheduler", {"method": "disa", "ar_steps": 4, "disa_profile": "cosine", "disa_clip": False}, ""),
        (
            "GtR_BaselineScheduler",
            {"method": "halton", "ar_steps": 4, "subsample_phases": "plain"},
            "subsample_phases is not used by method 'halton'",
        ),
    ],
)
def test_settings_without_effect_are_named(graph: Graph, node: str, inputs: dict[str, Any], words: str) -> None:
    schedule = graph.one(node, **inputs)
    assert words in schedule.remark and bool(words) == bool(schedule.remark)


@pytest.mark.parametrize(
    "inputs, found",
    [({"steps": "24，6，2"}, ((24, 6, 2), ())), ({"steps": "", "rates": "2,67; 10,67; 64"}, ((), (2.67, 10.67, 64.0)))],
)
def test_numbers_are_read_as_people_write_them(graph: Graph, inputs: dict[str, Any], found: tuple) -> None:
    schedule = graph.one("GtR_Scheduler", preset="custom", **inputs)
    assert (schedule.steps, schedule.rates) == found


def test_a_baseline_that_is_not_its_preset_says_so(graph: Graph) -> None:
    def name(method: str, diffusion_steps: int) -> str:
        return graph.one("GtR_BaselineScheduler", method=method, ar_steps=16, diffusion_steps=diffusion_steps).name

    assert name("step-n", 100) == "step-16" and name("step-n", 50) == "step-16 (changed)"
    assert name("disa", 50) == "disa-16" and name("disa", 100) == "disa-16 (changed)"
    assert name("raster", 50) == "raster-16"
    ignored = {"halton_shift": True, "subsample_phases": "plain"}
    assert graph.one("GtR_BaselineScheduler", method="step-n", ar_steps=16, **ignored).name == "step-16"


def test_the_report_ends_with_the_remark(graph: Graph, caplog: pytest.LogCaptureFixture) -> None:
    """It is on the node and in the log, and does not change the plan."""
    schedule = graph.one("GtR_Scheduler", preset="gtr-extreme", steps="1")
    assert schedule == graph.one("GtR_Scheduler", preset="gtr-extreme")
    _, report = graph.sample(schedule=schedule, latent_image=graph.latent(1), positive=graph.condition("1"))
    assert report.splitlines()[-1].startswith("note: steps is not used by preset 'gtr-extreme'")
    assert "steps is not used" in caplog.text


@pytest.mark.parametrize(
    "version, old",
    [
        ("0.17.0", True),
        ("0.20.0", True),
        ("v0.18.2", True),
        ("0.3.64", True),
        ("0.20", True),
        ("0.20.1", False),
        ("0.21", False),
        ("0.30.0", False),
        ("1.0.0", False),
        ("0.33.1+local", False),
        ("", False),
        ("unknown", False),
    ],
)
def test_a_host_below_the_floor_gets_one_line(
    graph: Graph, version: str, old: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import asyncio
    import sys

    monkeypatch.setitem(sys.modules, "comfyui_version", SimpleNamespace(__version__=version))
    asyncio.new_event_loop().run_until_complete(sys.modules[graph.pack.name].comfy_entrypoint())
    lines = [record.getMessage() for record in caplog.records if record.name == "gtr_mar"]
    assert len(lines) == old and all("\n" not in line and f"found {version}" in line for line in lines)


CASES = {
    "channels": (lambda g: dict(latent_image={"samples": g.given(2, channels=3)}), "3 channels, demo needs"),
    "size": (
        lambda g: dict(latent_image={"samples": g.given(2, wider=8)}),
        r"demo draws (\d+) x \1 pixels only, found \d+ x \1",
    ),
    "empty batch": (lambda g: dict(latent_image={"samples": g.given(0)}), "at least 1 image"),
    "text": (lambda g: dict(positive=[[torch.zeros(1, 77, 768), {}]]), "expected the output of 'Class Label'"),
    "video": (lambda g: dict(latent_image={"samples": g.given(2)[None].movedim(1, 2)}), "expected images"),
    "batch index": (
        lambda g: dict(latent_image=g.latent() | {"batch_index": [1]}),
        "names 1 images, the latent holds 2",
    ),
    "empty mask": (
        lambda g: dict(latent_image=g.latent() | {"noise_mask": torch.zeros(0, g.pixels, g.pixels)}),
        "at least 1 image",
    ),
    "another model's classes": (
        lambda g: dict(positive=[[torch.zeros(1, 1, 1), {"gtr_labels": (980,)}]]),
        "connect the same model",
    ),
    "no condition": (lambda g: dict(positive=[]), "connect a condition"),
    "too many classes": (lambda g: dict(positive=g.condition("1,2,3")), "set batch_size to 3"),
    "stages": (lambda g: dict(schedule=g.schedule(steps="1" + ", 1" * 11)), "use at most"),
    "rates": (lambda g: dict(schedule=g.schedule(rates="1, 1, 500")), "rate 500 of stage 3 does not fit"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused(graph: Graph, case: str) -> None:
    inputs, words = CASES[case]
    with pytest.raises(ValueError, match=words) as caught:
        graph.sample(**inputs(graph))
    assert "\n" not in str(caught.value)


def test_wrong_settings_of_single_nodes(graph: Graph) -> None:
    with pytest.raises(ValueError, match="class 12 is out of range"):
        graph.condition("12")
    with pytest.raises(ValueError, match="not one of demo's 12 classes"):
        graph.one("GtR_ClassCondition", model=graph.model, class_name="207: golden retriever")
    with pytest.raises(ValueError, match=r"demo draws (\d+) x \1 pixels only, found 256 x \1"):
        graph.one("GtR_EmptyLatent", model=graph.model, width=256, height=0, batch_size=1)
    with pytest.raises(ValueError, match="steps '3, x': expected whole numbers"):
        graph.schedule(steps="3, x")
    with pytest.raises(ValueError, match="exactly one"):
        graph.schedule(steps="")


@pytest.mark.parametrize("method", ["origin", "step-n", "raster", "subsample", "halton", "disa"])
def test_baselines_run(graph: Graph, method: str) -> None:
    schedule = graph.one("GtR_BaselineScheduler", method=method, ar_steps=4, diffusion_steps=6, disa_end=3)
    if method == "origin":
        assert schedule == core(graph, "plans.presets").preset("origin")
        return
    out, report = graph.sample(schedule=schedule)
    assert torch.isfinite(out["samples"]).all()
    assert report.startswith(f"{method.removesuffix('-n')}-4 on demo: ") and "4 AR steps" in report


def test_lazymar_runs_and_says_what_it_saved(graph: Graph) -> None:
    cache = graph.one("GtR_LazyMAR", start_step=2, period=4)
    schedule = graph.one("GtR_BaselineScheduler", method="step-n", ar_steps=8, diffusion_steps=16)
    plain, before = graph.sample(schedule=schedule)
    lazy, after = graph.sample(schedule=schedule, cache=cache)
    assert torch.isfinite(lazy["samples"]).all() and not torch.equal(plain["samples"], lazy["samples"])
    assert "LazyMAR: 4 of 8 AR steps computed in full" in after and "LazyMAR" not in before
    with pytest.raises(ValueError, match="needs guidance"):
        graph.sample(cache=cache, cfg=1.0, schedule=schedule)
    with pytest.raises(ValueError, match="full decoder scope"):
        graph.sample(cache=cache)


def test_class_options(graph: Graph) -> None:
    options = graph.pack.module("nodes.conditioning").CLASS_OPTIONS
    assert len(options) == 1013 and options[208] == "207: golden retriever" and options[1002] == "demo 1: bird"
    assert len(set(options)) == len(options)
