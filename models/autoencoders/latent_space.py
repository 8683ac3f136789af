"""Between images and the normalised latents that are diffused."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator, Tensor

from mezzotint.common.latent_scaling import LatentScaling
from models.autoencoders.autoencoder import Autoencoder


@dataclass(frozen=True)
class LatentSpace:
    """Normalised latents of a first stage (latent diffusion, arXiv 2112.10752).

    Of a gaussian first stage an image's latent is the mean of its posterior. A discrete one is
    diffused before quantisation and quantised in `decode`.
    """

    first_stage: Autoencoder
    scaling: LatentScaling

    @property
    def image_size(self) -> int:
        return self.first_stage.config.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.first_stage.config.channels, *self.first_stage.grid

    def encode(self, images: Tensor) -> Tensor:
        return self.scaling.normalize(self.first_stage.encode(images))

    def posterior(self, images: Tensor) -> Callable[[Generator], Tensor]:
        """Normalised latents of images (B, 3, H, W), of a gaussian first stage a new sample at each
        call; the images are encoded once.
        """
        hidden = self.first_stage.hidden(images)
        if self.first_stage.discrete:
            fixed = self.scaling.normalize(self.first_stage.bottleneck.mode(hidden).float())
            return lambda rng: fixed

        def sample(rng: Generator) -> Tensor:
            return self.scaling.normalize(self.first_stage.bottleneck(hidden, rng).value.float())

        return sample

    def decode(self, x: Tensor) -> Tensor:
        return self.first_stage.decode(self.scaling.denormalize(x)).float()

    def shown(self, x: Tensor) -> Tensor:
        return self.decode(x)
