"""One diffusion model by itself: pictures from nothing, classes or captions, and back to noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from models.diffusion.classifier import NoisyClassifier, class_log_probability
from models.diffusion.condition import Condition
from models.diffusion.guidance import LogProbability, with_condition, without_class, without_text
from models.diffusion.inversion import RoundTrip, encoding_times, round_trip
from models.diffusion.likelihood import Hutchinson, Likelihood, log_likelihood
from models.diffusion.network import ClassConfig, ConditionalNetwork, NetworkConfig
from models.diffusion.process import Denoiser, denoiser
from models.diffusion.sampling import (
    NFE,
    DiffusionSampling,
    count_classifier_nfe,
    count_nfe,
)
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.analytic_dpm import noise_moments
from models.diffusion.solvers.config import AnalyticDPMConfig
from models.diffusion.solvers.solver import ProgressCallback


class PainterConfig(NetworkConfig, Protocol):
    """Settings of a network that draws pictures by itself."""

    @property
    def image_size(self) -> int:
        """Side of its pictures in pixels."""
        ...


@runtime_checkable
class Painter(ConditionalNetwork, Protocol):
    """A network that draws pictures by itself."""

    @property
    def config(self) -> PainterConfig:
        """Its settings."""
        ...


@runtime_checkable
class ChannelsConfig(Protocol):
    """Settings of a network that may denoise something else than pictures."""

    @property
    def image_channels(self) -> int:
        """3 for pictures."""
        ...


@dataclass(frozen=True)
class SamplerStep:
    """Where drawing stands: x at a time, and the picture guessed from it."""

    done: int
    total: int
    time: float
    x: Tensor
    """(B, 3, H, W)."""
    guess: Tensor
    """(B, 3, H, W): x_0 as guessed from x; at the end x itself."""


StepCallback = Callable[[SamplerStep], None]


@dataclass(frozen=True)
class DiffusionSamples:
    """What was drawn, and what it cost."""

    images: Tensor
    """(B, 3, H, W) in [-1, 1]."""
    calls: NFE


@dataclass(frozen=True)
class Diffusion:
    """A network that draws pictures, and perhaps a classifier that steers it."""

    network: Painter
    classifier: NoisyClassifier | None = None

    @property
    def schedule(self) -> Schedule:
        """The network's."""
        return self.network.process.schedule

    @property
    def conditioning(self) -> frozenset[str]:
        """What the network is told: of class, text and features."""
        return self.network.config.conditioning

    def check(self) -> None:
        """Refuse a network that does not draw pictures by itself.

        Raises:
            UserError: it enlarges pictures, or draws latents.
        """
        if "low_resolution" in self.conditioning:
            raise UserError("this model enlarges pictures: it draws only behind a base (cascade)")
        config = self.network.config
        if isinstance(config, ChannelsConfig) and config.image_channels != 3:
            raise UserError("this model draws latents, not pictures")

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal (B, 3, H, W), one picture a seed, whatever is drawn beside it."""
        side = self.network.config.image_size
        each = [
            torch.randn((3, side, side), generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return torch.stack(each)

    @torch.no_grad()
    def sample(
        self,
        cond: Condition,
        noise: Tensor,
        rng: Generator,
        *,
        sampling: DiffusionSampling,
        negative: Condition | None = None,
        watch: StepCallback | None = None,
    ) -> DiffusionSamples:
        """Pictures from standard normal noise (B, 3, H, W).

        `cond.label` is also the class a classifier steers to; `negative` is what guidance leads
        away from, nothing in particular if None. `rng` draws the noise that solvers add.

        Raises:
            UserError: guidance without an unconditional side, or settings that do not fit.
        """
        calls, schedule = NFE(), self.schedule
        wanted = self._wanted(cond, sampling, calls)
        plain = count_nfe(denoiser(self.network), calls)
        free = plain if sampling.guidance == 1 else self._unconditional(plain, negative)
        course = sampling.sampler_run(plain, free, schedule, wanted)
        x, time = course.start(noise), float(course.plan.times[0])
        for step in course.steps(x, cond, rng):
            if watch is not None:
                watch(SamplerStep(step.done - 1, step.total, time, x, step.guess.x0))
            x, time = step.x, step.time
        if watch is not None:
            watch(SamplerStep(sampling.steps, sampling.steps, time, x, x))
        return DiffusionSamples(x.clamp(-1, 1), calls)

    def _unconditional(
        self, plain: Denoiser[Condition], negative: Condition | None
    ) -> Denoiser[Condition]:
        """The side that guidance leads away from."""
        if negative is not None:
            return with_condition(plain, negative)
        null = self.null
        if null is not None:
            plain = without_class(plain, null)
        elif not self.conditioning & {"text", "features"}:
            raise UserError(
                "guidance other than 1 needs a model that has also learnt to draw untold: one of "
                "captions, or of classes with model.null_class"
            )
        return without_text(plain)

    @property
    def classes(self) -> int | None:
        """How many there are to choose from, None if none can be told."""
        config = self.network.config
        if isinstance(config, ClassConfig) and config.classes is not None:
            return config.classes
        return None if self.classifier is None else self.classifier.classes

    @property
    def null(self) -> int | None:
        """The label that means "no class"."""
        config = self.network.config
        return config.classes if isinstance(config, ClassConfig) and config.null_class else None

    def _wanted(
        self, cond: Condition, sampling: DiffusionSampling, calls: NFE
    ) -> LogProbability | None:
        """ln p of the wanted classes, if a classifier is to steer."""
        if not sampling.classifier_scale:
            return None
        classifier, label = self.classifier, cond.label
        if classifier is None or label is None:
            raise UserError("classifier_scale needs a noisy classifier and a class")
        wanted = class_log_probability(classifier, label, self.schedule)
        return count_classifier_nfe(wanted, calls)

    @torch.no_grad()
    def moments(
        self, images: Tensor, cond: Condition, rng: Generator, sampling: DiffusionSampling
    ) -> DiffusionSampling:
        """The sampling with Analytic-DPM's moments, estimated on pictures (B, 3, H, W)."""
        schedule = self.schedule
        times = sampling.time_grid.build(schedule, sampling.steps)
        found = noise_moments(denoiser(self.network), schedule, images, times, cond, rng)
        solver = AnalyticDPMConfig(moments=tuple(found))
        return sampling.model_copy(update={"solver": solver})

    @torch.no_grad()
    def there_and_back(
        self,
        images: Tensor,
        cond: Condition,
        *,
        sampling: DiffusionSampling,
        progress: ProgressCallback | None = None,
    ) -> RoundTrip:
        """Pictures (B, 3, H, W) in [-1, 1] to noise by DDIM and back, without guidance.

        Only times, steps and thresholding of `sampling` are used. A picture is taken for one at
        the last of the times: a network that is off by more than the noise there finds noise in it
        that is not normal.
        """
        schedule = self.schedule
        times = encoding_times(schedule, sampling.time_grid.build(schedule, sampling.steps))
        asked = sampling.thresholding.wrap(denoiser(self.network), schedule)
        return round_trip(asked, schedule, images, times, cond, progress)

    def likelihood(
        self,
        images: Tensor,
        cond: Condition,
        rng: Generator,
        *,
        times: Tensor,
        probes: int = 1,
        progress: ProgressCallback | None = None,
    ) -> Likelihood:
        """ln p of pictures (B, 3, H, W), by Hutchinson's estimate along falling times."""
        rising = encoding_times(self.schedule, times).flip(0)
        divergence = Hutchinson(images, rng, probes=probes)
        plain = denoiser(self.network)
        return log_likelihood(
            plain, self.schedule, images, rising, cond, divergence, progress=progress
        )
