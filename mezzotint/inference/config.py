"""The settings of a system: its model directories and how it samples."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from models.autoregressive.decoding import Sampling
from models.diffusion.control.controlled import GuessMode
from models.diffusion.sampling import DiffusionSampling, LatentSampling
from models.diffusion.solvers.config import SolverConfig
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.grids import TimeGridConfig
from models.diffusion.thresholding import StaticThresholding, ThresholdingConfig
from models.pretrained.settings import OpenClipImages


class StageSampling(BaseModel, frozen=True, extra="forbid"):
    """Sampling of one stage of a cascade, by DDIM with `eta` unless another solver is set.

    `guidance` acts on captions (1 is the plain conditional model), and so does a super-resolution
    stage's if it has captions. `level` is the augmentation of the low-resolution input, which a
    base does not have.
    """

    steps: int = Field(default=25, gt=0)
    guidance: float = Field(default=1.0, ge=0)
    level: float = Field(default=0.0, ge=0, le=1)
    truncated: bool = False
    """The stage before stops at the noise of `level`, instead of noise being added to its finished
    images (arXiv 2106.15282, 4.2): for gaussian augmentation."""
    eta: float = Field(default=0.0, ge=0)
    solver: SolverConfig | None = None
    times: TimeGridConfig | None = None
    """As of any diffusion model: chosen by the solver where None."""
    thresholding: ThresholdingConfig = StaticThresholding()

    @model_validator(mode="after")
    def _one_eta(self) -> Self:
        if self.solver is not None and self.eta:
            raise ValueError("eta belongs to DDIM: with a solver, set solver.eta instead")
        return self

    def sampling(self) -> DiffusionSampling:
        """The same as the sampling of any diffusion model."""
        return DiffusionSampling(
            solver=DDIM(eta=self.eta) if self.solver is None else self.solver,
            steps=self.steps,
            times=self.times,
            guidance=self.guidance,
            thresholding=self.thresholding,
        )


class OpenClip(OpenClipImages, frozen=True, extra="forbid"):
    """A pretrained open_clip checkpoint on disk, where a CLIP model directory could stand."""


def _source_kind(value: object) -> str:
    return "directory" if isinstance(value, str) else "open_clip"


ClipSource = Annotated[
    Annotated[str, Tag("directory")] | Annotated[OpenClip, Tag("open_clip")],
    Discriminator(_source_kind),
]
"""A CLIP model: a model directory, or a mapping that names an open_clip checkpoint."""


class _System(BaseModel, frozen=True, extra="forbid"):
    force_preprocessing: bool = False
    """Let models work together that were trained on images of another fit or filter."""


class _Ranked(_System, frozen=True, extra="forbid"):
    """Generates candidates, which a CLIP model ranks."""

    ranker: ClipSource | None = None
    """CLIP model; without it there is one candidate per caption."""
    candidates: int = Field(default=16, gt=0)
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _candidates_need_a_ranker(self) -> Self:
        if self.ranker is None and self.candidates > 1:
            raise ValueError("candidates can only be ranked by a CLIP model: set ranker")
        return self


class DalleSystem(_Ranked, frozen=True, extra="forbid"):
    """Transformer prior and the decoder of its codes; a CLIP model ranks each caption's candidates.

    `dvae` is the autoencoder of the prior's codes: a dVAE, or one with a single codebook, such as a
    VQ-GAN.
    """

    kind: Literal["dalle"] = "dalle"
    prior: str
    dvae: str


class HierarchySystem(_Ranked, frozen=True, extra="forbid"):
    """VQ-VAE-2 with a prior per level, the coarsest first. Guidance acts on the coarsest."""

    kind: Literal["hierarchy"] = "hierarchy"
    priors: tuple[str, ...] = Field(min_length=2)
    autoencoder: str


class CascadeSystem(_System, frozen=True, extra="forbid"):
    """A text-conditional base, and super-resolution models that enlarge its images in turn."""

    kind: Literal["cascade"] = "cascade"
    base: str
    upsampler: str | None = None
    """The only super-resolution model; or `upsamplers`, the one after the base first."""
    upsamplers: tuple[str, ...] = ()
    base_sampling: StageSampling = StageSampling(steps=25, guidance=2.0)
    upsampler_sampling: StageSampling | tuple[StageSampling, ...] = StageSampling(steps=8)
    """Of all upsamplers, or of each."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.upsampler is None) == (not self.upsamplers):
            raise ValueError(
                "set upsampler to one super-resolution model, or upsamplers to several"
            )
        if self.base_sampling.level or self.base_sampling.truncated:
            raise ValueError("base_sampling: level and truncated are of super-resolution models")
        given = self.upsampler_sampling
        if isinstance(given, tuple) and len(given) != len(self.upsampling):
            raise ValueError(
                f"upsampler_sampling: has settings for {len(given)} super-resolution models, but "
                f"there are {len(self.upsampling)}"
            )
        return self

    @property
    def upsampling(self) -> Mapping[str, str]:
        """The directory of each super-resolution model by its setting, the first stage first."""
        if self.upsampler is not None:
            return {"upsampler": self.upsampler}
        return {f"upsamplers.{index}": each for index, each in enumerate(self.upsamplers)}

    @property
    def stage_sampling(self) -> tuple[StageSampling, ...]:
        """The sampling of each super-resolution model."""
        given = self.upsampler_sampling
        return given if isinstance(given, tuple) else (given,) * len(self.upsampling)


