"""l-DeTok in ComfyUI: its tokenizer as the host's VAE object, and a MAR on its latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOKENIZER, RAW, MAR = "detok-tokenizer.safetensors", "detok-raw.pth", "detok-mar.pth"
PIXELS = 128


@dataclass
class DeTok:
    """The files of small random models, in the form of the published ones, and the host that reads them."""

    pack: Any
    folder: Path

    def node(self, name: str, **inputs: Any) -> Any:
        """The first output of one of ours."""
        return self.pack.classes[name].execute(**inputs).result[0]

    def stock(self, name: str) -> Any:
        return self.pack.host.NODE_CLASS_MAPPINGS[name]()

    @property
    def vae(self) -> Any:
        return self.node("GtR_LoadMARVAE", vae_name=TOKENIZER)

    @property
    def ours(self) -> Any:
        return self.pack.module("gtr_core.checkpoints").load_vae(self.folder / TOKENIZER)


@pytest.fixture(scope="module")
def detok(host_pack: Any, tmp_path_factory: Any) -> DeTok:
    import folder_paths

    folder = tmp_path_factory.mktemp("detok")
    convert = host_pack.module("gtr_core.checkpoints.convert").convert
    torch.save({"model_ema": load_file(GOLDEN / "detok_tokenizer_fp16.safetensors")}, folder / RAW)
    stats = GOLDEN / "detok_fixtures" / "stats_torch_cuda.pkl"
    convert(folder / RAW, folder / TOKENIZER, stats=stats, heads=2)
    torch.save({"model_ema": load_file(GOLDEN / "detok_mar_fp16.safetensors"), "loss_scaler": {}}, folder / MAR)
    convert(folder / MAR, folder / f"{MAR}.safetensors", heads=3)
    for kind in ("vae", "diffusion_models"):
        folder_paths.add_model_folder_path(kind, str(folder))
    return DeTok(host_pack, folder)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the host runs nodes."""
    with torch.inference_mode():
        yield


def latents(batch: int, side: int = 8) -> torch.Tensor:
    return torch.randn(batch, 16, side, side, generator=torch.Generator().manual_seed(1))


def test_stock_nodes_decode_and_encode_with_the_tokenizer(detok: DeTok) -> None:
    import comfy.sd

    vae, ours, samples = detok.vae, detok.ours, latents(3)
    assert isinstance(vae, comfy.sd.VAE)
    (images,) = detok.stock("VAEDecode").decode(vae, {"samples": samples})
    expected = ((ours.decode(samples) + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)
    (encoded,) = detok.stock("VAEEncode").encode(vae, images)
    torch.testing.assert_close(encoded["samples"], ours.encode(expected.movedim(-1, 1) * 2 - 1), rtol=0, atol=1e-4)
    (tiled,) = detok.stock("VAEDecodeTiled").decode(vae, {"samples": samples}, 512, 64)
    torch.testing.assert_close(tiled, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("height, width", [(PIXELS, PIXELS + 8), (256, 256), (64, 128)])
def test_another_size_ends_in_one_line(height: int, width: int, detok: DeTok) -> None:
    """It is not cropped either, as the host does with sizes between two latents."""
    error = detok.pack.module("gtr_core.errors").GtRError
    with pytest.raises(error, match=f"images of 128 x 128 pixels only, found {width} x {height}: scale or crop"):
        detok.stock("VAEEncode").encode(detok.vae, torch.zeros(1, height, width, 3))
    with pytest.raises(error, match="images of 128 x 128 pixels only, found 256 x 256"):
        detok.stock("VAEDecode").decode(detok.vae, {"samples": latents(1, 16)})


def test_the_tokenizer_gives_its_memory_back(detok: DeTok) -> None:
    import comfy.model_management as mm

    vae, samples = detok.vae, latents(1)
    before = vae.decode(samples)
    assert vae.patcher in [entry.model for entry in mm.current_loaded_models]
    assert vae.patcher.model_size() == sum(t.nbytes for t in detok.ours.state_dict().values())
    mm.unload_all_models()
    assert vae.patcher not in [entry.model for entry in mm.current_loaded_models]
    torch.testing.assert_close(vae.decode(samples), before)


def test_an_image_goes_from_the_sampler_through_the_tokenizer_and_back(detok: DeTok) -> None:
    """Drawn, decoded, encoded, and a part of it drawn again; the report says what was assumed of the model's file."""
    model = detok.node("GtR_LoadMAR", model_name=f"{MAR}.safetensors", weight_dtype="fp32")
    assert model.patcher.model.latent_format.scale_factor == 1.0
    condition = detok.node("GtR_ClassCondition", model=model, class_name="0", class_list="3")
    schedule = detok.node("GtR_Scheduler", preset="gtr-extreme")
    empty = detok.node("GtR_EmptyLatent", model=model, width=0, height=0, batch_size=1)
    inputs = {"model": model, "positive": condition, "schedule": schedule, "seed": 1, "cfg": 3.9}
    drawn, report, _ = detok.pack.classes["GtR_Sampler"].execute(**inputs, latent_image=empty).result
    assert report.splitlines()[-1].startswith("note: latents assumed to be l-DeTok's")
    (image,) = detok.stock("VAEDecode").decode(detok.vae, drawn)
    assert image.shape == (1, PIXELS, PIXELS, 3) and image.std() > 0.01
    (encoded,) = detok.stock("VAEEncode").encode(detok.vae, image)
    again = detok.node("GtR_Redraw", model=model, schedule=schedule, latent=encoded, redraw="reconstruction")
    redrawn, *_ = detok.pack.classes["GtR_Sampler"].execute(**inputs, latent_image=again).result
    with pytest.raises(detok.pack.module("gtr_core.errors").GtRError, match="they cannot be extended"):
        detok.node("GtR_Outpaint", model=model, latent=encoded, left=16)
    kept = again["noise_mask"][:, :, ::16, ::16] == 0
    assert torch.equal(redrawn["samples"][kept.expand(1, 16, 8, 8)], encoded["samples"][kept.expand(1, 16, 8, 8)])


def test_a_tokenizer_without_its_statistics_is_refused(detok: DeTok) -> None:
    error = detok.pack.module("gtr_core.errors").GtRError
    convert = detok.pack.module("gtr_core.checkpoints.convert").convert
    convert(detok.folder / RAW, detok.folder / "detok-without.safetensors", heads=2, overwrite=True)
    with pytest.raises(error, match="detok-without.safetensors: .* convert it with --stats stats.pkl"):
        detok.node("GtR_LoadMARVAE", vae_name="detok-without.safetensors")


def test_other_statistics_beside_a_tokenizer_load_it_again(detok: DeTok) -> None:
    def state() -> tuple[int, ...]:
        return detok.pack.classes["GtR_LoadMARVAE"].fingerprint_inputs(vae_name=RAW)

    beside, alone = detok.folder / "stats.pkl", state()
    assert state() == alone
    beside.write_bytes(b"one")
    first = state()
    beside.write_bytes(b"another")
    assert len({alone, first, state()}) == 3
    beside.unlink()
