"""The interfaces of autoencoders for training objectives, evaluation and samplers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Generator, Tensor

from models.autoencoders.bottleneck import Latent, Penalty, Statistics


class Reconstruction(NamedTuple):
    """The result of a forward pass, for the loss."""

    output: Tensor
    """The decoder's output (B, 3 or 6, H, W) in fp32, which `to_image` turns into an image."""
    latents: tuple[Latent, ...]
    """One per codebook or latent, the coarsest first."""
    features: Tensor
    """The input of the decoder's last layer, (B, C, H', W')."""

    @property
    def latent(self) -> Latent:
        """The only latent, or the coarsest."""
        return self.latents[0]


class FirstStage(Protocol):
    """An autoencoder; the defaults are those of a decoder of images and a fixed codebook."""

    image_size: int
    """Side of its images in pixels."""

    @property
    def penalty(self) -> Penalty:
        """The kind of its bottlenecks' loss."""

    def to_image(self, output: Tensor) -> Tensor:
        """The image of a decoder's output: (B, 3, H, W) around [-1, 1], not clamped."""
        return output.float()

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encode and decode without noise: (B, 3, H, W) in [-1, 1]."""

    def code_arrays(self, image: Tensor) -> Mapping[str, Tensor]:
        """Codes by the name of their array, each (B, h, w) int64; none if continuous."""

    def vocabularies(self) -> Mapping[str, int]:
        """Size of the codebook of each of those arrays."""

    def last_gradient(self, features: Tensor, output: Tensor) -> Tensor:
        """Gradient of the decoder's last weight, from that of `Reconstruction.output`."""

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of a Gumbel-softmax bottleneck; others ignore it."""
        return

    def commit(self, seen: Sequence[Statistics], rng: Generator) -> int:
        """Update codebooks that gradients do not train; returns how many codes restarted."""
        return 0


class DiscreteAutoencoder(Protocol):
    """An autoencoder with one codebook, for a prior over its codes."""

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of an image of `image_size`."""

    def vocabularies(self) -> Mapping[str, int]:
        """Size of the codebook `codes`."""

    def tokens(self, image: Tensor) -> Tensor:
        """Codes (B, h, w) int64 of images (B, 3, H, W) in [-1, 1]."""

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w) to (B, 3, H, W) in [-1, 1]."""
