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
from trainer.task import Engines, Loss, Step, Task

QUARTERS = 4


class ClassificationConfig(BaseModel, frozen=True, extra="forbid"):
    """Cross-entropy of the class at random times, by default uniform as in the paper."""

    kind: Literal["classification"]
    times: Uniform | Stratified | LogNormal = Stratified()

    def build(self, model: nn.Module) -> "Classification":
        """The task.

        Raises:
            UserError: the model is no classifier of noisy images.
        """
        if not isinstance(model, NoisyClassifier):
            raise UserError("task.kind: classification trains model.kind noisy_classifier")
        return Classification(self, model)


class Classification(Task):
    """Trains a noisy classifier."""

    def __init__(self, config: ClassificationConfig, model: NoisyClassifier) -> None:
        self._model: NoisyClassifier = model
        self._times = config.times.build(model.process.schedule)

    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """Cross-entropy of one micro-batch, in nats, and the accuracy."""
        image, label, rng = batch.images, batch.labels, step.rng
        times = self._times.sample(
            len(image), rng, part=step.microbatch_index, parts=step.num_microbatches
        )
        noise = torch.randn(image.shape, generator=rng, device=image.device)
        logits = engines["model"](self._model.process.add_noise(image, times.t, noise), times.t)
        losses = F.cross_entropy(logits.float(), label, reduction="none")
        right = (logits.argmax(dim=1) == label).float()
        yield Loss("model", (times.weight * losses).mean(), accuracies(right, times.t))

    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Noisy images from clean to noise, those of the right class first."""
        image, label = batch.images, batch.labels
        t = (torch.arange(len(image), device=image.device) + 0.5) / len(image)
        noise = torch.randn(image.shape, generator=rng, device=image.device)
        noisy = self._model.process.add_noise(image, t, noise)
        right = self._model(noisy, t).argmax(dim=1) == label
        return {
            name: noisy[chosen]
            for name, chosen in (("right", right), ("wrong", ~right))
            if len(noisy[chosen])
        }


def accuracies(right: Tensor, t: Tensor) -> dict[str, Tensor]:
    """The mean of `right` (B,), and of the quarters of the batch by time (B,).

    Quarter 1 is the cleanest; with stratified times it spans 0 to 0.25. There are none of fewer
    than four samples.
    """
    found = {"accuracy": right.mean()}
    if len(right) >= QUARTERS:
        parts = right[t.argsort()].tensor_split(QUARTERS)
        found |= {f"accuracy/quarter_{k + 1}": part.mean() for k, part in enumerate(parts)}
    return found
