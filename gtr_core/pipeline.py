"""From conditions to images: whole batches by a method, and given images of which some tokens are resampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .device import Preparations, Runtime
from .errors import GtRError
from .models.autoencoder import Autoencoder
from .models.latents import tokens_to_latent
from .models.model import Model
from .models.prompts import Condition
from .models.spec import ModelSpec
from .noise import SeededNoise, image_seeds
from .plans.method import Method
from .plans.partition import LONGEST_SIDE
from .plans.plan import Plan, make_plan
from .plans.regions import LARGEST_WINDOWED_SIDE, Region, whole_grid, window_regions
from .sampling.memory import activation_bytes, check_run, images_that_fit
from .sampling.sampler import Callback, Progress, sample


def generate(
    model: Model,
    vae: Autoencoder,
    *,
    labels: Sequence[int] | None = None,
    texts: Condition | None = None,
    method: Method,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    callback: Callback | None = None,
) -> np.ndarray:
    """Images (n, height, width, 3) uint8, one per label or text; image k has the seed ``seed + k``.

    ``labels`` are class indices (MAR), ``texts`` states of the text encoder (n, text_length, caption_dim) (LightGen),
    ids of prompts (n, ids), see ``ModelSpec.encode_prompts`` (Harmon), or an ``EditCondition`` (UniPic); give the one
    that the model takes. ``size`` is (height, width) in pixels, by default the model's own. The run computes on the
    model's device, in its dtype, with what pays there. Raises GtRError when the inputs do not fit.

    >>> model, vae = load_model(DEMO_MAR), load_vae(DEMO_VAE)
    >>> generate(model, vae, labels=[0], method=Method(preset("gtr-extreme"))).shape
    (1, 128, 128, 3)
    """
    if (labels is None) == (texts is None):
        raise GtRError("expected labels or texts, one of the two")
    check_pair(model, vae)
    spec = model.spec
    grid = spec.grid if size is None else spec.latent.grid(size)
    condition = texts if labels is None else torch.as_tensor(labels)
    runtime = Runtime(model.device, model.dtype, accelerate=True)
    latents = generate_latents(model, method, condition, seed, grid=grid, runtime=runtime, callback=callback)
    return decode_images(vae, latents)


def generate_latents(
    model: Model,
    method: Method,
    condition: Condition | Sequence[int],
    seed: int,
    *,
    grid: tuple[int, int] | None = None,
    runtime: Runtime = Runtime(),
    callback: Callback | None = None,
) -> Tensor:
    """VAE-scale latents (B, C, H, W), one image per label or text; image k has the seed ``seed + k``."""
    spec, seeds = model.spec, image_seeds(seed, len(condition))
    plan = make_plan(method, grid or spec.grid, seeds)
    check_run(plan, spec, runtime)
    noise = SeededNoise(seeds, spec.head.channels)
    if isinstance(condition, Sequence):
        condition = torch.as_tensor(condition)
    tokens = sample(model, plan, condition, noise, runtime=runtime, callback=callback)
    check_tokens(tokens)
    return tokens_to_latent(tokens, plan.grid, spec.latent)


def check_tokens(tokens: Tensor) -> None:
    """Raises GtRError when a run ended in NaN or infinite values (B, L, C): an image of them would be black."""
    if not torch.isfinite(tokens).all():
        raise GtRError(
            "the run ended in NaN or infinite values, nothing was saved: lower the guidance scale or the temperature, "
            "or use float32 or bfloat16 instead of float16"
        )


def check_pair(model: Model, vae: Autoencoder) -> None:
    """Raises GtRError when the VAE's latents are not what the model generates."""
    latent, spec = model.spec.latent, vae.spec
    if (latent.channels, latent.stride) != (spec.embed_channels, spec.stride):
        raise GtRError(
            f"{model.spec.name} makes latents of {latent.channels} channels at 1/{latent.stride} size, the VAE "
            f"decodes {spec.embed_channels} channels at 1/{spec.stride}: use the model's own VAE"
        )
    if latent.kind != spec.latents:
        raise GtRError(
            f"{model.spec.name} draws latents of the kind '{latent.kind}', the VAE decodes '{spec.latents}': use the "
            "model's own VAE"
        )


@torch.no_grad()
def decode_images(vae: Autoencoder, latents: Tensor) -> np.ndarray:
    """VAE-scale latents (B, C, H, W) -> images (B, H, W, 3) uint8, one at a time to bound memory."""
    device = next(vae.parameters()).device
    images = torch.cat([vae.decode(latent[None].to(device)).clamp(-1, 1) for latent in latents])
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


@torch.no_grad()
def encode_images(vae: Autoencoder, images: np.ndarray) -> Tensor:
    """Images (B, H, W, 3) uint8 -> VAE-scale latents (B, C, H / stride, W / stride), the posterior's mean."""
    device = next(vae.parameters()).device
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([vae.encode(image[None].to(device)) for image in pixels])