class PriorSampling(BaseModel, frozen=True, extra="forbid"):
    """Sampling of image embeddings by the prior of an unCLIP system.

    `steps`, `guidance` and `solver` are of a diffusion prior, `tokens` of an autoregressive one.
    """

    steps: int = Field(default=25, gt=0)
    guidance: float = Field(default=4.0, ge=0)
    solver: SolverConfig = DDIM()
    tokens: Sampling = Sampling()
    best_of: int = Field(default=2, gt=0)
    """Embeddings sampled for each image, of which the one most similar to the caption's is kept."""


class UnclipSystem(_System, frozen=True, extra="forbid"):
    """CLIP image embeddings from captions, and images from embeddings (arXiv 2204.06125)."""

    kind: Literal["unclip"] = "unclip"
    clip: ClipSource
    prior: str | None = None
    """A diffusion prior or an autoregressive one; without it images are edited, and generated from
    given embeddings."""
    decoder: str
    upsamplers: tuple[str, ...] = ()
    """Super-resolution models, in the order in which they enlarge the decoder's images."""
    prior_sampling: PriorSampling = PriorSampling()
    sampling: StageSampling = StageSampling(steps=25, guidance=2.0)
    upsampler_sampling: tuple[StageSampling, ...] = ()
    """One for each upsampler; by default 8 steps each."""
    embedding_level: int = Field(default=0, ge=0)
    """Level of the noise on image embeddings, for a decoder that reads noisy ones (Stable unCLIP):
    the higher, the less an image is like the one whose embedding it is made of."""

    @model_validator(mode="after")
    def _one_setting_each(self) -> Self:
        given, count = self.upsampler_sampling, len(self.upsamplers)
        if given and len(given) != count:
            raise ValueError(
                f"upsampler_sampling: has settings for {len(given)} super-resolution models, but "
                f"there are {count}"
            )
        if self.sampling.level or self.sampling.truncated:
            raise ValueError("sampling: level and truncated are of super-resolution models")
        return self

    @property
    def stage_sampling(self) -> tuple[StageSampling, ...]:
        """The sampling of each super-resolution model."""
        return self.upsampler_sampling or (StageSampling(steps=8),) * len(self.upsamplers)


class ControlSettings(BaseModel, frozen=True, extra="forbid"):
    """A control (ControlNet) of a diffusion model, and how it acts."""

    model: str
    """Its model directory."""
    scale: float = Field(default=1.0, ge=0)
    """Of what it adds; at 0 it is not computed."""
    interval: tuple[float, float] | None = None
    """Times from low to high, of 0 (image) to 1 (noise), in which it acts; None: always."""
    guess: GuessMode = "off"
    """Guess mode, for empty captions: what it adds to early features is scaled down, by
    0.825^(12 - i) (`power`, ControlNet's code) or from 0.1 to 1 (`logspace`, diffusers), and the
    unconditional half of guidance lacks it."""
    conditional_only: bool = False
    """Whether the unconditional half of guidance lacks it also without guess mode."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError("interval: two times, 0 <= low <= high <= 1, are needed")
        return self


class DiffusionSystem(_System, frozen=True, extra="forbid"):
    """One diffusion model of images; a noisy classifier can guide it to a class."""

    kind: Literal["diffusion"] = "diffusion"
    model: str
    classifier: str | None = None
    negative: str | None = None
    """Negative prompt: replaces the empty caption of classifier-free guidance."""
    sampling: DiffusionSampling = DiffusionSampling()
    controls: tuple[ControlSettings, ...] = ()

    @model_validator(mode="after")
    def _guided_by_a_classifier(self) -> Self:
        if self.sampling.classifier_scale and self.classifier is None:
            raise ValueError("sampling.classifier_scale: set classifier, a noisy_classifier")
        return self


class LatentSystem(_System, frozen=True, extra="forbid"):
    """One diffusion model of latents, and the first stage that decodes them.

    Which first stage that is, and how its latents are scaled, is recorded in the model directory.
    """

    kind: Literal["latent"] = "latent"
    model: str
    first_stage: str | None = None
    """Another place of the first stage that the model was trained on."""
    negative: str | None = None
    """Negative prompt: replaces the empty caption of classifier-free guidance."""
    sampling: LatentSampling = LatentSampling()
    controls: tuple[ControlSettings, ...] = ()


DenoiserSystem = DiffusionSystem | LatentSystem
"""A single diffusion model."""
SystemConfig = Annotated[
    DalleSystem | HierarchySystem | CascadeSystem | UnclipSystem | DiffusionSystem | LatentSystem,
    Field(discriminator="kind"),
]
