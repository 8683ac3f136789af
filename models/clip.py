"""CLIP (arXiv 2103.00020): the network that is trained here, and its loss."""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.checks import require_multiple
from models.nn import initialization
from models.nn.patchify import resize
from models.torchvision_compat import ensure_torchvision

if TYPE_CHECKING:
    from open_clip.model import CLIP


class EncodedCaptions(NamedTuple):
    """All that a CLIP's text tower makes of captions, in fp32."""

    features: Tensor
    """(B, L, width): of every token, after the last norm."""
    mask: Tensor
    """(B, L) bool: which tokens are no padding."""
    embedding: Tensor
    """(B, D): the projection as it is, not of unit norm."""


class ImageTextEncoder(Protocol):
    """The interface of a CLIP for re-ranking, scoring and embeddings."""

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to unit vectors (B, D)."""

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) of its own tokenizer to unit vectors (B, D)."""

    def project_image(self, image: Tensor) -> Tensor:
        """As `encode_image`, without bringing the projection (B, D) to unit norm."""

    def project_text(self, tokens: Tensor) -> Tensor:
        """As `encode_text`, without bringing the projection (B, D) to unit norm."""

    def encode_captions(self, tokens: Tensor) -> EncodedCaptions:
        """Tokens (B, L) to features, their padding and the projection, in one pass."""


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

    def project_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to the projection (B, D) as it is, in fp32."""
        return self.clip.encode_image(self._sized(image)).float()

    def project_text(self, tokens: Tensor) -> Tensor:
        """Captions (B, L) int64 to the projection (B, D) as it is, in fp32."""
        return pool_last_token(self.clip.encode_text(tokens), tokens)

    def encode_captions(self, tokens: Tensor) -> EncodedCaptions:
        features = token_features(self.clip, tokens)
        pooled = pool_last_token(features, tokens)
        return EncodedCaptions(features, token_mask(tokens), projected(self.clip, pooled))

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


def token_mask(tokens: Tensor) -> Tensor:
    """Which of the tokens (B, L) are no padding, (B, L) bool: all up to the last that is not 0.

    The first one counts also where all are 0.
    """
    last = _last_token(tokens)
    return torch.arange(tokens.shape[1], device=tokens.device) <= last[:, None]


def projected(clip: "CLIP", pooled: Tensor) -> Tensor:
    """Pooled features (B, width) of open_clip's CLIP in its common space, (B, D) in fp32."""
    projection = clip.text_projection
    if projection is None:
        return pooled.float()
    if isinstance(projection, nn.Linear):
        found: Tensor = projection(pooled)
        return found.float()
    return (pooled.to(projection.dtype) @ projection).float()


def _last_token(tokens: Tensor) -> Tensor:
    """Positions (B,) of the last token that is not 0; 0 if all are."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return ((tokens != 0) * positions).argmax(dim=1)


def pool_last_token(features: Tensor, tokens: Tensor) -> Tensor:
    """The feature (B, D) of (B, L, D) at the last token that is not 0; the first if all are."""
    return features[torch.arange(len(tokens), device=tokens.device), _last_token(tokens)].float()


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor) -> Tensor:
    """Mean cross-entropy of images over captions and of captions over images, in nats.

    Features (B, D) of matching pairs, unit norm; figure 3 of the paper.
    """
    logits = scale.float() * image_features.float() @ text_features.float().T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
