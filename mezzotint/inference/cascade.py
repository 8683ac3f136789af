"""Cascaded diffusion: a text-conditional base, then super-resolution (arXiv 2106.15282)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference.config import CascadeSystem, StageSampling
from mezzotint.inference.generator import Block, GenerationRequest, ImageGenerator, Progress
from mezzotint.inference.images import to_bytes
from mezzotint.inference.latent_space import PixelDiffusionModel, check_generates_alone
from mezzotint.inference.preprocessing import require_equal_preprocessing
from mezzotint.inference.runtime import Runtime
from mezzotint.inference.text_conditioning import TextConditioning, text_conditioning
from models import store
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_text
from models.diffusion.process import denoiser
from models.diffusion.sampling import NFE, SamplerRun, count_nfe
from models.diffusion.super_resolution import SuperResolution
from models.diffusion.unet.network import UNet
from models.frozen_text import CaptionTokens
from models.nn.random import normal

Upsampler = SuperResolution | UNet
"""Enlarges images."""


@dataclass(frozen=True)
class UpsamplingStage:
    """A super-resolution model of a cascade, and the captions it may be conditioned on."""

    setting: str
    """Its key under `system`, as in `upsampler` or `upsamplers.1`."""
    network: Upsampler
    text: TextConditioning | None = None
    digest: str = ""

    @property
    def image_size(self) -> int:
        return self.network.config.image_size

    @property
    def low_size(self) -> int:
        """Side of the images that it enlarges."""
        return self.image_size // self.network.config.factor

    def condition(self, captions: Sequence[str]) -> Condition:
        """The condition without the low-resolution image."""
        return Condition() if self.text is None else self.text(Condition(), captions)


@dataclass(frozen=True)
class CascadeGenerator(ImageGenerator):
    """A base and the super-resolution models that enlarge its images, in turn."""

    config: CascadeSystem
    base: PixelDiffusionModel
    stages: tuple[UpsamplingStage, ...]
    text: TextConditioning
    runtime: Runtime
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, config: CascadeSystem, runtime: Runtime) -> "CascadeGenerator":
        """Read the model directories of a configuration.

        Raises:
            UserError: a directory is missing or damaged or holds another kind of model, or a
                super-resolution model enlarges another size than the stage before it generates.
        """
        base = store.load(config.base, device=runtime.device)
        stored = store.describe(config.base)
        if not isinstance(base, PixelDiffusionModel):
            raise UserError(
                f"system.base: {config.base} holds a {stored.config.kind}, not a diffusion model "
                "of images"
            )
        check_generates_alone(base, config.base)
        text = text_conditioning(config.base, base.config.conditioning, runtime.device)
        if text is None or "class" in base.config.conditioning:
            raise UserError(
                f"system.base: {config.base} is not conditioned on captions alone; choose a model "
                "that is"
            )
        stages = load_upsamplers(
            config.upsampling, runtime, low_size=base.config.image_size, below="system.base"
        )
        require_equal_preprocessing(
            {"base": config.base, **config.upsampling}, force=config.force_preprocessing
        )
        digests = {"base": stored.digest, **{each.setting: each.digest for each in stages}}
        return cls(config, base, stages, text, runtime, digests)

    @property
    def image_size(self) -> int:
        return self.stages[-1].image_size if self.stages else self.base.config.image_size

    @property
    def text_encoders(self) -> Mapping[str, CaptionTokens]:
        return {"model": self.text.tokens}

    def up_to(self, stages: int) -> "CascadeGenerator":
        """The base with the first `stages` super-resolution models; the same images under a seed.

        Those are the inputs of the next one before they are augmented.
        """
        return replace(self, stages=self.stages[:stages])

    def _check(self, request: GenerationRequest) -> None:
        super()._check(request)
        check_levels(self.stages, self.config.stage_sampling[: len(self.stages)])

    def _sample(self, block: Block) -> Mapping[str, Tensor]:
        base, nfe = self.config.base_sampling, NFE()
        sampling = self.config.stage_sampling[: len(self.stages)]
        total = base.steps + sum(each.steps for each in sampling)
        side = self.base.config.image_size
        low = sample_base(
            self.base,
            self.text(Condition(), block.captions),
            normal((len(block.prompts), 3, side, side), block.rng, self.runtime.device),
            block.rng,
            base,
            nfe,
            stop=stop_level(sampling),
            progress=lambda done, _: block.report(done, total),
        )
        images = upsample_in_turn(
            self.stages, sampling, low, block.captions, block.rng, nfe,
            progress=lambda done, _: block.report(base.steps + done, total),
        )  # fmt: skip
        return {
            "images": to_bytes(images),
            "nfe": torch.tensor([nfe.network, nfe.classifier], device="cpu"),
        }

    def protocol(self) -> Mapping[str, object]:
        base, sampling = self.config.base_sampling, self.config.stage_sampling
        upsampling = dict(zip(self.config.upsampling, sampling, strict=True))
        stages = {"base": base, **upsampling}
        return {
            "kind": self.config.kind,
            "digests": dict(self.digests),
            "sampler": sampler_name(base, *sampling),
            "steps": {name: each.steps for name, each in stages.items()},
            "guidance": base.guidance,
            "eta": {name: each.eta for name, each in stages.items()},
            "level": {name: each.level for name, each in upsampling.items()},
            "sampling": {name: each.model_dump(mode="json") for name, each in stages.items()},
            "precision": self.runtime.precision_name,
        }


def load_upsamplers(
    directories: Mapping[str, str], runtime: Runtime, *, low_size: int, below: str
) -> tuple[UpsamplingStage, ...]:
    """The super-resolution models of directories by setting, the first stage first.

    `low_size` is the side of the images that the setting `below` generates.

    Raises:
        UserError: a directory is missing or damaged or holds another kind of model, or a stage
            enlarges another size than the one before it generates.
    """
    stages = []
    for setting, directory in directories.items():
        network = store.load(directory, device=runtime.device)
        stored = store.describe(directory)
        if not isinstance(network, Upsampler) or not is_upsampler(network):
            raise UserError(
                f"system.{setting}: {directory} holds a {stored.config.kind}, not a "
                "super-resolution model"
            )
        conditioning = network.config.conditioning
        others = conditioning - {"low_resolution", "text", "features"}
        if others:
            raise UserError(
                f"system.{setting}: {directory} is conditioned on {', '.join(sorted(others))}, "
                "which a cascade does not give; choose another model"
            )
        text = text_conditioning(directory, conditioning, runtime.device)
        stage = UpsamplingStage(setting, network, text, stored.digest)
        if stage.low_size != low_size:
            raise UserError(
                f"system.{setting}: enlarges images of {stage.low_size} pixels, but {below} "
                f"generates {low_size}; choose two that fit"
            )
        stages.append(stage)
        low_size, below = stage.image_size, f"system.{setting}"
    return tuple(stages)


def is_upsampler(network: Upsampler) -> bool:
    """Whether a network enlarges images."""
    return "low_resolution" in network.config.conditioning


def check_levels(stages: Sequence[UpsamplingStage], sampling: Sequence[StageSampling]) -> None:
    """Refuse levels that a stage's augmentation does not have.

    Raises:
        UserError: the first one.
    """
    for stage, settings in zip(stages, sampling, strict=True):
        try:
            stage.network.augmentation.check(settings.level, truncated=settings.truncated)
        except ValueError as error:
            raise UserError(
                f"system: the sampling of {stage.setting} has level {settings.level:g}: {error}"
            ) from error


def sampler_name(*stages: StageSampling) -> str:
    """The solvers of all stages, for a protocol."""
    ranges = {"static": ", x0 clamped", "dynamic": ", dynamic thresholding", "none": ""}
    names = [
        f"{'DDIM' if stage.solver is None else stage.solver.kind}, "
        f"{stage.sampling().time_grid.kind} times"
        for stage in stages
    ]
    kinds = dict.fromkeys(ranges[stage.thresholding.kind] for stage in stages)
    return " and ".join(dict.fromkeys(names)) + "".join(kinds)


def stop_level(following: Sequence[StageSampling]) -> float:
    """The level at which a stage stops, given the sampling of those after it; 0: it finishes."""
    return following[0].level if following and following[0].truncated else 0.0


def of_finished_images(sampling: tuple[StageSampling, ...]) -> tuple[StageSampling, ...]:
    """The same where the first stage gets a finished image: its noise is then added."""
    if stop_level(sampling):
        return (sampling[0].model_copy(update={"truncated": False}), *sampling[1:])
    return sampling


@torch.no_grad()
def sample_base(
    base: PixelDiffusionModel,
    condition: Condition,
    noise: Tensor,
    rng: Generator,
    stage: StageSampling,
    nfe: NFE,
    *,
    stop: float = 0.0,
    progress: Progress | None = None,
) -> Tensor:
    """Images (B, 3, h, w) in [-1, 1] from noise; noisy ones of the level `stop` if it is not 0.

    Raises:
        UserError: the sampler does not suit the network's schedule, or starts below the level.
    """
    return _solve(base, condition, noise, rng, stage, nfe, stop, progress)


@torch.no_grad()
def upsample(
    upsampler: Upsampler,
    low: Tensor,
    rng: Generator,
    stage: StageSampling,
    nfe: NFE,
    *,
    condition: Condition | None = None,
    stop: float = 0.0,
    progress: Progress | None = None,
) -> Tensor:
    """Images in [-1, 1], larger by the network's factor than `low` (B, 3, h, w).

    `low` has the noise of `stage.level` already where the stage is truncated. `condition` has its
    captions; `stop` is as in `sample_base`.

    Raises:
        UserError: as in `sample_base`.
    """
    factor = upsampler.config.factor
    level = torch.full((len(low),), stage.level, device=low.device)
    augmented = low if stage.truncated else upsampler.augmentation(low, level, rng)
    noise = normal((len(low), 3, low.shape[2] * factor, low.shape[3] * factor), rng, low.device)
    given = replace(condition or Condition(), low_res=augmented, noise_level=level)
    return _solve(upsampler, given, noise, rng, stage, nfe, stop, progress)


def upsample_in_turn(
    stages: Sequence[UpsamplingStage],
    sampling: Sequence[StageSampling],
    low: Tensor,
    captions: Sequence[str],
    rng: Generator,
    nfe: NFE,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """Images (B, 3, h, w) through all super-resolution models; `low` itself without any.

    `progress` counts the steps of all stages together.
    """
    total, before = sum(each.steps for each in sampling), 0
    for index, (stage, settings) in enumerate(zip(stages, sampling, strict=True)):

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        low = upsample(
            stage.network,
            low,
            rng,
            settings,
            nfe,
            condition=stage.condition(captions),
            stop=stop_level(sampling[index + 1 :]),
            progress=report,
        )
        before += settings.steps
    return low


def _solve(
    network: PixelDiffusionModel | Upsampler,
    condition: Condition,
    noise: Tensor,
    rng: Generator,
    stage: StageSampling,
    nfe: NFE,
    stop: float,
    progress: Progress | None,
) -> Tensor:
    """Images (B, 3, H, W) from noise, or noisy ones of the level `stop`."""
    plain = count_nfe(denoiser(network), nfe)
    run = stage.sampling().sampler_run(plain, without_text(plain), network.process.schedule)
    if stop:
        return solve_truncated(run, condition, noise, rng, stop, progress)
    return run.solve(noise, condition, rng, progress).clamp(-1, 1)


def solve_truncated(
    run: SamplerRun[Condition],
    condition: Condition,
    noise: Tensor,
    rng: Generator,
    level: float,
    progress: Progress | None = None,
) -> Tensor:
    """From noise (B, ...) to the noisy images of a level, as gaussian augmentation makes them.

    Raises:
        UserError: the run starts with less noise.
    """
    run = truncated(run, level)
    here = run.schedule.at(run.times[-1])
    size = math.hypot(float(here.alpha), float(here.sigma))
    return run.solve(noise, condition, rng, progress) / size


def truncated(run: SamplerRun[Condition], level: float) -> SamplerRun[Condition]:
    """The run up to the noise of a level of gaussian augmentation (arXiv 2106.15282, 4.2).

    There sigma / alpha = tan(pi level / 2), whatever the schedule.

    Raises:
        UserError: it starts with less noise.
    """
    angle = torch.tensor(level * math.pi / 2, dtype=torch.float64, device="cpu")
    stop = run.schedule.inverse_log_snr(-2 * angle.tan().log())
    kept = run.times[run.times > stop]
    if len(kept) == 0:
        raise UserError(
            f"level: a stage before one that is truncated at level {level:g} starts with less "
            "noise than that; choose a lower level"
        )
    return replace(run, times=torch.cat([kept, stop.to(kept)[None]]))
