"""CLIP (arXiv 2103.00020): a trainable one and a frozen pretrained one, with the same methods."""

import math
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol
from zipfile import is_zipfile

import torch
from pydantic import BaseModel, Field, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.checks import require_multiple
from models.nn import initialization
from models.nn.patchify import resize
from models.torchvision_compat import ensure_torchvision

if TYPE_CHECKING:
    from open_clip.model import CLIP


class ImageTextEncoder(Protocol):
    """The interface of a CLIP for re-ranking and scoring."""

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to unit vectors (B, D)."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) of its own tokenizer to unit vectors (B, D)."""


class ClipConfig(BaseModel, frozen=True, extra="forbid"):
    """Sizes of the two towers (open_clip's CLIP class)."""

    kind: Literal["clip"] = "clip"
    image_size: int = Field(gt=0)
    patch: int = Field(gt=0)
    vision_width: int = Field(default=128, gt=0)
    vision_layers: int = Field(default=3, gt=0)
    text_vocab: int = Field(gt=1)
    text_length: int = Field(gt=0)
    text_width: int = Field(default=128, gt=0)
    text_layers: int = Field(default=3, gt=0)
    head_width: int = Field(default=64, gt=0)
    embed: int = Field(default=128, gt=0)

    @model_validator(mode="after")
    def _divisible(self) -> "ClipConfig":
        require_multiple("image_size", self.image_size, "patch", self.patch)
        if self.vision_width % self.head_width or self.text_width % self.head_width:
            raise ValueError(
                f"vision_width {self.vision_width} and text_width {self.text_width} must be "
                f"multiples of head_width {self.head_width}"
            )
        return self

    def build(self) -> "Clip":
        return Clip(self)


class ClipFeatures(NamedTuple):
    """The inputs of the contrastive loss."""

    image: Tensor
    """(B, D), unit norm."""
    text: Tensor
    """(B, D), unit norm."""
    scale: Tensor
    """Scalar: the inverse temperature, at most 100."""


class Clip(nn.Module):
    """Both towers and the temperature.

    A caption's feature is that of its last token that is not padding (0).
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        ensure_torchvision()
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        self.config = config
        self.clip = CLIP(
            config.embed,
            CLIPVisionCfg(
                layers=config.vision_layers,
                width=config.vision_width,
                head_width=config.head_width,
                patch_size=config.patch,
                image_size=config.image_size,
            ),
            CLIPTextCfg(
                context_length=config.text_length,
                vocab_size=config.text_vocab,
                width=config.text_width,
                heads=config.text_width // config.head_width,
                layers=config.text_layers,
                pool_type="none",
            ),
            init_logit_scale=math.log(1 / 0.07),
            # of shape (1,): DeepSpeed cannot broadcast a parameter without dimensions
            nonscalar_logit_scale=True,
        )
        self._declare_initial_values()

    def _declare_initial_values(self) -> None:
        """Those of open_clip's constructors, which the meta device loses."""
        config = self.config
        text, vision = config.text_width**-0.5, config.vision_width**-0.5
        into_residual = text * (2 * config.text_layers) ** -0.5
        stds = {
            "token_embedding.weight": 0.02,
            "positional_embedding": 0.01,
            "text_projection": text,
            "visual.class_embedding": vision,
            "visual.positional_embedding": vision,
            "visual.proj": vision,
        }
        for name, parameter in self.clip.named_parameters():
            in_text = name.startswith("transformer.")
            match name.split(".")[-2:]:
                case ["attn", "in_proj_weight"] if in_text:
                    initialization.normal(parameter, text)
                case ["attn", "in_proj_weight"]:
                    initialization.xavier_uniform(parameter)
                case ["attn", "in_proj_bias"] | ["out_proj", "bias"]:
                    initialization.constant(parameter, 0.0)
                case ["out_proj" | "c_proj", "weight"] if in_text:
                    initialization.normal(parameter, into_residual)
                case ["c_fc", "weight"] if in_text:
                    initialization.normal(parameter, (2 * config.text_width) ** -0.5)
                case _ if name in stds:
                    initialization.normal(parameter, stds[name])
                case ["logit_scale"]:
                    initialization.constant(parameter, math.log(1 / 0.07))
                case _:
                    pass
        length = config.text_length
        initialization.computed(
            self.clip.attn_mask,
            lambda: torch.full((length, length), -math.inf, device="cpu").triu(1),
        )

    @property
    def scale(self) -> Tensor:
        """Inverse temperature, a scalar, at most 100 (arXiv 2103.00020, 2.5)."""
        return self.clip.logit_scale.float().exp().clamp(max=100.0).reshape(())

    def forward(self, image: Tensor, tokens: Tensor) -> ClipFeatures:
        """Features of images (B, 3, H, W) in [-1, 1] and of their captions (B, L)."""
        # through the inner module's own forward, where ZeRO-3 gathers the weights it holds directly
        image_features, text_features, scale = self.clip(self._sized(image), tokens)
        scale = scale.float().clamp(max=100.0).reshape(())
        return ClipFeatures(image_features.float(), pool_last_token(text_features, tokens), scale)

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], of any square size, to unit vectors (B, D) in fp32."""
        return self.clip.encode_image(self._sized(image), normalize=True).float()

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Captions (B, L) int64 to unit vectors (B, D) in fp32."""
        return pool_last_token(self.clip.encode_text(tokens, normalize=True), tokens)

    def token_features(self, tokens: Tensor) -> Tensor:
        return token_features(self.clip, tokens)

    def _sized(self, image: Tensor) -> Tensor:
        side = self.config.image_size
        return resize(image, side, side).to(self.clip.visual.conv1.weight.dtype)


