"""When a control begins to be followed: the sudden convergence of ControlNet's training."""

from collections.abc import Callable, Mapping

from pydantic import BaseModel, Field
from torch import Tensor

Score = Callable[[Tensor, Tensor], float]
"""Of hints (B, C, H, W) in [0, 1] and images (B, 3, H, W) in [-1, 1]; 1 is followed exactly."""


class FidelityConfig(BaseModel, frozen=True, extra="forbid"):
    """Samples for the first hints of the training data are compared with their hints."""

    every: int = Field(default=500, gt=0)
    """In optimizer steps, whatever is accumulated."""
    samples: int = Field(default=8, gt=0)
    gain: float = Field(default=0.3, gt=0, lt=1)
    """The control has converged when fidelity has come this share of the way from that of the base
    alone to 1. With most data it does so within a few hundred steps (arXiv 2302.05543, 3.3)."""


class Convergence:
    """The fidelity of a control over its training."""

    def __init__(self) -> None:
        self.base: float | None = None
        """Fidelity of samples without the control."""
        self.step: int | None = None
        """The optimizer step of the first measurement after convergence."""

    def add(self, step: int, value: float, gain: float) -> Mapping[str, float]:
        """Take note of the fidelity after `step` optimizer steps; returns what is logged."""
        assert self.base is not None, "measured first"
        reached = (value - self.base) / max(1 - self.base, 1e-6)
        if self.step is None and reached >= gain:
            self.step = step
        found = {"control/fidelity": value, "control/fidelity_base": self.base}
        return found if self.step is None else {**found, "control/converged_at": float(self.step)}

    def state(self) -> Mapping[str, float | int | None]:
        return {"base": self.base, "step": self.step}

    def restore(self, state: Mapping[str, float | int | None]) -> None:
        """The inverse of `state`."""
        base, step = state.get("base"), state.get("step")
        self.base = None if base is None else float(base)
        self.step = None if step is None else int(step)


def closer_to(real: Tensor, images: Tensor) -> float:
    """1 minus the mean absolute difference, in [0, 1], of images (B, 3, H, W) in [-1, 1]."""
    return 1 - float((real - images).abs().mean()) / 2
