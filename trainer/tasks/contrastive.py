"""Contrastive: CLIP on image-text pairs (arXiv 2103.00020)."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.clip import Clip, contrastive_loss
from trainer.distributed import gather_rows
from trainer.task import Engines, Loss, Step, Task


class ContrastiveConfig(BaseModel, frozen=True, extra="forbid"):
    """Symmetric cross-entropy over all pairs of the global batch.

    Images are shifted by up to `shift` pixels (white comes in) and get gaussian noise of a standard
    deviation up to `noise`, in the units of [-1, 1].
    """

    kind: Literal["contrastive"]
    shift: int = Field(default=0, ge=0)
    noise: float = Field(default=0.0, ge=0)

    def build(self, model: nn.Module) -> "Contrastive":
        """The task over `model`.

        Raises:
            UserError: the model is not a CLIP.
        """
        if not isinstance(model, Clip):
            raise UserError("task.kind: contrastive trains model.kind clip")
        return Contrastive(self, model)


class Contrastive(Task):
    """Trains CLIP's two towers together."""

    def __init__(self, config: ContrastiveConfig, model: Clip) -> None:
        self._config = config
        self._model = model

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        config = self._config
        image = shifted(batch.images, config.shift, step.rng)
        if config.noise:
            level = config.noise * torch.rand(
                (len(image), 1, 1, 1), generator=step.rng, device=image.device
            )
            image = image + level * torch.randn(
                image.shape, generator=step.rng, device=image.device
            )
        image_features, text_features, scale = engines["model"](image, batch.tokens)
        image_features, text_features = gather_rows(image_features), gather_rows(text_features)
        value = contrastive_loss(image_features, text_features, scale)
        right = (image_features @ text_features.T).argmax(1) == torch.arange(
            len(image_features), device=image.device
        )
        yield Loss("model", value, {"accuracy": right.float().mean(), "scale": scale})

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """CLIP generates no images."""
        return {}


def shifted(images: Tensor, most: int, rng: Generator) -> Tensor:
    """Each image moved by up to `most` pixels both ways; white comes in at the borders."""
    if most == 0:
        return images
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (most, most, most, most), value=1.0)
    offsets = torch.randint(2 * most + 1, (2, count), generator=rng, device=images.device)
    rows = (offsets[0][:, None] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offsets[1][:, None] + torch.arange(width, device=images.device))[:, None, None, :]
    samples = torch.arange(count, device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[samples, channels, rows, columns]
