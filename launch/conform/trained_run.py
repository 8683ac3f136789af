"""A finished training run, opened: recipe, data, and its task over the trained weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from models import store
from models.nn.initialization import materialize
from trainer.recipe import Recipe, load
from trainer.rng import micro_batches
from trainer.run import RunDirectory
from trainer.setup import TrainingInputs, open_inputs
from trainer.task import Step


@dataclass(frozen=True)
class PlainEngine:
    """Calls its part and nothing else."""

    module: nn.Module

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the part's forward takes
        return self.module(*inputs)


@dataclass(frozen=True)
class TrainedRun:
    """The first part has the trained weights; other parts, such as a discriminator, new ones."""

    directory: RunDirectory
    recipe: Recipe
    inputs: TrainingInputs
    device: torch.device

    @classmethod
    def open(cls, path: Path, device: torch.device) -> "TrainedRun":
        """Read a run directory.

        Raises:
            UserError: no finished run, or its data, tokenizer or encoder are missing.
        """
        directory = RunDirectory(path)
        if not directory.recipe.is_file():
            raise UserError(f"{path}: is no run directory; it has no recipe.yaml")
        if not directory.finished():
            raise UserError(f"{path}: its training is not finished; finish it first")
        recipe = load(directory.recipe)
        inputs = open_inputs(recipe)
        parts = inputs.task.parts()
        for name, part in parts.items():
            for _ in materialize(part, recipe.seed, name, device=device):
                pass
            part.eval()
        trained = store.load(str(directory.model), device=device)
        next(iter(parts.values())).load_state_dict(trained.state_dict())
        return cls(directory, recipe, inputs, device)

    @property
    def model(self) -> nn.Module:
        """The trained part."""
        return next(iter(self.inputs.task.parts().values()))

    def engines(self) -> Mapping[str, PlainEngine]:
        return {name: PlainEngine(part) for name, part in self.inputs.task.parts().items()}

    def batch(self, count: int, first: int = 0) -> Batch:
        """`count` samples from position `first` of the training data, which repeat at its end."""
        dataset = self.inputs.dataset
        rows = [(first + index) % len(dataset) for index in range(count)]
        return next(micro_batches(dataset.batch(rows), count, self.device))

    def step(self, number: int = 0) -> Step:
        """A step whose random numbers are a function of its number."""
        return Step(0, keyed_generator(self.recipe.seed, "conform", number, device=self.device))
