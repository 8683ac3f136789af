"""Classification of noisy images: the classifier that guides sampling (arXiv 2105.05233, 4)."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.diffusion.classifier import NoisyClassifier
from models.diffusion.schedules.timesteps import LogNormal, Stratified, Uniform
from trainer.task import Engines, Loss, Step

QUARTERS = 4


class ClassificationConfig(BaseModel, frozen=True, extra="forbid"):
    """Cross-entropy of the class at drawn times, even ones as in the paper by default."""

    kind: Literal["classification"]
    times: Uniform | Stratified | LogNormal = Stratified()

    def build(self, model: nn.Module) -> "Classification":
        """The task over `model`.

        Raises:
            UserError: the model is no classifier of noisy images.
        """
        if not isinstance(model, NoisyClassifier):
            raise UserError("task.kind: classification trains model.kind noisy_classifier")
        return Classification(self, model)


class Classification:
    """Trains a noisy classifier."""

    def __init__(self, config: ClassificationConfig, model: NoisyClassifier) -> None:
        self._model = model
        self._times = config.times.build(model.process.schedule)

    def parts(self) -> Mapping[str, nn.Module]:
        """The classifier."""
        return {"model": self._model}

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """Cross-entropy of one micro-batch, in nats, and how often the likeliest class is right."""
        image, label, rng = batch.images, batch.labels, step.rng
        times = self._times.sample(len(image), rng, part=step.place, parts=step.places)
        noise = torch.randn(image.shape, generator=rng, device=image.device)
        logits = engines["model"](self._model.process.add_noise(image, times.t, noise), times.t)
        losses = F.cross_entropy(logits.float(), label, reduction="none")
        right = (logits.argmax(dim=1) == label).float()
        yield Loss("model", (times.weight * losses).mean(), accuracies(right, times.t))

    def after_update(self, step: Step) -> None:
        """Nothing: gradients train the whole model."""

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Images as the classifier sees them, from clean to noise, those it names rightly first."""
        image, label = batch.images, batch.labels
        t = (torch.arange(len(image), device=image.device) + 0.5) / len(image)
        noise = torch.randn(image.shape, generator=rng, device=image.device)
        seen = self._model.process.add_noise(image, t, noise)
        right = self._model(seen, t).argmax(dim=1) == label
        return {
            name: seen[chosen]
            for name, chosen in (("right", right), ("wrong", ~right))
            if len(seen[chosen])
        }


def accuracies(right: Tensor, t: Tensor) -> dict[str, Tensor]:
    """The share of ones in `right` (B,), and in the quarters of the batch by time (B,).

    Quarter 1 is the cleanest; with stratified times it spans 0 to 0.25. There are none of fewer
    than four samples.
    """
    found = {"accuracy": right.mean()}
    if len(right) >= QUARTERS:
        parts = right[t.argsort()].tensor_split(QUARTERS)
        found |= {f"accuracy/quarter_{k + 1}": part.mean() for k, part in enumerate(parts)}
    return found
