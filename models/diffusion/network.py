"""What training and sampling need of a diffusion network, whatever its kind."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import nn

from models.diffusion.degradation import Degradation
from models.diffusion.process import DiffusionNetwork


@runtime_checkable
class NetworkConfig(Protocol):
    """The settings of a network."""

    @property
    def conditioning(self) -> frozenset[str]:
        """What it is conditioned on: of class, text, features and low_resolution."""


@runtime_checkable
class ConditionalNetwork(DiffusionNetwork, Protocol):
    """A network with its settings."""

    @property
    def config(self) -> NetworkConfig: ...


@runtime_checkable
class ClassConditional(Protocol):
    """Settings with a number of classes."""

    @property
    def classes(self) -> int | None: ...


@runtime_checkable
class ClassConfig(ClassConditional, Protocol):
    """Settings of a network that may be conditioned on a class."""

    @property
    def null_class(self) -> bool:
        """Whether there is one more label, `classes`, for "no class"."""


@runtime_checkable
class UpsamplingConfig(Protocol):
    """Settings of a network that may enlarge images."""

    @property
    def factor(self) -> int:
        """Output pixels per low-resolution pixel, each way."""


@runtime_checkable
class UpsamplingNetwork(Protocol):
    """A network that degrades its low-resolution input in training."""

    @property
    def augmentation(self) -> Degradation: ...


@runtime_checkable
class HasConditioners(Protocol):
    """A network that is trained together with networks of its conditions."""

    @property
    def conditioners(self) -> Mapping[str, nn.Module]:
        """Those that published sizes do not count as the denoiser."""
