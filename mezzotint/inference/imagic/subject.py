"""What Imagic edits: the networks of a system, its images, and how it samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn

from data_pipeline.images import square
from mezzotint.common.errors import UserError
from mezzotint.inference.cascade import (
    CascadeGenerator,
    UpsamplingStage,
    sample_base,
    stop_level,
    upsample_in_turn,
)
from mezzotint.inference.config import SystemConfig
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.generator import ImageGenerator, Progress, Prompt, SamplerStep
from mezzotint.inference.images import from_bytes, to_pil
from mezzotint.inference.imagic.embedding import text_embedding
from mezzotint.inference.imagic.objective import Sample, rows
from mezzotint.inference.imagic.tuning import TunedNetwork
from mezzotint.inference.latent_space import ImageSpace, PixelDiffusionModel, PixelSpace
from mezzotint.inference.preprocessing import image_config
from mezzotint.inference.runtime import Runtime
from models.autoencoders.latent_space import LatentSpace
from models.diffusion.condition import Condition
from models.diffusion.sampling import NFE
from models.nn.random import BatchGenerator, normal

Sampler = Callable[[Condition, Condition, str, BatchGenerator, Progress], Tensor]
"""Of a condition, the same of the target itself, the target, and random numbers: images (B, 3, H,
W) in [-1, 1], one for each row of the condition."""


@dataclass(frozen=True)
class Subject:
    """A system as Imagic sees it."""

    generator: ImageGenerator
    network: PixelDiffusionModel
    """It generates images from captions: alone, or as the base of a cascade."""
    tuned: TunedNetwork
    space: ImageSpace
    condition: Callable[[str], Condition]
    """A caption as a condition of one row."""
    sample: Sampler
    stages: tuple[UpsamplingStage, ...] = ()
    """What enlarges its images."""

    @property
    def runtime(self) -> Runtime:
        return self.generator.runtime

    def tuned_stage(self, index: int) -> TunedNetwork:
        """One of the stages, as it is fine-tuned."""
        stage = self.stages[index]
        assert isinstance(stage.network, nn.Module), "a network"
        directory = _directory(self.generator.config, stage.setting)
        return TunedNetwork(f"upsampler_{index}", stage.network, directory)

    def embedding(self, condition: Condition) -> Tensor:
        """The target embedding (1, L, C).

        Raises:
            UserError: the network reads no captions.
        """
        found = text_embedding(self.network, condition)
        if found is None:
            raise UserError(
                f"{self.tuned.directory}: is not conditioned on captions, and Imagic optimises "
                "what a model reads of one; choose a model of captions"
            )
        return found

    def image_at(self, image: Tensor, size: int) -> Tensor:
        """An image (H, W, 3) uint8 as (1, 3, size, size) in [-1, 1], on the device."""
        if len(image) != size:
            config = image_config(self.tuned.directory, size)
            image = torch.from_numpy(square(to_pil(image), config).copy())
        return from_bytes(image)[None].to(self.runtime.device)

    def clean(self, image: Tensor) -> Sample:
        """What is diffused of an image (1, 3, H, W), see `LatentSpace.posterior`."""
        if not isinstance(self.space, LatentSpace):
            return lambda rng: image
        return self.space.posterior(image)


def subject_of(generator: ImageGenerator) -> Subject:
    """A system that generates from captions by diffusion.

    Raises:
        UserError: another kind of system, or one with controls.
    """
    match generator:
        case DiffusionGenerator():
            return _of_denoiser(generator)
        case CascadeGenerator():
            return _of_cascade(generator)
        case _:
            raise UserError(
                f"edit imagic: a {generator.config.kind} has no diffusion model of captions that "
                "makes its images; choose a diffusion model or a cascade"
            )


def _of_denoiser(generator: DiffusionGenerator) -> Subject:
    network = generator.network
    if generator.controls.terms:
        raise UserError("edit imagic: edits without controls; leave system.controls out")

    def sample(
        condition: Condition, plain: Condition, target: str, rng: BatchGenerator, report: Progress
    ) -> Tensor:
        count = len(rng.samples)

        def observe(step: SamplerStep) -> None:
            report(step.done, step.total)

        noise = normal((count, *generator.space.shape), rng, generator.runtime.device)
        negative = generator.negative_condition(rows(plain, count), count)
        return generator.sample(condition, noise, rng, NFE(), negative=negative, callback=observe)

    assert isinstance(network, nn.Module), "a network"
    return Subject(
        generator=generator,
        network=network,
        tuned=TunedNetwork("network", network, generator.config.model),
        space=generator.space,
        condition=lambda target: generator.condition([Prompt(target)]),
        sample=sample,
    )


def _of_cascade(generator: CascadeGenerator) -> Subject:
    config, base, stages = generator.config, generator.base, generator.stages
    space = PixelSpace(base.config.image_size)

    def sample(
        condition: Condition, plain: Condition, target: str, rng: BatchGenerator, report: Progress
    ) -> Tensor:
        count, first, following = len(rng.samples), config.base_sampling, config.stage_sampling
        total = first.steps + sum(each.steps for each in following)
        noise = normal((count, *space.shape), rng, generator.runtime.device)
        low = sample_base(
            base, condition, noise, rng, first, NFE(),
            stop=stop_level(following), progress=lambda done, _: report(done, total),
        )  # fmt: skip
        return upsample_in_turn(
            stages, following, low, [target] * count, rng, NFE(),
            progress=lambda done, _: report(first.steps + done, total),
        )  # fmt: skip

    assert isinstance(base, nn.Module), "a network"
    return Subject(
        generator=generator,
        network=base,
        tuned=TunedNetwork("network", base, config.base),
        space=space,
        condition=lambda target: generator.text(Condition(), [target]),
        sample=sample,
        stages=stages,
    )


def _directory(config: SystemConfig, setting: str) -> str:
    """The model directory at a setting, as in `upsampler` or `upsamplers.1`."""
    found: object = config
    for key in setting.split("."):
        found = found[int(key)] if _is_list(found) else getattr(found, key)
    assert isinstance(found, str), "a directory"
    return found


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, tuple)
