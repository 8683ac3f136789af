"""What a diffusion network is conditioned on in training, and condition dropout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from mezzotint.common.text_features import TEXT_FEATURES
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_class, without_text
from models.diffusion.inpainting import coarse_mask, random_masks
from models.diffusion.network import (
    ClassConfig,
    ConditionalNetwork,
    UpsamplingConfig,
    UpsamplingNetwork,
)
from models.diffusion.process import Denoiser
from models.text_source import TextSource
from trainer.rng import drop_class, drop_rows, drop_text


@dataclass(frozen=True)
class TextFeatures:
    """Features of captions from a frozen encoder, in fp32."""

    features: Tensor
    """(B, L, C)."""
    empty: Tensor
    """(L, C): of an empty caption."""


@dataclass(frozen=True)
class ConditionInputs:
    """The inputs of conditions."""

    batch: Batch
    clean: Tensor
    """(B, ...): the target before noise is added, after cropping."""
    network: ConditionalNetwork
    rng: Generator
    encode_text: Callable[[Sequence[str]], TextFeatures]
    """The frozen encoder of the task."""
    encode_images: Callable[[Tensor], Tensor]
    """Images (B, 3, H, W) as what is denoised: themselves, or normalised latents."""


class _Condition(BaseModel, frozen=True, extra="forbid"):
    def check(self, network: ConditionalNetwork) -> None:
        """Refuse a network that does not fit."""

    def unconditional(
        self, denoiser: Denoiser[Condition], network: ConditionalNetwork
    ) -> Denoiser[Condition]:
        """The unconditional denoiser, where training drops this condition."""
        return denoiser


class ClassCondition(_Condition, frozen=True, extra="forbid"):
    """Class labels; `drop` of them mean "no class" in training, for classifier-free guidance."""

    kind: Literal["class"]
    drop: float = Field(default=0.0, ge=0, lt=1)

    def check(self, network: ConditionalNetwork) -> None:
        config = network.config
        if self.drop and not (isinstance(config, ClassConfig) and config.null_class):
            raise UserError(
                f"task.condition.drop: {self.drop} of the classes are to be dropped, but the model "
                'has no label for "no class"; set model.null_class=true, or drop=0'
            )

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        label = inputs.batch.labels
        if self.drop:
            label = drop_class(label, self.drop, _classes(inputs.network), inputs.rng)
        return replace(condition, label=label)

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return replace(condition, label=inputs.batch.labels)

    def unconditional(
        self, denoiser: Denoiser[Condition], network: ConditionalNetwork
    ) -> Denoiser[Condition]:
        return without_class(denoiser, _classes(network)) if self.drop else denoiser


class _CaptionCondition(_Condition, frozen=True, extra="forbid"):
    drop: float = Field(default=0.1, ge=0, lt=1)

    def unconditional(
        self, denoiser: Denoiser[Condition], network: ConditionalNetwork
    ) -> Denoiser[Condition]:
        return without_text(denoiser) if self.drop else denoiser


class TextCondition(_CaptionCondition, frozen=True, extra="forbid"):
    """Captions; `drop` of them are empty in training, for classifier-free guidance."""

    kind: Literal["text"]

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return replace(condition, text=drop_text(inputs.batch.tokens, self.drop, inputs.rng))

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return replace(condition, text=inputs.batch.tokens)


class FeaturesCondition(_CaptionCondition, frozen=True, extra="forbid"):
    """Features of captions from a frozen encoder; `drop` of them are of empty ones in training."""

    kind: Literal["features"]
    encoder: TextSource
    cached: bool = False
    """Read the features from the set, or one of data.join, where `mezzotint data derive
    --text-encoder` has written them; captions are dropped as without."""

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        text = self._text(inputs)
        features = drop_rows(text.features, text.empty, self.drop, inputs.rng)
        return replace(condition, features=features, empty_features=text.empty)

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        text = self._text(inputs)
        return replace(condition, features=text.features, empty_features=text.empty)

    def _text(self, inputs: ConditionInputs) -> TextFeatures:
        batch = inputs.batch
        if not self.cached:
            return inputs.encode_text(batch.captions)
        features = batch.array(TEXT_FEATURES)
        assert batch.empty_features is not None, "read with the array"
        return TextFeatures(features, batch.empty_features.to(features.device))


class LowResolutionCondition(_Condition, frozen=True, extra="forbid"):
    """The image itself, downsampled and degraded; trained on crops of `crop` output pixels."""

    kind: Literal["low_resolution"]
    crop: int | None = Field(default=None, gt=0)

    def check(self, network: ConditionalNetwork) -> None:
        if self.crop is not None and self.crop % upsampling_factor(network):
            raise UserError(
                f"task.condition.crop: {self.crop} pixels are not a multiple of the model's factor "
                f"{upsampling_factor(network)}"
            )

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        """The condition with the downsampled image, degraded by the network's augmentation."""
        assert isinstance(inputs.network, UpsamplingNetwork), "it is conditioned on low_resolution"
        augmentation = inputs.network.augmentation
        low = F.avg_pool2d(inputs.clean, upsampling_factor(inputs.network))
        level = augmentation.levels(len(low), inputs.rng)
        return replace(condition, low_res=augmentation(low, level, inputs.rng), noise_level=level)

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        low = F.avg_pool2d(inputs.clean, upsampling_factor(inputs.network))
        return replace(condition, low_res=low, noise_level=low.new_zeros(len(low)))