@dataclass(frozen=True, eq=False)
class Canvas:
    """What is given and what is to be decoded: VAE-scale ``latents`` (B, C, H, W), ``unknown`` tokens (B, h, w) bool.

    ``overlap`` allows windows for a grid that the model cannot draw at once, see :func:`plan_decoding`."""

    latents: Tensor
    unknown: Tensor
    overlap: int | None = None

    @classmethod
    def empty(cls, spec: ModelSpec, batch: int, grid: tuple[int, int]) -> Canvas:
        """Nothing is given."""
        patch = spec.latent.patch
        latents = torch.zeros(batch, spec.latent.channels, grid[0] * patch, grid[1] * patch)
        return cls(latents, torch.ones(batch, *grid, dtype=torch.bool))

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.unknown.shape[1:])

    def only(self, unknown: Tensor) -> Canvas:
        """With fewer unknown tokens: those that are in ``unknown`` (B or 1, h, w) bool too."""
        return replace(self, unknown=self.unknown & unknown)

    def extended(self, spec: ModelSpec, room: tuple[int, int, int, int], overlap: int = 0) -> Canvas:
        """With unknown tokens around it: ``room`` tokens left, right, top and bottom. What was given stays given.

        Raises GtRError for a side that windows cannot cover, and for latents that can be decoded in one size only."""
        if spec.latent.one_size:
            raise GtRError(
                f"{spec.name} draws latents of {spec.latent.kind}, which are decoded at "
                f"{spec.latent.pixels(spec.grid)} pixels only: they cannot be extended; use a model on KL-16"
            )
        left, right, top, bottom = room
        height, width = self.grid[0] + top + bottom, self.grid[1] + left + right
        most = LONGEST_SIDE if spec.can_draw((height, width)) else LARGEST_WINDOWED_SIDE
        if max(height, width) > most:
            raise GtRError(f"an image of {height} x {width} tokens: expected at most {most} a side; add less room")
        patch = spec.latent.patch
        latents = F.pad(self.latents, [tokens * patch for tokens in room])
        given = torch.zeros(len(self.latents), *self.grid)
        unknown = F.pad(given, list(room), value=1.0) > 0
        wide = not spec.can_draw(tuple(unknown.shape[1:]))
        return Canvas(latents, unknown, overlap if wide else None)

    def finished(self, tokens: Tensor, spec: ModelSpec) -> Tensor:
        """Latents of decoded ``tokens`` (B, L, C), the given cells exactly as they were."""
        after = tokens_to_latent(tokens, self.grid, spec.latent)
        cells = self.unknown[:, None].repeat_interleave(spec.latent.patch, 2).repeat_interleave(spec.latent.patch, 3)
        return torch.where(cells, after, self.latents.to(after))


