"""Autoencoders of a pyramid and a bottleneck: AE, VAE, VQ-VAE, VQ-GAN, KL and VQ."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor, nn

from mezzotint.common.errors import UserError
from models.autoencoders.bottleneck import (
    Gaussian,
    GaussianBottleneck,
    Identity,
    Penalty,
    Statistics,
    moments,
)
from models.autoencoders.protocols import FirstStage, Reconstruction
from models.autoencoders.quantizer import (
    EmaVectorQuantizer,
    EmaVectorQuantizerConfig,
    Quantizer,
    VectorQuantizer,
    VectorQuantizerConfig,
)
from models.autoencoders.resnet import ResnetPyramid
from models.autoencoders.strided import StridedPyramid
from models.checks import require_multiple

PyramidConfig = Annotated[ResnetPyramid | StridedPyramid, Field(discriminator="kind")]
BottleneckConfig = Annotated[
    Identity | Gaussian | VectorQuantizerConfig | EmaVectorQuantizerConfig,
    Field(discriminator="kind"),
]


class AutoencoderConfig(BaseModel, frozen=True, extra="forbid"):
    """`channels` is the width of the latent: of the decoder's input and of the codes."""

    kind: Literal["autoencoder"] = "autoencoder"
    image_size: int = Field(gt=0)
    channels: int = Field(gt=0)
    pyramid: PyramidConfig
    bottleneck: BottleneckConfig

    @model_validator(mode="after")
    def _whole_grid(self) -> "AutoencoderConfig":
        stride = self.pyramid.stride
        require_multiple("image_size", self.image_size, "the pyramid's stride", stride)
        return self

    @property
    def discrete(self) -> bool:
        """Whether the latent is made of codes."""
        return isinstance(self.bottleneck, VectorQuantizerConfig | EmaVectorQuantizerConfig)

    def build(self) -> "Autoencoder":
        return Autoencoder(self)


class Autoencoder(nn.Module, FirstStage):
    """Images in [-1, 1] to a latent (B, channels, h, w) and back."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config, self.image_size = config, config.image_size
        inputs = config.bottleneck.inputs(config.channels)
        self.encoder = config.pyramid.encoder(inputs, config.image_size)
        self.to_latent = nn.Conv2d(inputs, inputs, 1)
        self.bottleneck = config.bottleneck.build(config.channels)
        self.from_latent = nn.Conv2d(config.channels, config.channels, 1)
        self.decoder = config.pyramid.decoder(config.channels, config.image_size)

    @property
    def penalty(self) -> Penalty:
        return self.bottleneck.penalty

    @property
    def grid(self) -> tuple[int, int]:
        side = self.config.image_size // self.config.pyramid.stride
        return side, side

    def forward(self, image: Tensor, rng: Generator) -> Reconstruction:
        """Reconstruct (B, 3, H, W)."""
        latent = self.bottleneck(self.hidden(image), rng)
        features = self.decoder.features(self._from(latent.value))
        return Reconstruction(self.decoder.project(features).float(), (latent,), features)

    def hidden(self, image: Tensor) -> Tensor:
        """The input of the bottleneck."""
        return self.to_latent(self.encoder(image))

    def encode(self, image: Tensor, rng: Generator | None = None) -> Tensor:
        """The latent (B, channels, h, w) in fp32, before any quantisation.

        A gaussian bottleneck gives a sample by `rng`, or the mean without one.
        """
        hidden = self.hidden(image)
        if rng is None or self.discrete:
            return self.bottleneck.mode(hidden).float()
        return self.bottleneck(hidden, rng).value.float()

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B, channels, h, w), quantised first if discrete, to (B, 3, H, W) in [-1, 1]."""
        quantizer = self.bottleneck
        if isinstance(quantizer, Quantizer):
            latent = quantizer.lookup(quantizer.tokens(latent))
        output = self.decoder.project(self.decoder.features(self._from(latent)))
        return self.to_image(output).clamp(-1, 1)

    def tokens(self, image: Tensor) -> Tensor:
        """Codes (B, h, w) int64.

        Raises:
            UserError: the latent is continuous.
        """
        return self._quantizer().tokens(self.hidden(image))

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w) to (B, 3, H, W) in [-1, 1].

        Raises:
            UserError: the latent is continuous.
        """
        latent = self._from(self._quantizer().lookup(codes))
        return self.to_image(self.decoder.project(self.decoder.features(latent))).clamp(-1, 1)

    @property
    def discrete(self) -> bool:
        return self.config.discrete

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode and decode without noise: (B, 3, H, W) in [-1, 1]."""
        return self.decode(self.encode(image))

    def code_arrays(self, image: Tensor) -> Mapping[str, Tensor]:
        """`codes` (B, h, w); empty if the latent is continuous."""
        return {"codes": self.tokens(image)} if self.discrete else {}

    def latent_arrays(self, image: Tensor) -> Mapping[str, Tensor]:
        """`latents` (B, channels, h, w) in fp32, before any quantisation.

        For a gaussian bottleneck these are the means, with `latent_deviations`.
        """
        hidden = self.hidden(image)
        arrays = {"latents": self.bottleneck.mode(hidden).float()}
        if isinstance(self.bottleneck, GaussianBottleneck):
            arrays["latent_deviations"] = (0.5 * moments(hidden)[1]).exp()
        return arrays

    def vocabularies(self) -> Mapping[str, int]:
        return {"codes": self._quantizer().config.codes} if self.discrete else {}

    def last_gradient(self, features: Tensor, output: Tensor) -> Tensor:
        return self.decoder.last_gradient(features, output)

    def commit(self, seen: Sequence[Statistics], rng: Generator) -> int:
        if isinstance(self.bottleneck, EmaVectorQuantizer):
            return self.bottleneck.commit(seen[0], rng)
        return 0

    def _from(self, latent: Tensor) -> Tensor:
        return self.from_latent(latent.to(self.from_latent.weight.dtype))

    def _quantizer(self) -> VectorQuantizer | EmaVectorQuantizer:
        if isinstance(self.bottleneck, VectorQuantizer | EmaVectorQuantizer):
            return self.bottleneck
        raise UserError(
            f"model.bottleneck.kind {self.config.bottleneck.kind} has no codes; use vq or ema_vq"
        )