class InpaintingCondition(_Condition, frozen=True, extra="forbid"):
    """What is kept of the sample's image under a random mask; it needs `data.image`.

    `everything` of the masks keep nothing, so that the model generates whole images too.
    """

    kind: Literal["inpainting"]
    everything: float = Field(default=0.25, ge=0, le=1)

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        images, clean = inputs.batch.images, inputs.clean
        mask = random_masks(
            len(images), images.shape[-1], self.everything, inputs.rng, images.device
        )
        masked = inputs.encode_images(images * (1 - mask))
        size = clean.shape[2], clean.shape[3]
        return replace(condition, mask=coarse_mask(mask, size), masked=masked)

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return self.train_condition(condition, inputs)


class NoCondition(BaseModel, frozen=True, extra="forbid"):
    """An unconditional network."""

    kind: Literal["none"] = "none"


OneCondition = Annotated[
    ClassCondition
    | TextCondition
    | FeaturesCondition
    | LowResolutionCondition
    | InpaintingCondition,
    Field(discriminator="kind"),
]


class SeveralConditions(BaseModel, frozen=True, extra="forbid"):
    """Several of them at once, dropped independently."""

    kind: Literal["several"]
    conditions: tuple[OneCondition, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({each.kind for each in self.conditions}) < len(self.conditions):
            raise ValueError("conditions: one kind is named more than once")
        return self


ConditionConfig = Annotated[
    NoCondition
    | ClassCondition
    | TextCondition
    | FeaturesCondition
    | LowResolutionCondition
    | InpaintingCondition
    | SeveralConditions,
    Field(discriminator="kind"),
]


def as_conditions(config: ConditionConfig) -> tuple[OneCondition, ...]:
    """The conditions one by one."""
    match config:
        case NoCondition():
            return ()
        case SeveralConditions():
            return config.conditions
        case _:
            return (config,)


def random_crop(image: Tensor, size: int, factor: int, rng: Generator) -> Tensor:
    """One window of `size` pixels from each image (B, C, H, W), at a multiple of `factor`."""
    if size >= image.shape[-1]:
        return image
    positions = (image.shape[-1] - size) // factor + 1
    corners = torch.randint(positions, (len(image), 2), generator=rng, device=image.device)
    return torch.stack(
        [
            each[:, row : row + size, column : column + size]
            for each, (row, column) in zip(image, (corners * factor).tolist(), strict=True)
        ]
    )


def upsampling_factor(network: ConditionalNetwork) -> int:
    """Output pixels per low-resolution pixel, each way."""
    assert isinstance(network.config, UpsamplingConfig), "it is conditioned on low_resolution"
    return network.config.factor


def _classes(network: ConditionalNetwork) -> int:
    config = network.config
    assert isinstance(config, ClassConfig), "it is conditioned on class"
    assert config.classes is not None, "it is conditioned on class"
    return config.classes
