"""Latents in and out of the sampler."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gtr_core.device import Runtime, check_budget
from ..gtr_core.errors import GtRError
from ..gtr_core.models import ModelSpec
from ..gtr_core.models.latents import latent_to_tokens
from ..gtr_core.noise import image_seeds
from ..gtr_core.pipeline import Canvas, Decoding, masked_tokens, plan_decoding
from ..gtr_core.plans.method import Method
from ._api import MarModel, io
from ._device import to_wire
from ._images import fitted_samples
from ._models import ModelHandle
from .conditions import BatchImages

# Marks a latent that 'Outpaint' made: draw it by windows, which overlap by this many tokens (0 = half a window).
WINDOWS = "gtr_windows"
# Marks a mask that 'Redraw Stages' or 'Outpaint' made, by the digests of its images: the sampler takes it away once it
# has drawn what it covers. What came before it, if anything, is in force again then.
OWN_MASK, MASK_BEFORE = "gtr_own_mask", "gtr_mask_before"
UNUSED_IMAGE = (
    "the latent holds an image and no mask, so nothing of the image was kept: connect Redraw Stages to vary it, or Set "
    "Latent Noise Mask to change a part of it"
)
EMPTY_MASK = (
    "the mask covers nothing, so nothing was drawn: paint over what is to change, in Load Image with Open in MaskEditor"
)


class EmptyLatent(io.ComfyNode):
    """An empty LATENT of the model's size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GtR_EmptyLatent",
            display_name="Empty MAR Latent",
            category="GtR/latent",
            description="An empty latent with the size and channels of the model.",
            search_aliases=["mar latent", "empty latent image", "size", "batch", "gtr"],
            inputs=[
                MarModel.Input("model", tooltip="The model that will draw: its size and channels are used."),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    optional=True,
                    tooltip="Pixels; 0 = the model's own size. MAR draws that size only.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    optional=True,
                    tooltip="Pixels; 0 = the model's own size. MAR draws that size only.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    optional=True,
                    tooltip="Images per run; image k has the seed + k.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For latent_image of GtR Sampler.")],
        )

    @classmethod
    def execute(cls, model: ModelHandle, width: int = 0, height: int = 0, batch_size: int = 1) -> io.NodeOutput:
        spec = model.spec
        own_height, own_width = spec.latent.size(spec.grid)
        pixels = spec.latent.stride * spec.latent.patch
        size = (height or own_height, width or own_width)
        if size[0] % pixels or size[1] % pixels:
            raise GtRError(f"{size[1]} x {size[0]} pixels: {spec.name} needs a width and height divisible by {pixels}")
        try:
            spec.check_grid((size[0] // pixels, size[1] // pixels))
        except GtRError as error:
            raise GtRError(f"{error} (set width and height to 0)") from None
        cells = (size[0] // spec.latent.stride, size[1] // spec.latent.stride)
        check_budget(
            batch_size * spec.latent.channels * cells[0] * cells[1] * 4,
            f"{batch_size} latents of {size[1]} x {size[0]} pixels need",
        )
        samples = to_wire(torch.zeros(batch_size, spec.latent.channels, *cells))
        return io.NodeOutput({"samples": samples, "downscale_ratio_spacial": spec.latent.stride})


@dataclass(frozen=True, eq=False)
class LatentBatch:
    """A LATENT as the nodes work on it: a ``canvas`` for the model of ``spec``, and the indices ``images`` of its
    images in their original batch."""

    latent: io.Latent.Type
    spec: ModelSpec
    canvas: Canvas
    images: Sequence[int]

    @classmethod
    def read(cls, latent: io.Latent.Type, model: ModelHandle, *, any_size: bool = False) -> LatentBatch:
        """Raises GtRError for a latent that does not fit the model; with ``any_size`` its size may be another one."""
        spec, overlap = model.spec, latent.get(WINDOWS)
        samples = fitted_samples(latent, model.patcher)
        try:
            check_samples(samples, spec)
            grid = samples.shape[2] // spec.latent.patch, samples.shape[3] // spec.latent.patch
            if overlap is None and not any_size:
                spec.check_grid(grid)
        except GtRError as error:
            raise GtRError(f"{error} (the latent's shape is {shape_of(latent)})") from None
        canvas = Canvas(samples, unknown_tokens(latent, len(samples), grid), overlap)
        return cls(latent, spec, canvas, batch_images(latent, len(samples)))

    @classmethod
    def read_image(cls, latent: io.Latent.Type, model: ModelHandle, *, any_size: bool = False) -> LatentBatch:
        """That of an image. Raises GtRError for an empty one too."""
        batch = cls.read(latent, model, any_size=any_size)
        if not batch.has_image:
            raise GtRError("the latent is empty: connect one from a sampler or from VAE Encode")
        return batch

    def plan(self, method: Method, seed: int, runtime: Runtime, budget: int | None = None) -> Decoding:
        """The runs of the sampler; image k of the original batch has the seed ``seed + k``."""
        seeds, unknown = image_seeds(seed, self.images), self.canvas.unknown.numpy()
        return plan_decoding(self.spec, method, seeds, unknown, runtime, overlap=self.canvas.overlap, budget=budget)

    def tokens(self) -> Tensor:
        """Model-scale tokens (B, L, C) on the CPU."""
        return latent_to_tokens(self.canvas.latents, self.spec.latent).cpu()

    def finished(self, tokens: Tensor) -> io.Latent.Type:
        """The LATENT to pass on: known tokens exactly as they came, bookkeeping of empty latents dropped."""
        kept = {key: value for key, value in self.latent.items() if not key.startswith("downscale_ratio_")}
        return without_own_mask(kept, len(tokens)) | {"samples": to_wire(self.canvas.finished(tokens, self.spec))}

    @property
    def conditioned(self) -> BatchImages:
        """The images as conditions see them."""
        return BatchImages(self.images, self.latent.get("batch_index") is None, self.has_mask)

    @property
    def has_mask(self) -> bool:
        """Whether a mask says what to draw."""
        return self.latent.get("noise_mask") is not None

    @property
    def has_image(self) -> bool:
        """Whether there is something in it: an empty latent holds one value everywhere."""
        samples = self.canvas.latents
        return bool((samples != samples.flatten()[0]).any())

    def remarks(self) -> list[str]:
        """What the user should know about how this latent was used."""
        unused = self.has_image and not self.has_mask
        return [UNUSED_IMAGE] * unused + [EMPTY_MASK] * (not self.canvas.unknown.any())

    def masked(self, canvas: Canvas) -> io.Latent.Type:
        """The LATENT of another canvas of the same images: its mask covers the pixels of the tokens to draw, once for
        the whole batch where that is the same for all."""
        unknown = canvas.unknown[:1] if (canvas.unknown == canvas.unknown[:1]).all() else canvas.unknown
        pixels = self.spec.latent.patch * self.spec.latent.stride
        mask = unknown.float().repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)
        kept = {key: value for key, value in self.latent.items() if key not in (WINDOWS, OWN_MASK, MASK_BEFORE)}
        windows = {} if canvas.overlap is None else {WINDOWS: canvas.overlap}
        mask = mask[:, None]
        return kept | windows | {"samples": canvas.latents, "noise_mask": mask, OWN_MASK: frozenset(digests(mask))}


def digests(mask: Tensor) -> list[bytes]:
    """One per image of a mask (B, 1, H, W); stock nodes pick images of a batch and repeat them."""
    pixels = (mask > 0.5).to(torch.uint8).cpu().numpy()
    return [hashlib.sha256(image.tobytes()).digest() for image in pixels]


def digests_of_images(mask: Tensor, batch: int) -> tuple[bytes, ...]:
    """One per image of a batch, whose mask may be the same for all."""
    found = digests(mask)
    return tuple(found[k % len(found)] for k in range(batch))


@dataclass(frozen=True, eq=False)
class EarlierMask:
    """The mask that a latent had before a node of ours made its ``own``, of which there is a digest per image."""

    mask: Tensor
    own: tuple[bytes, ...]

    def of(self, own: tuple[bytes, ...]) -> Tensor:
        """For images with these masks of ours, which stock nodes may have picked and repeated. Where several images had
        the same one, a pixel counts that any of them had."""
        if own == self.own:
            return self.mask
        places = [[k % len(self.mask) for k, each in enumerate(self.own) if each == image] for image in own]
        return torch.stack([self.mask[rows].amax(0) for rows in places])


def without_own_mask(latent: io.Latent.Type, batch: int) -> io.Latent.Type:
    """A finished LATENT: a mask that our nodes made for it goes, one that the user made stays."""
    own, mask = latent.get(OWN_MASK), latent.get("noise_mask")
    rest = {key: value for key, value in latent.items() if key not in (OWN_MASK, MASK_BEFORE)}
    if own is None or mask is None or not own.issuperset(digests(mask)):
        return rest
    before = latent.get(MASK_BEFORE)
    if before is None:
        del rest["noise_mask"]
    else:
        rest["noise_mask"] = before.of(digests_of_images(mask, batch))
    return rest


def shape_of(latent: io.Latent.Type) -> str:
    return " x ".join(map(str, latent["samples"].shape))


def check_samples(samples: Tensor, spec: ModelSpec) -> None:
    """Raises GtRError unless the samples (B, C, H, W) of a LATENT are whole tokens of the model."""
    if samples.ndim != 4:
        raise GtRError(f"the latent has {samples.ndim} dimensions: expected images (batch, channels, height, width)")
    if samples.shape[0] < 1:
        raise GtRError("the latent holds no image: expected a batch of at least 1 image")
    if samples.shape[1] != spec.latent.channels:
        raise GtRError(
            f"the latent has {samples.shape[1]} channels, {spec.name} needs {spec.latent.channels}: use "
            "Empty MAR Latent, or encode the image with the model's own VAE"
        )
    patch, stride = spec.latent.patch, spec.latent.stride
    if samples.shape[2] % patch or samples.shape[3] % patch:
        raise GtRError(
            f"the latent is {samples.shape[3] * stride} x {samples.shape[2] * stride} pixels, {spec.name} needs "
            f"a width and height divisible by {patch * stride}: use Empty MAR Latent, or scale the image"
        )


def batch_images(latent: io.Latent.Type, batch: int) -> list[int]:
    """The indices of the images in their original batch: ``batch_index``, or 0, 1, ... Raises GtRError."""
    given = latent.get("batch_index")
    images = list(range(batch)) if given is None else [int(index) for index in given]
    if len(images) != batch:
        raise GtRError(f"batch_index names {len(images)} images, the latent holds {batch}: make the latent again")
    return images


def unknown_tokens(latent: io.Latent.Type, batch: int, grid: tuple[int, int]) -> Tensor:
    """Which tokens are to be drawn, (B, h, w) bool: all, or those with a pixel in ``noise_mask`` above one half."""
    mask = latent.get("noise_mask")
    if mask is None:
        return torch.ones(batch, *grid, dtype=torch.bool)
    if not mask.numel():
        raise GtRError(f"the noise mask has the shape {tuple(mask.shape)}: expected at least 1 image; remove it")
    tokens = masked_tokens(mask.reshape(-1, *mask.shape[-2:]).cpu(), grid)
    return tokens[torch.arange(batch) % len(tokens)]
