"""The discrete variational autoencoder of DALL-E (arXiv 2102.12092, 2.1 and A)."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from models.autoencoders.bottleneck import GumbelBottleneck, Penalty
from models.autoencoders.losses import map_pixels, reconstruction
from models.autoencoders.protocols import FirstStage, Reconstruction
from models.autoencoders.pyramid import Decoder, Encoder
from models.checks import require_multiple
from models.finite import require_finite


class DVAEConfig(BaseModel, frozen=True, extra="forbid"):
    """The defaults are the published network: 53,786,240 + 43,829,766 parameters.

    A code stands for patch x 2^(groups - 1) pixels each way.
    """

    kind: Literal["dvae"] = "dvae"
    image_size: int = Field(default=256, gt=0)
    vocab: int = Field(default=8192, gt=1)
    width: int = Field(default=256, gt=0, multiple_of=4)
    groups: int = Field(default=4, gt=0)
    blocks_per_group: int = Field(default=2, gt=0)
    patch: int = Field(default=1, gt=0)
    initial_width: int = Field(default=128, gt=0)
    """Channels between the codes and the decoder's first group."""

    gain: float | None = Field(default=None, gt=0)
    """Factor of the residual branches; the paper's 1 / (groups x blocks_per_group)^2 by default."""

    @property
    def residual_gain(self) -> float:
        return self.gain or (self.groups * self.blocks_per_group) ** -2.0

    @property
    def stride(self) -> int:
        """Pixels per code, each way."""
        return int(self.patch * 2 ** (self.groups - 1))

    @model_validator(mode="after")
    def _whole_grid(self) -> "DVAEConfig":
        require_multiple("image_size", self.image_size, "patch x 2^(groups - 1) =", self.stride)
        return self

    def build(self) -> "DVAE":
        return DVAE(self)


class DVAE(nn.Module, FirstStage):
    """Images in [-1, 1] to a grid of codes and back."""

    penalty: Penalty = "kl"

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, config.image_size
        self.encoder = Encoder(config)
        self.bottleneck = GumbelBottleneck()
        self.decoder = Decoder(config)

    @property
    def grid(self) -> tuple[int, int]:
        side = self.config.image_size // self.config.stride
        return side, side

    def forward(self, image: Tensor, rng: Generator) -> Reconstruction:
        """Reconstruct (B, 3, H, W) through relaxed samples of the codes."""
        latent = self.bottleneck(self.logits(image), rng)
        features = self.decoder.features(latent.value)
        return Reconstruction(self.decoder.project(features).float(), (latent,), features)

    def logits(self, image: Tensor) -> Tensor:
        """Unnormalised log probabilities of the codes: (B, K, h, w) in fp32."""
        return self.encoder(map_pixels(image.float())).float()

    def tokens(self, image: Tensor) -> Tensor:
        """The most probable codes: (B, h, w) int64.

        Raises:
            NonFiniteError: logits are not finite.
        """
        logits = self.logits(image)
        require_finite("the logits of its codes are", logits)
        return logits.argmax(dim=1)

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w) to (B, 3, H, W) in [-1, 1], fp32."""
        one_hot = F.one_hot(codes, self.config.vocab).permute(0, 3, 1, 2).float()
        return reconstruction(self.decoder(one_hot)).clamp(-1, 1)

    def to_image(self, output: Tensor) -> Tensor:
        """The image of the means."""
        return reconstruction(output)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode to hard codes and decode: (B, 3, H, W) in [-1, 1]."""
        return self.decode_tokens(self.tokens(image))

    def code_arrays(self, image: Tensor) -> Mapping[str, Tensor]:
        return {"codes": self.tokens(image)}

    def vocabularies(self) -> Mapping[str, int]:
        return {"codes": self.config.vocab}

    def last_gradient(self, features: Tensor, output: Tensor) -> Tensor:
        return self.decoder.last_gradient(features, output)

    def set_temperature(self, temperature: float) -> None:
        self.bottleneck.temperature = temperature
