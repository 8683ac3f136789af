"""Settings of weight averages (EMA)."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from trainer.config_utils import kind_by_default


class ExponentialEma(BaseModel, frozen=True, extra="forbid"):
    """Exponential moving average of the weights: decay min(decay, (1+k)/(10+k)) at update k."""

    kind: Literal["exponential"] = "exponential"
    decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    warmup: bool = True

    @property
    def tracks(self) -> int:
        """Averages kept side by side."""
        return 1

    def decays(self, update: int) -> tuple[float, ...]:
        """How much of each average stays at update 1, 2, ..."""
        if not self.warmup:
            return (self.decay,)
        return (min(self.decay, (1 + update) / (10 + update)),)


class PowerEma(BaseModel, frozen=True, extra="forbid"):
    """Averages by powers of time, from which any other can be made later (arXiv 2312.02696, 3).

    Each keeps (1 - 1/k)^(gamma + 1) of itself at update k, so its width is the share `sigma_rel` of
    the time trained so far. The first is previewed and exported.
    """

    kind: Literal["power"] = "power"
    sigma_rel: tuple[float, ...] = Field(default=(0.05, 0.1), min_length=1)
    every: int = Field(default=1000, gt=0)
    """Updates between the snapshots that are kept of all of them."""
    stored: Literal["fp32", "fp16"] = "fp32"
    """Numbers of a snapshot; averages themselves are fp32."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not all(0 < width < WIDEST for width in self.sigma_rel):
            raise ValueError(f"sigma_rel: each must lie between 0 and {WIDEST}")
        if len(set(self.sigma_rel)) < len(self.sigma_rel):
            raise ValueError("sigma_rel names one width more than once")
        return self

    @property
    def tracks(self) -> int:
        return len(self.sigma_rel)

    def decays(self, update: int) -> tuple[float, ...]:
        return tuple((1 - 1 / update) ** (power(width) + 1) for width in self.sigma_rel)


WIDEST = 0.28
"""sigma_rel of gamma 0, the plain mean of all weights, is 1 / sqrt(12) = 0.289."""


def power(sigma_rel: float) -> float:
    """gamma of a relative width, by bisection."""
    low, high = 0.0, 1.0
    while width(high) > sigma_rel:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if width(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def width(gamma: float) -> float:
    """sigma_rel: the standard deviation of the density (gamma + 1) x^gamma on [0, 1]."""
    return float((gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5)


EmaConfig = Annotated[
    Annotated[ExponentialEma | PowerEma, Field(discriminator="kind")],
    kind_by_default("exponential"),
]
