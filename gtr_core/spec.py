"""Specs: frozen descriptions of a model. What members of a family differ in is data here, not a branch in code."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import GtRError

# Head counts leave no trace in tensor shapes; these widths are the published MAR-B, MAR-L and MAR-H.
HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16}
VARIANTS = {(768, 12, 12, 6, 1024): "mar-b", (1024, 16, 16, 8, 1280): "mar-l", (1280, 20, 20, 12, 1536): "mar-h"}


@dataclass(frozen=True)
class DiffusionSpec:
    """The base noise process of a diffusion head.

    ``beta_cap`` limits the betas of the cosine schedule (0.999 is MAR's); ``max_timestep`` clips the respaced
    timesteps (None = no clip), see :class:`gtr_core.diffusion.Chain`.
    """

    base_steps: int = 1000
    beta_cap: float = 0.999
    max_timestep: int | None = None


@dataclass(frozen=True)
class HeadSpec:
    """The per-token diffusion head: an adaLN MLP of ``depth`` residual blocks of ``width`` units."""

    channels: int
    condition_dim: int
    width: int
    depth: int
    frequency_dim: int = 256


@dataclass(frozen=True)
class LatentSpec:
    """How tokens relate to the VAE's latent: ``token = (latent - shift) * scale``, ``patch`` x ``patch`` cells each.

    ``stride`` is pixels per latent cell. ``rgb`` holds, if known, one (r, g, b) row per channel and a last row of
    biases: a linear map from the scaled latent to colours in [-1, 1], good enough for a preview.
    """

    channels: int = 16
    stride: int = 16
    patch: int = 1
    scale: float = 0.2325
    shift: float = 0.0
    rgb: tuple[tuple[float, float, float], ...] | None = None

    @property
    def token_dim(self) -> int:
        return self.channels * self.patch**2

    def size(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels of a token grid."""
        return grid[0] * self.stride * self.patch, grid[1] * self.stride * self.patch

    def pixels(self, grid: tuple[int, int]) -> str:
        """The size of a token grid for messages, width first."""
        height, width = self.size(grid)
        return f"{width} x {height}"


@dataclass(frozen=True)
class MARSpec:
    """A class-conditional masked autoregressive model (spec of the published sizes: ``mar_spec('mar-b')``)."""

    name: str
    grid: tuple[int, int]
    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    classes: int
    buffer: int
    head: HeadSpec
    latent: LatentSpec = LatentSpec()
    diffusion: DiffusionSpec = DiffusionSpec()
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    class_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raises GtRError for a grid that the model cannot draw: its positions are learned for one size."""
        if tuple(grid) != self.grid:
            raise GtRError(f"{self.name} draws {self.latent.pixels(self.grid)} pixels only, found "
                           f"{self.latent.pixels(grid)}: use the model's own size")


@dataclass(frozen=True)
class LightGenSpec:
    """A LightGen model (text to image, upstream's FLUID; docs/upstream.md 3). ``grid`` is its usual size, not its only.

    ``text_length`` text positions of ``caption_dim`` values come from the text encoder; position tables have
    ``table`` x ``table`` entries and are resized. Upstream swaps the axes of resized tables; that is reproduced
    unless ``corrected_positions`` is set, which matters for non-square pictures only.
    """

    name: str
    dim: int
    heads: int
    encoder_depth: int
    decoder_depth: int
    cross_depth: int
    aligner_depth: int
    caption_dim: int
    head: HeadSpec
    latent: LatentSpec = LatentSpec(channels=16, stride=8, patch=2, scale=1.5305, shift=0.0609)
    grid: tuple[int, int] = (32, 32)
    text_length: int = 128
    table: int = 16
    corrected_positions: bool = False
    diffusion: DiffusionSpec = DiffusionSpec()
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    buffer: int = 0

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Raises GtRError for a grid without tokens."""
        if min(grid) < 1:
            raise GtRError(f"{self.name} needs at least 1 x 1 tokens, found {grid[0]} x {grid[1]}")


ModelSpec = MARSpec | LightGenSpec

# The published text-to-image model.
LIGHTGEN = LightGenSpec(name="lightgen", dim=1024, heads=16, encoder_depth=16, decoder_depth=16, cross_depth=16,
                        aligner_depth=6, caption_dim=4096,
                        head=HeadSpec(channels=64, condition_dim=1024, width=1536, depth=8))


@dataclass(frozen=True)
class VAESpec:
    """An LDM-layout KL autoencoder; ``*_attention`` are the levels with attention after each block;
    ``quant`` says whether there are 1 x 1 convolutions around the latent (SD3 has none)."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    latent_channels: int
    embed_channels: int
    encoder_attention: tuple[int, ...] = ()
    decoder_attention: tuple[int, ...] = ()
    image_channels: int = 3
    quant: bool = True
    groups: int = 32
    norm_eps: float = 1e-6

    @property
    def stride(self) -> int:
        """Pixels per latent cell along one axis."""
        return 2 ** (len(self.multipliers) - 1)


KL16 = VAESpec(channels=128, multipliers=(1, 1, 2, 2, 4), blocks=2, latent_channels=16, embed_channels=16,
               encoder_attention=(4,))


def mar_spec(name: str) -> MARSpec:
    """The spec of a published size: ``mar-b``, ``mar-l`` or ``mar-h`` (256 px, 16 x 16 tokens, 1000 classes)."""
    for (dim, encoder, decoder, depth, width), known in VARIANTS.items():
        if known == name:
            head = HeadSpec(channels=16, condition_dim=dim, width=width, depth=depth)
            return MARSpec(name=name, grid=(16, 16), dim=dim, heads=HEADS_BY_WIDTH[dim], encoder_depth=encoder,
                           decoder_depth=decoder, classes=1000, buffer=64, head=head)
    raise GtRError(f"unknown model size '{name}': expected one of {', '.join(sorted(VARIANTS.values()))}")
