"""The optimisation of a part of an edit: the embedding, or what is trained of a network."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from mezzotint.common.keyed_random import keyed_generator, keyed_seed
from mezzotint.inference.generator import Progress
from mezzotint.inference.imagic.adam import InBackward
from mezzotint.inference.imagic.config import Optimization
from mezzotint.inference.imagic.objective import Loss
from mezzotint.inference.imagic.work import SavedPart, WorkDirectory
from mezzotint.inference.runtime import Runtime
from models.finite import require_finite

SAVE_SECONDS = 30.0
"""Between two savings of an unfinished part."""


@dataclass(frozen=True)
class Fitter:
    """How parts are optimised, and where they are kept."""

    runtime: Runtime
    work: WorkDirectory = field(default_factory=WorkDirectory)
    seed: int = 0
    save_seconds: float = SAVE_SECONDS

    def fit(
        self,
        name: str,
        parameters: Mapping[str, nn.Parameter],
        loss: Loss,
        settings: Optimization,
        progress: Progress | None = None,
    ) -> None:
        """Minimise the loss over parameters, from where the part was left.

        The random numbers of a step depend on the seed, the part and the step alone: a part that
        was left ends as one that was not.

        Raises:
            NonFiniteError: the loss of a step is not finite.
            UserError: what was kept cannot be read.
        """
        optimizer, first = InBackward(parameters, settings.lr), 0
        if (saved := self.work.load(name)) is not None:
            first = saved.step
            with torch.no_grad():
                for key, value in saved.weights.items():
                    parameters[key].copy_(value)
            optimizer.restore(saved.optimizer)
        kept = time.monotonic()
        with optimizer.active():
            for step in range(first, settings.steps):
                labels = (self.seed, "imagic", name, step)
                with self._dropout(keyed_seed(*labels, "dropout")), self.runtime.autocast():
                    value = loss(keyed_generator(*labels))
                require_finite("the loss is", value.detach()[None], [f"{name}, step {step + 1}"])
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.update_small()
                if progress is not None:
                    progress(step + 1, settings.steps)
                if time.monotonic() - kept >= self.save_seconds:
                    self.work.save(name, SavedPart(step + 1, parameters, optimizer.state()))
                    kept = time.monotonic()
        if first < settings.steps:
            self.work.save(name, SavedPart(settings.steps, parameters, {}))

    @contextmanager
    def _dropout(self, seed: int) -> Iterator[None]:
        """Seed torch's global generator inside, which dropout takes its numbers from."""
        device = self.runtime.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
