"""Reconstruction: autoencoders whose loss is a likelihood and their bottleneck's own term."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.bottleneck import Latent
from models.autoencoders.dvae import DVAE
from models.autoencoders.hierarchical import VQVAE2
from models.autoencoders.losses import logit_laplace
from trainer.optimizers.schedules import Constant, Scalar
from trainer.task import Engines, Loss, Step, Task
from trainer.tasks.codebooks import Codebooks
from trainer.tasks.perceptual import PerceptualConfig, PerceptualTerm

Likelihood = Literal["logit_laplace", "l1_l2", "l1", "l2"]
TRAINED = (DVAE, Autoencoder, VQVAE2)


class Objective(BaseModel, frozen=True, extra="forbid"):
    """Negative log likelihood per value, the bottleneck's term per position, perceptual distance.

    `logit_laplace` is DALL-E's (arXiv 2102.12092, A.3), of a dVAE; the others are errors of the
    image: mean absolute, mean squared, and both added. `kl` weighs a divergence from the prior,
    `codebook` the loss of quantised codes. `temperature` is the gumbel-softmax relaxation's.
    """

    likelihood: Likelihood = "logit_laplace"
    kl: Scalar = Constant(value=0.0)
    codebook: float = Field(default=1.0, ge=0)
    temperature: Scalar = Constant(value=1.0)
    perceptual: PerceptualConfig | None = None


class ReconstructionConfig(Objective, frozen=True, extra="forbid"):
    """The objective alone: AE, VAE, VQ-VAE, VQ-VAE-2, dVAE."""

    kind: Literal["reconstruction"]

    def build(self, model: nn.Module) -> "Reconstruction":
        """The task over `model`.

        Raises:
            UserError: the model is not an autoencoder this task can train.
        """
        return Reconstruction(AutoencoderLoss(self, trainable(model, self)))


def trainable(model: nn.Module, objective: Objective) -> DVAE | Autoencoder | VQVAE2:
    """The model, if it is an autoencoder that suits the objective.

    Raises:
        UserError: it is not.
    """
    if not isinstance(model, TRAINED):
        raise UserError("task.kind: this task trains model.kind dvae, autoencoder or vqvae2")
    if objective.likelihood == "logit_laplace" and not isinstance(model, DVAE):
        raise UserError(
            "task.likelihood: logit_laplace needs a dvae, whose decoder gives means and scales; "
            "choose l1, l2 or l1_l2"
        )
    return model


class AutoencoderLoss:
    """The terms of an objective over one autoencoder, and its codebooks' statistics."""

    def __init__(self, objective: Objective, model: DVAE | Autoencoder | VQVAE2) -> None:
        self.objective = objective
        self.model = model
        self.codebooks = Codebooks(model)
        self._perceptual = (
            None if objective.perceptual is None else PerceptualTerm(objective.perceptual)
        )

    def anneal(self, index: int) -> None:
        self.model.set_temperature(self.objective.temperature.at(index))

    def distance(self, output: Tensor, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """How far a decoder's output is from the image: a scalar, and its terms as metrics."""
        decoded = self.model.to_image(output)
        image = image.float()
        match self.objective.likelihood:
            case "logit_laplace":
                nll = logit_laplace(output, image)
            case "l1_l2":
                nll = F.l1_loss(decoded, image) + F.mse_loss(decoded, image)
            case "l1":
                nll = F.l1_loss(decoded, image)
            case "l2":
                nll = F.mse_loss(decoded, image)
        metrics = {"reconstruction": nll.detach()}
        if self._perceptual is None:
            return nll, metrics
        perceptual = self._perceptual(decoded, image)
        metrics["perceptual"] = perceptual.detach()
        return nll + self._perceptual.weight * perceptual, metrics

    def bottleneck_loss(
        self, latents: tuple[Latent, ...], index: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The bottlenecks' weighted loss, and metrics; the statistics of codebooks are noted."""
        loss = torch.stack([latent.loss for latent in latents]).sum()
        self.codebooks.add(latents)
        metrics = {self.model.penalty: loss.detach(), **self.codebooks.metrics()}
        rates = [latent.rate.detach() for latent in latents if latent.rate is not None]
        match self.model.penalty:
            case "kl":
                weight = self.objective.kl.at(index)
                if rates:
                    metrics["kl"] = torch.stack(rates).sum()
            case "codebook":
                weight = self.objective.codebook
        return weight * loss, metrics

    def preview(self, image: Tensor) -> Mapping[str, Tensor]:
        """Images, and what comes back without noise."""
        return {"original": image, "reconstruction": self.model.reconstruct(image)}


class Reconstruction(Task):
    """Trains an autoencoder on images."""

    def __init__(self, loss_terms: AutoencoderLoss) -> None:
        self._loss = loss_terms
        self._model = loss_terms.model

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        loss_terms = self._loss
        loss_terms.anneal(step.index)
        output, latents, _ = engines["model"](batch.images, step.rng)
        distance, metrics = loss_terms.distance(output, batch.images)
        penalty, more = loss_terms.bottleneck_loss(latents, step.index)
        yield Loss("model", distance + penalty, {**metrics, **more})

    def after_update(self, step: Step) -> None:
        self._loss.codebooks.commit(step.rng)

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Images, and their reconstructions through hard codes."""
        return self._loss.preview(batch.images)