def token_features(clip: "CLIP", tokens: Tensor) -> Tensor:
    """A vector per token (B, L, width) in fp32, of open_clip's CLIP before pooling.

    After the last norm and before the projection, as in latent diffusion's text encoders.
    """
    dtype = clip.transformer.get_cast_dtype()
    x = clip.token_embedding(tokens).to(dtype) + clip.positional_embedding.to(dtype)
    features: Tensor = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask))
    return features.float()


def pool_last_token(features: Tensor, tokens: Tensor) -> Tensor:
    """The feature (B, D) of (B, L, D) at the last token that is not 0; the first if all are."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    last = ((tokens != 0) * positions).argmax(dim=1)
    return features[torch.arange(len(tokens), device=tokens.device), last].float()


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Mean cross-entropy of images over captions and of captions over images, in nats.

    Features (B, D) of matching pairs, unit norm; figure 3 of the paper.
    """
    logits = scale.float() * image_features.float() @ text_features.float().T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


LOAD_ERRORS = (
    RuntimeError,
    KeyError,
    OSError,
    SafetensorError,
    UnpicklingError,
    # raised by open_clip for another text width, and for a file that holds no mapping
    AssertionError,
    AttributeError,
)
"""Raised by loading a file that is not a checkpoint of the architecture."""


def text_width(architecture: str) -> int:
    """Width of the text tower of an open_clip architecture.

    Raises:
        UserError: open_clip has no such architecture, or its text tower is not CLIP's.
    """
    shape = _model_config(architecture)
    if shape.get("custom_text") or needs_hugging_face(shape, architecture):
        raise UserError(
            f"architecture '{architecture}' has a text tower of its own kind; choose a CLIP "
            "(e.g. ViT-L-14)"
        )
    return int(shape["text_cfg"]["width"])


def _model_config(architecture: str) -> Mapping[str, Any]:
    ensure_torchvision()
    import open_clip

    shape: Mapping[str, Any] | None = open_clip.get_model_config(architecture)
    if shape is None:
        raise UserError(f"open_clip has no architecture '{architecture}' (e.g. ViT-B-32)")
    return shape


def needs_hugging_face(shape: Mapping[str, Any], architecture: str) -> bool:
    """Whether open_clip downloads the tokenizer or text tower of an architecture."""
    text = shape["text_cfg"]
    named = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    return bool(named) or "siglip" in architecture.lower()


class PretrainedClip(nn.Module):
    """A frozen open_clip model from a checkpoint on disk, with its own tokenizer."""

    def __init__(self, architecture: str, checkpoint: str) -> None:
        """Load `checkpoint` (a state dict or safetensors file) into open_clip's `architecture`.

        Raises:
            UserError: unknown architecture or one whose tokenizer is not open_clip's own, or a
                file that is not there or does not fit it.
        """
        super().__init__()
        shape = _model_config(architecture)
        import open_clip

        if needs_hugging_face(shape, architecture):
            raise UserError(
                f"architecture '{architecture}' takes a tokenizer from Hugging Face; choose one "
                "with open_clip's own tokenizer (e.g. ViT-B-32)"
            )
        if not Path(checkpoint).is_file():
            raise UserError(f"{checkpoint}: no such file; give a local open_clip checkpoint")
        self.clip = open_clip.create_model(architecture, load_weights=False)
        safe = checkpoint.endswith(".safetensors")
        if not safe and not is_zipfile(checkpoint):
            raise UserError(f"{checkpoint}: not a torch checkpoint; give a state dict on disk")
        try:
            open_clip.load_checkpoint(self.clip, checkpoint)
        except LOAD_ERRORS as error:
            # open_clip's message names every tensor
            found = shorten(str(error), 200, placeholder=" ...") or type(error).__name__
            raise UserError(
                f"{checkpoint}: not a checkpoint of {architecture}; give the architecture it was "
                f"trained as ({found})"
            ) from error
        self.requires_grad_(requires_grad=False).eval()
        self._tokenizer = open_clip.get_tokenizer(architecture)
        self._mean, self._std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

    @property
    def scale(self) -> Tensor:
        return self.clip.logit_scale.float().exp()

    def tokens(self, captions: list[str]) -> Tensor:
        """Captions to tokens (B, L) of this model's tokenizer."""
        return self._tokenizer(captions)

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], of any square size, to unit vectors (B, D) in fp32."""
        height, width = self.clip.visual.image_size
        image = (resize(image, height, width) + 1) / 2
        mean = torch.tensor(self._mean, device=image.device)[:, None, None]
        std = torch.tensor(self._std, device=image.device)[:, None, None]
        return self.clip.encode_image((image - mean) / std, normalize=True).float()

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) to unit vectors (B, D) in fp32."""
        return self.clip.encode_text(tokens, normalize=True).float()

    def token_features(self, tokens: Tensor) -> Tensor:
        return token_features(self.clip, tokens)
