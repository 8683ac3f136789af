"""Adversarial reconstruction: an autoencoder against a patch discriminator, two optimizers.

The generator minimises its distance to the image and, once the discriminator has started, the
adversarial loss of its reconstructions (VQ-GAN, arXiv 2012.09841, 3.1; the first stages of latent
diffusion, 2112.10752, E.1).
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from data_pipeline.batch import Batch
from models.autoencoders.discriminator import PatchDiscriminatorConfig
from trainer.task import Engines, Loss, Step, Task
from trainer.tasks.reconstruction import AutoencoderLoss, Likelihood, Objective, trainable

LARGEST_RATIO = 1e4
"""Bound of the adaptive weight, for when the discriminator's gradient vanishes."""


class AdversarialConfig(Objective, frozen=True, extra="forbid"):
    """Reconstruction, plus `weight` x the generator's adversarial loss from step `start_step` on.

    `adaptive` multiplies the weight by the ratio of gradient norms at the decoder's last layer
    (2012.09841, eq. 7): the adversarial term then pulls `weight` times as hard as the distance,
    whatever their units. `ramp_steps` raise the weight from 0, so that a discriminator that starts
    late does not destroy the autoencoder.
    """

    kind: Literal["adversarial"]
    discriminator: PatchDiscriminatorConfig
    likelihood: Likelihood = "l1_l2"
    loss: Literal["hinge", "logistic"] = "hinge"
    weight: float = Field(default=0.8, ge=0)
    adaptive: bool = True
    start_step: int = Field(default=0, ge=0)
    ramp_steps: int = Field(default=0, ge=0)

    def build(self, model: nn.Module) -> "Adversarial":
        """The task over `model` and a new discriminator.

        Raises:
            UserError: the model is not an autoencoder this task can train.
        """
        autoencoder = trainable(model, self)
        with next(model.parameters()).device:
            discriminator = self.discriminator.build()
        return Adversarial(self, AutoencoderLoss(self, autoencoder), discriminator)

    def weight_at(self, index: int) -> float:
        """The adversarial term's weight at step `index`, before any adaptive ratio."""
        if index < self.start_step:
            return 0.0
        return self.weight * min(1.0, (index - self.start_step + 1) / max(self.ramp_steps, 1))


class Adversarial(Task):
    """Two parts: `model` (the generator) and `discriminator`."""

    def __init__(
        self, config: AdversarialConfig, loss_terms: AutoencoderLoss, discriminator: nn.Module
    ) -> None:
        self._config = config
        self._loss = loss_terms
        self._discriminator = discriminator

    def parts(self) -> Mapping[str, nn.Module]:
        """The generator comes first: it is exported."""
        return {"model": self._loss.model, "discriminator": self._discriminator}

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """The generator's loss, then the discriminator's, on the same reconstructions.

        Distance and adversarial term are derived with respect to the decoder's output alone, once
        each; what the generator's engine gets is their weighted sum as a loss of that gradient.
        So the ratio of the adaptive weight costs no further pass through either network.
        """
        image, loss_terms = batch.images, self._loss
        loss_terms.anneal(step.index)
        output, latents, features = engines["model"](image, step.rng)
        penalty, metrics = loss_terms.bottleneck_loss(latents, step.index)
        leaf = output.detach().requires_grad_()
        distance, more = loss_terms.distance(leaf, image)
        (gradient,) = torch.autograd.grad(distance, leaf)
        value, metrics = distance.detach(), {**metrics, **more}
        if step.index >= self._config.start_step:
            generator_loss, adversarial = self._generator_loss(engines, leaf)
            weight = torch.tensor(self._config.weight_at(step.index), device=image.device)
            if self._config.adaptive:
                weight = weight * self._adaptive_ratio(features, gradient, adversarial)
            value = value + weight * generator_loss
            gradient = gradient + weight * adversarial
            metrics.update(adversarial=generator_loss, adversarial_weight=weight)
        yield Loss("model", surrogate_loss(output, gradient, value) + penalty, metrics)
        yield self._discriminator_loss(
            engines, image, loss_terms.model.to_image(output.detach()), step
        )

    def _generator_loss(self, engines: Engines, leaf: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the mean score of the discriminator, and its gradient at the output."""
        # only scores here: through the bare module, and without gradients of its own
        self._discriminator.requires_grad_(requires_grad=False)
        scores = engines["discriminator"].module(self._loss.model.to_image(leaf)).float()
        # of the sum, then divided: small gradients would vanish in 16 bits
        (gradient,) = torch.autograd.grad(-scores.sum(), leaf)
        self._discriminator.requires_grad_(requires_grad=True)
        return -scores.detach().mean(), gradient / scores.numel()

    def _adaptive_ratio(self, features: Tensor, distance: Tensor, adversarial: Tensor) -> Tensor:
        """|gradient of the distance| / |gradient of the adversarial term| at the last layer."""
        model = self._loss.model
        norms = [model.last_gradient(features, each).norm() for each in (distance, adversarial)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(max=LARGEST_RATIO)

    def _discriminator_loss(self, engines: Engines, real: Tensor, fake: Tensor, step: Step) -> Loss:
        started = step.index >= self._config.start_step
        if not started:
            # both engines must step equally often: one image, with weight 0
            real, fake = real[:1], fake[:1]
        scores = engines["discriminator"](torch.cat([real, fake])).float()
        real_score, fake_score = scores.chunk(2)
        match self._config.loss:
            case "hinge":
                value = F.relu(1 - real_score).mean() + F.relu(1 + fake_score).mean()
            case "logistic":
                value = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
        metrics = {"score_real": real_score.mean(), "score_fake": fake_score.mean()}
        return Loss("discriminator", (0.5 if started else 0.0) * value, metrics)

    def after_update(self, step: Step) -> None:
        self._loss.codebooks.commit(step.rng)

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Images, and their reconstructions without noise."""
        return self._loss.preview(batch.images)


def surrogate_loss(output: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
    """A scalar that equals `value` and whose gradient at `output` is `gradient`."""
    linear = (output * gradient.detach()).sum()
    return linear + (value - linear).detach()
