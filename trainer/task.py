"""The interface of tasks: a task yields losses; the loop owns time, optimizers and IO."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from data_pipeline.batch import Batch


@dataclass(frozen=True)
class Loss:
    """One scalar to minimise with respect to one part's parameters."""

    part: str
    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The position of a micro-batch in the run.

    `rng` is a function of (recipe seed, `index`, `microbatch_index`). That counts micro-batches
    over ranks and accumulation alike, so the noise of a sample does not depend on the number of
    processes.
    """

    index: int
    rng: Generator
    microbatch_index: int = 0
    """Position of the micro-batch in the global batch."""
    num_microbatches: int = 1
    """Micro-batches of the global batch."""


class EngineLike(Protocol):
    """An engine as a task uses it: called for the forward, or its bare module."""

    @property
    def module(self) -> nn.Module:
        """The unwrapped module."""

    def __call__(self, *inputs: Any) -> Any:  # noqa: ANN401 - whatever the part's forward takes
        """Forward of the part whose loss is being computed."""


Engines = Mapping[str, EngineLike]


class Task(ABC):
    """An objective over one or several parts; by default over `model` alone."""

    _model: nn.Module

    def parts(self) -> Mapping[str, nn.Module]:
        """The trainable parts, each with its own engine and optimizer; the first is exported."""
        return {"model": self._model}

    def fit(self, read: Callable[[Sequence[int]], Batch], samples: int) -> str:
        """What networks start from besides random weights, measured over the data set.

        Called on one process of a new run, before the engines are built, with a function that
        reads samples by their positions; empty: nothing.
        """
        return ""

    def use_fit(self, text: str) -> None:  # noqa: B027 - most tasks measure nothing
        """Take what `fit` has found; called on every process."""

    @abstractmethod
    def losses(self, engines: Engines, batch: Batch, step: Step) -> Iterator[Loss]:
        """Yield the losses of one micro-batch; the loop does backward and step after each."""

    def after_update(self, step: Step) -> None:  # noqa: B027 - most tasks have nothing to do
        """Called once per optimizer step, on every rank (codebook statistics commit here)."""

    @abstractmethod
    def preview(
        self, parts: Mapping[str, nn.Module], batch: Batch, rng: Generator
    ) -> Mapping[str, Tensor]:
        """Images for the tracker, each (N, 3, H, W) in [-1, 1]; `parts` hold EMA weights."""

    def measures(self, step: int) -> bool:
        """Whether `measure` is called after so many optimizer steps."""
        return False

    def measure(
        self, parts: Mapping[str, nn.Module], step: int, device: torch.device
    ) -> Mapping[str, float]:
        """Further metrics, the same on every process; `parts` hold EMA weights."""
        return {}

    def tags(self) -> Mapping[str, str]:
        """Tags of the run so far, for the tracker."""
        return {}

    def state(self) -> Mapping[str, Any]:
        """State besides weights, equal on every process, as a checkpoint's JSON holds it."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - as above
        """The inverse of `state`."""
