"""Denoising: every diffusion model, whatever its conditions (DDPM, arXiv 2006.11239)."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.network import ConditionalNetwork, NetworkConfig
from models.diffusion.prior.network import DiffusionPrior
from models.diffusion.process import DiffusionNetwork, denoiser
from models.diffusion.sampling import DiffusionSampling
from models.diffusion.schedules.timesteps import (
    LogNormal,
    LossSecondMomentSampler,
    Stratified,
    TimestepSampler,
    TimestepsConfig,
)
from models.diffusion.thresholding import NoThresholding
from models.diffusion.weighting import SnrClamped, untrained_end
from models.text_source import TextSource
from trainer import distributed
from trainer.task import Engines, Loss, Step, Task
from trainer.tasks.conditioning.captions import ClipTextCondition, FeaturesCondition
from trainer.tasks.conditioning.inputs import ConditionInputs, TextFeatures
from trainer.tasks.conditions import (
    ConditionConfig,
    LowResolutionCondition,
    NoCondition,
    SizesCondition,
    as_conditions,
    caption_conditions,
    random_crop,
    upsampling_factor,
)
from trainer.tasks.frozen_text import LazyTextEncoder
from trainer.tasks.objectives import HybridLoss, LossConfig, Weight, WeightedLoss, objective
from trainer.tasks.targets import ImageEmbeddings, Images, LatentDecoder, Latents, TargetConfig
from trainer.tasks.warm_start import start_from

log = logging.getLogger(__name__)


class DenoisingConfig(BaseModel, frozen=True, extra="forbid"):
    """An error of the prediction at random times.

    `weight` is that of the loss `weighted`. By default times are stratified, over the steps of the
    hybrid loss where it has some. `offset_noise` is the standard deviation of a further noise, one
    number for each channel of a sample, which lets samples differ in brightness. `start` is a model
    directory or run whose weights training starts from, see `start_from`. `preview` is the
    sampling of previews; its guidance acts where a condition is sometimes dropped.
    """

    kind: Literal["denoising"]
    target: TargetConfig = Images()
    condition: ConditionConfig = NoCondition()
    loss: LossConfig = WeightedLoss()
    weight: Weight | None = None
    times: TimestepsConfig | None = None
    offset_noise: float = Field(default=0.0, ge=0)
    start: str | None = Field(default=None, min_length=1)
    preview: DiffusionSampling = DiffusionSampling(steps=10, guidance=2.0)

    @model_validator(mode="after")
    def _sizes_of_images(self) -> Self:
        of_sizes = any(isinstance(each, SizesCondition) for each in as_conditions(self.condition))
        if of_sizes and not isinstance(self.target, Images):
            raise ValueError("condition: sizes are those of images, and target is not images")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        match self.loss:
            case WeightedLoss():
                return self
            case HybridLoss(steps=steps):
                if isinstance(self.timesteps, LogNormal) or self.timesteps.steps != steps:
                    raise ValueError(
                        f"the hybrid loss of {steps} steps needs times on those steps: set "
                        f"times.steps to {steps}, or leave times out"
                    )
        if self.weight is not None:
            raise ValueError(f"weight belongs to loss.kind weighted, not {self.loss.kind}")
        return self

    @property
    def timesteps(self) -> TimestepsConfig:
        if self.times is not None:
            return self.times
        return Stratified(steps=self.loss.steps if isinstance(self.loss, HybridLoss) else None)

    @property
    def text_encoder(self) -> TextSource | None:
        """The frozen encoder of the captions, if there is one."""
        for each in caption_conditions(self.condition):
            if isinstance(each, FeaturesCondition | ClipTextCondition):
                return each.encoder
        return None

    def build(self, model: nn.Module) -> "Denoising":
        """The task.

        Raises:
            UserError: the model is no diffusion network, or cannot be conditioned or trained so.
        """
        if not isinstance(model, ConditionalNetwork) or not isinstance(model.config, NetworkConfig):
            raise UserError("task.kind: denoising trains a diffusion network, which model is not")
        conditions = as_conditions(self.condition)
        given = {name for each in conditions for name in each.gives}
        wanted = model.config.conditioning
        if given != wanted:
            raise UserError(
                f"task.condition: gives {_listed(given)}, but this model is conditioned on "
                f"{_listed(wanted)}; name each with its kind, several with kind several"
            )
        for each in conditions:
            each.check(model)
        learns = model.process.config.variance == "learned"
        if learns != isinstance(self.loss, HybridLoss):
            raise UserError(
                "task.loss: a learned variance (model.process.variance) is trained by kind hybrid, "
                "and hybrid needs one"
            )
        if self.start is not None:
            assert isinstance(model, nn.Module), "a network"
            start_from(model, self.start)
        _keep_scaling(model, self.target)
        weight = self.weight or SnrClamped()
        if isinstance(self.loss, WeightedLoss):
            fault = untrained_end(weight, model.process.schedule)
            if fault is not None:
                log.warning("%s", fault)
        return Denoising(self, model)


def offset_noise(noise: Tensor, strength: float, rng: Generator) -> Tensor:
    """Noise (B, C, ...) plus `strength` times one standard normal number per channel."""
    if not strength:
        return noise
    shape = (*noise.shape[:2], *(1,) * (noise.ndim - 2))
    return noise + strength * torch.randn(shape, generator=rng, device=noise.device)


def _keep_scaling(model: object, target: TargetConfig) -> None:
    """Store the statistics of embeddings with the weights of a prior."""
    if isinstance(model, DiffusionPrior) and isinstance(target, ImageEmbeddings):
        model.keep_scaling(target.scaling)


def _listed(names: Collection[str]) -> str:
    return " and ".join(sorted(names)) or "nothing"


class Denoising(Task):
    """Trains a denoiser."""

    def __init__(self, config: DenoisingConfig, model: ConditionalNetwork) -> None:
        self._config, self._network = config, model
        self._conditions = as_conditions(config.condition)
        self._objective = objective(config.loss, config.weight or SnrClamped())
        self._times: TimestepSampler = config.timesteps.build(model.process.schedule)
        self._losses: list[Tensor] = []
        self.decoder: LatentDecoder | None = None
        """Of previews of latents."""
        self._text_encoder = (
            None if config.text_encoder is None else LazyTextEncoder(config.text_encoder)
        )

    def parts(self) -> Mapping[str, nn.Module]:
        assert isinstance(self._network, nn.Module)
        return {"model": self._network}

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        rng = step.rng
        clean = self._clean(batch, rng)
        inputs, condition = self._inputs(batch, clean, rng), Condition()
        for each in self._conditions:
            condition = each.train_condition(condition, inputs)
        times = self._times.sample(
            len(clean), rng, part=step.microbatch_index, parts=step.num_microbatches
        )
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        noise = offset_noise(noise, self._config.offset_noise, rng)
        errors = self._objective(
            engines["model"], self._network.process, clean, condition, times.t, noise
        )
        if isinstance(self._times, LossSecondMomentSampler):
            self._losses.append(torch.stack([times.t, errors.value.detach()], dim=1))
        metrics = {name: values.mean() for name, values in errors.metrics.items()}
        yield Loss("model", (times.weight * errors.value).mean(), metrics)

    def after_update(self, step: Step) -> None:
        """Importance sampling of times learns from the losses of all processes."""
        if isinstance(self._times, LossSecondMomentSampler):
            rows = distributed.gather_rows(torch.cat(self._losses))
            self._losses = []
            self._times.update(rows[:, 0], rows[:, 1])

    def state(self) -> Mapping[str, Any]:
        """The losses of importance sampling, for a checkpoint."""
        if not isinstance(self._times, LossSecondMomentSampler):
            return {}
        return {name: values.tolist() for name, values in self._times.state().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        if state and isinstance(self._times, LossSecondMomentSampler):
            tensors = {
                name: torch.tensor(values, dtype=torch.float64, device="cpu")
                for name, values in state.items()
            }
            self._times.restore(tensors)

    @torch.no_grad()
    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Real images and samples, decoded where the target is latents; else none without images.

        Of an upsampler also bilinear interpolation.
        """
        if isinstance(self._config.target, Latents) and self.decoder is not None:
            clean, condition = self.evaluation(batch, rng)
            noise = torch.randn(clean.shape, generator=rng, device=clean.device)
            found = self.sample(self._network, noise, condition, rng)
            return {"real": self.decoder(clean), "samples": self.decoder(found)}
        if not isinstance(self._config.target, Images):
            return {}
        clean, condition = self.evaluation(batch, rng)
        images = {"real": clean}
        if condition.low_res is not None:
            size = clean.shape[2:]
            images["bilinear"] = F.interpolate(
                condition.low_res, size, mode="bilinear", align_corners=False
            )
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        return {**images, "samples": self.sample(self._network, noise, condition, rng).clamp(-1, 1)}

    def evaluation(self, batch: Batch, rng: Generator) -> tuple[Tensor, Condition]:
        """The target of a batch, and its conditions without dropout."""
        clean = self._config.target.clean(batch, rng)
        inputs, condition = self._inputs(batch, clean, rng), Condition()
        for each in self._conditions:
            condition = each.eval_condition(condition, inputs)
        return clean, condition

    def sample(
        self, network: DiffusionNetwork, noise: Tensor, condition: Condition, rng: Generator
    ) -> Tensor:
        """Samples (B, ...) of a network from noise, by the settings of previews."""
        model, sampling = self._network, self._config.preview
        conditional = unconditional = denoiser(network)
        for each in self._conditions:
            unconditional = each.unconditional(unconditional, model)
        if unconditional is conditional:
            sampling = sampling.model_copy(update={"guidance": 1.0})
        if not isinstance(self._config.target, Images):  # it has no range to be clamped to
            sampling = sampling.model_copy(update={"thresholding": NoThresholding()})
        run = sampling.sampler_run(conditional, unconditional, model.process.schedule)
        return run.solve(noise, condition, rng)

    def _inputs(self, batch: Batch, clean: Tensor, rng: Generator) -> ConditionInputs:
        def encode_text(captions: Sequence[str]) -> TextFeatures:
            assert self._text_encoder is not None, "a condition has an encoder"
            return self._text_encoder(captions, clean.device)

        def encode_images(images: Tensor) -> Tensor:
            return images if self.decoder is None else self.decoder.encode(images)

        return ConditionInputs(batch, clean, self._network, rng, encode_text, encode_images)

    def _clean(self, batch: Batch, rng: Generator) -> Tensor:
        """The target before noise is added, cropped where the task asks for it."""
        clean = self._config.target.clean(batch, rng)
        for each in self._conditions:
            if isinstance(each, LowResolutionCondition) and each.crop is not None:
                clean = random_crop(clean, each.crop, upsampling_factor(self._network), rng)
        return clean
