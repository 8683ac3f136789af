"""What any diffusion network offers to those who train it and draw with it, whatever its kind."""

from typing import Protocol, runtime_checkable

from models.diffusion.degradation import Degradation
from models.diffusion.process import DiffusionNetwork


@runtime_checkable
class NetworkConfig(Protocol):
    """The settings of a network."""

    @property
    def conditioning(self) -> frozenset[str]:
        """What it is told besides the time: of class, text, features and low_resolution."""
        ...


@runtime_checkable
class ConditionalNetwork(DiffusionNetwork, Protocol):
    """A network that says what it must be told."""

    @property
    def config(self) -> NetworkConfig:
        """Its settings."""
        ...


@runtime_checkable
class ClassConditional(Protocol):
    """Settings of a network that may know classes."""

    @property
    def classes(self) -> int | None:
        """How many there are."""
        ...


@runtime_checkable
class ClassConfig(ClassConditional, Protocol):
    """Settings of a network that may be told a class."""

    @property
    def null_class(self) -> bool:
        """Whether one label more, `classes`, means that no class is told."""
        ...


@runtime_checkable
class UpsamplingConfig(Protocol):
    """Settings of a network that may enlarge images."""

    @property
    def factor(self) -> int:
        """Output pixels per low-resolution pixel, each way."""
        ...


@runtime_checkable
class UpsamplingNetwork(Protocol):
    """A network that spoils its low-resolution input in training."""

    @property
    def augmentation(self) -> Degradation:
        """What spoils it."""
        ...
