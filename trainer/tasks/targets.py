"""What a denoising network learns to generate."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor

from data_pipeline.batch import Batch
from mezzotint.common.embedding_scaling import IMAGE_EMBEDDING, EmbeddingScaling
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import DEVIATIONS, LATENTS, LatentScaling
from models import store
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.latent_space import LatentSpace
from models.first_stage import FirstStage


class Images(BaseModel, frozen=True, extra="forbid"):
    """The images of the data set are denoised."""

    kind: Literal["images"] = "images"

    def clean(self, batch: Batch, rng: Generator) -> Tensor:
        """(B, 3, H, W) in [-1, 1]."""
        return batch.images


class Array(BaseModel, frozen=True, extra="forbid"):
    """An array of a derived set is denoised, such as latents (B, C, h, w) or vectors (B, D).

    It is shifted and scaled first: (value - mean) x scale, to a standard deviation of about 1.
    """

    kind: Literal["array"] = "array"
    name: str
    std: str | None = None
    """An array of standard deviations: every epoch samples again from N(name, std^2)."""
    mean: float = 0.0
    scale: float = Field(default=1.0, gt=0)

    def clean(self, batch: Batch, rng: Generator) -> Tensor:
        """(B, ...), in fp32."""
        return (_sampled(batch, self.name, self.std, rng) - self.mean) * self.scale


class Latents(BaseModel, frozen=True, extra="forbid"):
    """Latents of a derived set, normalised by the statistics that were measured over all of it.

    Where the set has deviations, every step takes another sample of the posterior. `data.arrays`
    need not name them; `data.encoder` names the first stage.
    """

    kind: Literal["latents"]
    scaling: LatentScaling | None = None
    """None: the statistics of the set. A model that goes on from another states the other's."""

    def clean(self, batch: Batch, rng: Generator) -> Tensor:
        """(B, C, h, w) in fp32."""
        assert self.scaling is not None, "taken from the set when the run is set up"
        std = DEVIATIONS if DEVIATIONS in batch.arrays else None
        return self.scaling.normalize(_sampled(batch, LATENTS, std, rng))


class ImageEmbeddings(BaseModel, frozen=True, extra="forbid"):
    """CLIP embeddings of the images, normalised as their derived set records it.

    `data.arrays` need not name them.
    """

    kind: Literal["image_embeddings"]
    scaling: EmbeddingScaling | None = None
    """None: the normalisation of the set. A model that goes on from another states the other's."""

    def clean(self, batch: Batch, rng: Generator) -> Tensor:
        """(B, D) in fp32."""
        assert self.scaling is not None, "taken from the set when the run is set up"
        return self.scaling.normalize(batch.array(IMAGE_EMBEDDING).float())


def _sampled(batch: Batch, name: str, std: str | None, rng: Generator) -> Tensor:
    """An array (B, ...) in fp32, or a sample of N(array, std^2)."""
    value = batch.array(name).float()
    if std is None:
        return value
    noise = torch.randn(value.shape, generator=rng, device=value.device)
    return value + batch.array(std).float() * noise


class LatentDecoder:
    """Normalised latents to images and back; the first stage is read when it is first needed.

    It is no part of the task: not trained, and not in checkpoints.
    """

    def __init__(self, source: FirstStage) -> None:
        self._source = source
        self._opened: LatentSpace | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1].

        Raises:
            UserError: the first stage cannot be read, or is another one now.
        """
        return self._space(x.device).decode(x)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """The inverse; of a gaussian first stage the mean of the posterior.

        Raises:
            UserError: as above.
        """
        return self._space(images.device).encode(images)

    def _space(self, device: torch.device) -> LatentSpace:
        if self._opened is None:
            where, digest = self._source.model, self._source.digest
            if store.describe(where).digest != digest:
                raise UserError(
                    f"{where}: holds another first stage now than that of the latents "
                    f"({digest[:12]}); put that one there"
                )
            stage = store.load(where, device=device)
            if not isinstance(stage, Autoencoder):
                raise UserError(f"{where}: holds no autoencoder")
            self._opened = LatentSpace(stage, self._source.scaling)
        return self._opened


TargetConfig = Annotated[Images | Array | Latents | ImageEmbeddings, Field(discriminator="kind")]
