"""What objectives, evaluations and systems see of an autoencoder, whatever it is made of."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Generator, Tensor

from models.autoencoders.bottleneck import Latent, Penalty, Statistics


class Reconstruction(NamedTuple):
    """What a forward pass gives the loss."""

    output: Tensor
    """What the decoder says, (B, 3 or 6, H, W) in fp32; `to_image` turns it into an image."""
    latents: tuple[Latent, ...]
    """One per codebook or latent, the coarsest first."""
    features: Tensor
    """What the decoder's last layer read, (B, C, H', W')."""

    @property
    def latent(self) -> Latent:
        """The only latent, or the coarsest."""
        return self.latents[0]


class FirstStage(Protocol):
    """An autoencoder as others use it."""

    @property
    def penalty(self) -> Penalty:
        """What the loss of its bottlenecks is."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the images it is shaped for."""
        ...

    def to_image(self, output: Tensor) -> Tensor:
        """The image an output means: (B, 3, H, W) around [-1, 1], not clamped."""
        ...

    def reconstruct(self, image: Tensor) -> Tensor:
        """There and back without noise: (B, 3, H, W) in [-1, 1]."""
        ...

    def code_arrays(self, image: Tensor) -> Mapping[str, Tensor]:
        """Codes by the name of their array, each (B, h, w) int64; none if continuous."""
        ...

    def vocabularies(self) -> Mapping[str, int]:
        """How many codes each of those arrays can hold."""
        ...

    def last_gradient(self, features: Tensor, output: Tensor) -> Tensor:
        """Gradient of the decoder's last weight, from that of `Reconstruction.output`."""
        ...

    def set_temperature(self, temperature: float) -> None:
        """Anneal a relaxed bottleneck; the others have no temperature and ignore it."""
        ...

    def commit(self, seen: Sequence[Statistics], rng: Generator) -> int:
        """Update codebooks that gradients do not train; returns how many codes restarted."""
        ...


class DiscreteAutoencoder(Protocol):
    """An autoencoder with one codebook, as a prior over its codes sees it."""

    @property
    def image_size(self) -> int:
        """Side of the images it is shaped for."""
        ...

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes of an image of `image_size`."""
        ...

    def vocabularies(self) -> Mapping[str, int]:
        """How many `codes` there are."""
        ...

    def tokens(self, image: Tensor) -> Tensor:
        """Codes (B, h, w) int64 of images (B, 3, H, W) in [-1, 1]."""
        ...

    def decode_tokens(self, codes: Tensor) -> Tensor:
        """The image that codes (B, h, w) stand for: (B, 3, H, W) in [-1, 1]."""
        ...
