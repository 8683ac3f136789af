"""The one union of model kinds."""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.discriminator import PatchDiscriminatorConfig
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoregressive.embedding_prior import EmbeddingPriorConfig
from models.autoregressive.prior import PriorConfig
from models.clip import ClipConfig
from models.diffusion.classifier import NoisyClassifierConfig
from models.diffusion.control.network import ControlConfig
from models.diffusion.dit import DiTConfig
from models.diffusion.prior.network import DiffusionPriorConfig
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig

ModelConfig = Annotated[
    DVAEConfig
    | PatchDiscriminatorConfig
    | PriorConfig
    | ClipConfig
    | TextDiffusionConfig
    | SuperResolutionConfig
    | UNetConfig
    | NoisyClassifierConfig
    | DiTConfig
    | DiffusionPriorConfig
    | EmbeddingPriorConfig
    | ControlConfig
    | AutoencoderConfig
    | VQVAE2Config,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class TextShape:
    """The captions that a model takes."""

    vocab: int
    """Size of the tokenizer's vocabulary."""
    length: int
    """Tokens of a caption."""
    keys: str = "model.text_"
    """Prefix of the recipe keys that set it."""


def image_side(config: ModelConfig) -> int | None:
    """Side in pixels of the images that a model reads or generates; None if it has no size."""
    match config:
        case PatchDiscriminatorConfig() | PriorConfig():
            return None
        case DiffusionPriorConfig() | EmbeddingPriorConfig():
            return None
        case _:
            return config.image_size


def sides_multiple(config: ModelConfig) -> int | None:
    """What heights and widths of images must be multiples of; None: a model takes one size."""
    match config:
        case UNetConfig(low_resolution=None, inpainting=None):
            return config.stride
        case DVAEConfig():
            return config.stride
        case AutoencoderConfig():
            return config.pyramid.stride
        case VQVAE2Config():
            return config.strides[0]
        case _:
            return None


def text_shape(config: ModelConfig) -> TextShape | None:
    """The captions that a model takes, or None."""
    match config:
        case PriorConfig() | ClipConfig() | TextDiffusionConfig():
            return TextShape(config.text_vocab, config.text_length)
        case UNetConfig() | DiTConfig():
            if config.text is None:
                return None
            return TextShape(config.text.vocab, config.text.length, "model.text.")
        case ControlConfig(base=base):
            found = text_shape(base)
            return None if found is None else replace(found, keys="model.base.text.")
        case DVAEConfig() | AutoencoderConfig() | VQVAE2Config() | PatchDiscriminatorConfig():
            return None
        case SuperResolutionConfig() | NoisyClassifierConfig():
            return None
        case DiffusionPriorConfig() | EmbeddingPriorConfig():  # a frozen encoder reads them
            return None
