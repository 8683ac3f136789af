"""What a diffusion network is conditioned on in training, and condition dropout."""

from dataclasses import replace
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_class
from models.diffusion.inpainting import coarse_mask, random_masks
from models.diffusion.network import (
    ClassConfig,
    ConditionalNetwork,
    UpsamplingConfig,
    UpsamplingNetwork,
)
from models.diffusion.process import Denoiser
from trainer.rng import drop_class
from trainer.tasks.conditioning.captions import (
    ClipTextCondition,
    FeaturesCondition,
    TextCondition,
)
from trainer.tasks.conditioning.clip_image import ClipImageCondition
from trainer.tasks.conditioning.inputs import BaseCondition, ConditionInputs


class ClassCondition(BaseCondition, frozen=True, extra="forbid"):
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


class LowResolutionCondition(BaseCondition, frozen=True, extra="forbid"):
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


class InpaintingCondition(BaseCondition, frozen=True, extra="forbid"):
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


class SizesCondition(BaseCondition, frozen=True, extra="forbid"):
    """Original size, crop and target size of the images; it needs `data.image`."""

    kind: Literal["sizes"]

    def train_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return replace(condition, sizes=inputs.batch.image_sizes)

    def eval_condition(self, condition: Condition, inputs: ConditionInputs) -> Condition:
        return self.train_condition(condition, inputs)


class NoCondition(BaseModel, frozen=True, extra="forbid"):
    """An unconditional network."""

    kind: Literal["none"] = "none"


OneCondition = Annotated[
    ClassCondition
    | TextCondition
    | FeaturesCondition
    | ClipTextCondition
    | ClipImageCondition
    | LowResolutionCondition
    | InpaintingCondition
    | SizesCondition,
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
    | ClipTextCondition
    | ClipImageCondition
    | LowResolutionCondition
    | InpaintingCondition
    | SizesCondition
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


def caption_conditions(config: ConditionConfig) -> tuple[OneCondition, ...]:
    """The conditions one by one, with the captions of one of images beside it."""
    found: list[OneCondition] = []
    for each in as_conditions(config):
        found.append(each)
        if isinstance(each, ClipImageCondition) and each.captions is not None:
            found.append(each.captions)
    return tuple(found)


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
