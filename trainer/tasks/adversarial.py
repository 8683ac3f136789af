"""Adversarial reconstruction: an autoencoder against a patch discriminator, two optimizers.

The generator minimises its likelihood and, once the discriminator has started, what the
discriminator says of its reconstructions; the discriminator learns with the hinge loss (VQ-GAN,
arXiv 2012.09841).
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from data_pipeline.stream import Batch
from models.autoencoders.discriminator import PatchDiscriminatorConfig
from models.autoencoders.losses import reconstruction
from trainer.schedules import Constant, Scalar
from trainer.task import Engines, Loss, Step
from trainer.tasks.reconstruction import Reconstruction, ReconstructionConfig


class AdversarialConfig(BaseModel, frozen=True, extra="forbid"):
    """Reconstruction, plus `weight` x the generator's adversarial loss from step `starts` on."""

    kind: Literal["adversarial"]
    discriminator: PatchDiscriminatorConfig
    likelihood: Literal["logit_laplace", "l1_l2"] = "l1_l2"
    kl: Scalar = Constant(value=0.0)
    temperature: Scalar = Constant(value=1.0)
    weight: float = Field(default=0.1, ge=0)
    starts: int = Field(default=0, ge=0)

    def build(self, model: nn.Module) -> "Adversarial":
        """The task over `model` and a new discriminator."""
        inner = ReconstructionConfig(
            kind="reconstruction",
            likelihood=self.likelihood,
            kl=self.kl,
            temperature=self.temperature,
        )
        return Adversarial(self, inner.build(model), self.discriminator.build())


class Adversarial:
    """Two parts: `model` (the generator) and `discriminator`."""

    def __init__(
        self, config: AdversarialConfig, reconstruction: Reconstruction, discriminator: nn.Module
    ) -> None:
        self._config = config
        self._reconstruction = reconstruction
        self._discriminator = discriminator

    def parts(self) -> Mapping[str, nn.Module]:
        """Generator first: it is what a run hands over."""
        return {**self._reconstruction.parts(), "discriminator": self._discriminator}

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """The generator's loss, then the discriminator's, on the same reconstructions."""
        image, config = batch.images, self._config
        started = 1.0 if step.index >= config.starts else 0.0
        self._reconstruction.anneal(step.index)
        output, latent = engines["model"](image, step.rng)
        value, metrics = self._reconstruction.score(output, latent, image, step.index)
        fake = reconstruction(output)
        # only scores here: through the bare module, and without gradients of its own
        self._discriminator.requires_grad_(requires_grad=False)
        judged = -engines["discriminator"].module(fake).float().mean()
        metrics["adversarial"] = judged
        yield Loss("model", value + started * config.weight * judged, metrics)
        self._discriminator.requires_grad_(requires_grad=True)
        real_score, fake_score = (
            engines["discriminator"](torch.cat([image, fake.detach()])).float().chunk(2)
        )
        hinge = 0.5 * (F.relu(1 - real_score).mean() + F.relu(1 + fake_score).mean())
        scores = {"score_real": real_score.mean(), "score_fake": fake_score.mean()}
        yield Loss("discriminator", started * hinge, scores)

    def after_update(self, step: Step) -> None:
        """Nothing: gradients train both parts."""

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Images, and their reconstructions through hard codes."""
        return self._reconstruction.preview(parts, batch, rng)
