"""Reconstruction: autoencoders whose loss is a likelihood and their bottleneck's own term."""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel
from torch import Generator, Tensor, nn

from data_pipeline.stream import Batch
from models.autoencoders.bottleneck import Latent
from models.autoencoders.dvae import DVAE
from models.autoencoders.losses import l1_l2, logit_laplace
from trainer.errors import TrainError
from trainer.schedules import Constant, Scalar
from trainer.task import Engines, Loss, Step


class ReconstructionConfig(BaseModel, frozen=True, extra="forbid"):
    """Negative log likelihood per value + `kl` x KL per position.

    `logit_laplace` is DALL-E's (arXiv 2102.12092, A.3); `l1_l2` is the mean of absolute and squared
    error. `temperature` is the gumbel-softmax relaxation's.
    """

    kind: Literal["reconstruction"]
    likelihood: Literal["logit_laplace", "l1_l2"] = "logit_laplace"
    kl: Scalar = Constant(value=0.0)
    temperature: Scalar = Constant(value=1.0)

    def build(self, model: nn.Module) -> "Reconstruction":
        """The task over `model`.

        Raises:
            TrainError: the model is not an autoencoder this task can train.
        """
        if not isinstance(model, DVAE):
            raise TrainError("task.kind: reconstruction trains model.kind dvae")
        return Reconstruction(self, model)


class Reconstruction:
    """Trains an autoencoder on images."""

    def __init__(self, config: ReconstructionConfig, model: DVAE) -> None:
        self._config = config
        self._model = model

    def parts(self) -> Mapping[str, nn.Module]:
        """The autoencoder."""
        return {"model": self._model}

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """Likelihood and bottleneck term of one micro-batch."""
        image = batch.images
        self.anneal(step.index)
        output, latent = engines["model"](image, step.rng)
        value, metrics = self.score(output, latent, image, step.index)
        yield Loss("model", value, metrics)

    def anneal(self, index: int) -> None:
        """Set the temperature of step `index`."""
        self._model.bottleneck.temperature = self._config.temperature.at(index)

    def score(
        self, output: Tensor, latent: Latent, image: Tensor, index: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of one forward."""
        match self._config.likelihood:
            case "logit_laplace":
                nll = logit_laplace(output, image)
            case "l1_l2":
                nll = l1_l2(output, image)
        metrics = {"reconstruction": nll, "kl": latent.loss}
        if latent.usage is not None:
            used = latent.usage.float()
            share = used / used.sum().clamp(min=1)
            metrics["codes_used"] = (used > 0).sum().float()
            metrics["perplexity"] = (-(share * share.clamp(min=1e-12).log()).sum()).exp()
        return nll + self._config.kl.at(index) * latent.loss, metrics

    def after_update(self, step: Step) -> None:
        """Nothing: gradients train the whole model."""

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Images, and their reconstructions through hard codes."""
        model = self._model
        codes = model.tokens(batch.images)
        return {"original": batch.images, "reconstruction": model.decode(codes)}