def masked_tokens(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The tokens, (B, h, w) bool, with a pixel of ``mask`` (B, H, W) above one half."""
    return F.adaptive_max_pool2d(mask[:, None].float(), grid)[:, 0] > 0.5


@dataclass(frozen=True, eq=False)
class Section:
    """A region of some images of a batch, all with the same mask: ``images`` are their rows in the batch. Memory may
    split it: ``parts`` are the plan's batch in as few pieces as fit. It is window ``window`` of ``windows``."""

    images: tuple[int, ...]
    region: Region
    parts: tuple[Plan, ...]
    window: int
    windows: int


@dataclass(frozen=True, eq=False)
class Decoding:
    """What :func:`decode` will do, in order: a section per distinct mask and window."""

    sections: tuple[Section, ...]

    @property
    def plans(self) -> list[Plan]:
        """What ``sample`` will be called with."""
        return [part for section in self.sections for part in section.parts]

    @property
    def ar_steps(self) -> int:
        return sum(len(plan.steps) for plan in self.plans)

    def windows_of(self, section: Section, plan: Plan) -> tuple[Region, ...]:
        """All regions of a section's images, its own with the ``plan`` of some of them."""
        regions = [other.region for other in self.sections if other.images == section.images]
        regions[section.window] = replace(section.region, plan=plan)
        return tuple(regions)

    def needed_bytes(self, spec: ModelSpec, runtime: Runtime) -> int:
        """Activations of the largest call, 0 without any. Raises GtRError where main memory cannot hold one."""
        for plan in self.plans:
            check_run(plan, spec, runtime)
        return max((activation_bytes(plan, spec, runtime) for plan in self.plans), default=0)


def plan_decoding(
    spec: ModelSpec,
    method: Method,
    seeds: Sequence[int],
    unknown: np.ndarray,
    runtime: Runtime,
    *,
    overlap: int | None = None,
    budget: int | None = None,
) -> Decoding:
    """Split the ``unknown`` tokens, (B, h, w) bool, of a batch into runs of ``sample``.

    A grid that the model cannot draw at once is decoded by windows, where ``overlap`` says by how many tokens they
    overlap at least (0 = half a window, None = windows are not wanted). ``budget`` are the bytes for activations on
    the device: a batch that needs more is decoded in parts; an image does not depend on its part. Raises GtRError for
    settings that do not fit the grid.
    """
    sections = []
    for images in _same_masks(unknown):
        its_seeds, mask = [seeds[k] for k in images], unknown[images[0]]
        if overlap is None or spec.can_draw(mask.shape):
            spec.check_grid(mask.shape)
            regions = whole_grid(method, its_seeds, mask)
        else:
            regions = window_regions(method, spec.grid, its_seeds, mask, overlap)
        for window, region in enumerate(regions):
            size = len(images) if budget is None else images_that_fit(budget, region.plan, spec, runtime)
            parts = tuple(region.plan.part(slice(k, k + size)) for k in range(0, len(images), size))
            sections.append(Section(images, region, parts, window, len(regions)))
    return Decoding(tuple(sections))


@dataclass(frozen=True, eq=False)
class Place:
    """Where a decoding is when it reports progress: the plan that runs, and the ``tokens`` (L, C) of its first image in
    the whole grid as they were when it began. It is window ``window`` of the ``regions``."""

    plan: Plan
    window: int
    regions: tuple[Region, ...]
    tokens: Tensor


Observer = Callable[[Progress, Place], None]


@dataclass(frozen=True, eq=False)
class Decoded:
    """The result of :func:`decode`: ``tokens`` (B, L, C); per token the diffusion ``steps`` done and those of them that
    the schedule asked for, (B, L) int64, 0 for given tokens; per section the ``seconds`` of its AR steps."""

    tokens: Tensor
    steps: np.ndarray
    scheduled: np.ndarray
    seconds: list[list[float]] = field(default_factory=list)


def decode(
    model: Model,
    decoding: Decoding,
    tokens: Tensor,
    condition: Condition,
    *,
    negative: Condition | None = None,
    runtime: Runtime = Runtime(),
    observer: Observer | None = None,
) -> Decoded:
    """Run a decoding on ``tokens`` (B, L, C) in model scale, on the CPU; given ones come back unchanged.

    ``condition`` and ``negative`` have one row per image of the batch. ``observer`` is called where the callback of
    ``sample`` is.
    """
    tokens = tokens.clone()
    if runtime.preparations is None:
        runtime = replace(runtime, preparations=Preparations())  # for all parts and windows
    steps, scheduled = np.zeros((2, *tokens.shape[:2]), np.int64)
    result = Decoded(tokens, steps, scheduled)
    for section in decoding.sections:
        clocks, start = [], 0
        for plan in section.parts:
            images = list(section.images[start : start + plan.batch])
            seeds = tuple(section.region.seeds[start : start + plan.batch])
            start += plan.batch
            area = np.ix_(images, section.region.positions)
            place = Place(plan, section.window, decoding.windows_of(section, plan), tokens[images[0]].clone())
            clock = _Clock(place, observer)
            values = sample(
                model,
                plan,
                condition[images],
                SeededNoise(seeds, model.spec.head.channels),
                tokens=tokens[area],
                negative=None if negative is None else negative[images],
                runtime=runtime,
                callback=clock,
            )
            check_tokens(values)
            tokens[area] = values.cpu()
            steps[area] += clock.spent
            scheduled[area] += plan.scheduled_steps()
            clocks.append(clock.seconds(time.perf_counter()))
        result.seconds.append([sum(step) for step in zip(*clocks)])
    return result


class _Clock:
    """A callback of ``sample`` that notes when AR steps begin, and the diffusion steps of every token at the end."""

    def __init__(self, place: Place, observer: Observer | None):
        self.place = place
        self.observer = observer
        self.marks: list[float] = []
        self.spent: np.ndarray | None = None

    def __call__(self, progress: Progress) -> None:
        if self.observer is not None:
            self.observer(progress, self.place)
        if progress.diffusion_step == 0 and progress.step < progress.steps:
            self.marks.append(time.perf_counter())
        if progress.step == progress.steps:
            self.spent = progress.spent.cpu().numpy()

    def seconds(self, end: float) -> list[float]:
        """Of every AR step. On a GPU work is queued: only the sum is exact."""
        return [after - before for before, after in zip(self.marks, [*self.marks[1:], end])]


def _same_masks(unknown: np.ndarray) -> list[tuple[int, ...]]:
    """Images with equal masks together: a plan has one set of unknown tokens."""
    groups: dict[bytes, list[int]] = {}
    for image, mask in enumerate(unknown):
        groups.setdefault(mask.tobytes(), []).append(image)
    return [tuple(images) for images in groups.values()]
