"""An engine without DeepSpeed."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Bare:
    """Only calls its part."""

    module: nn.Module

    def __call__(self, *inputs):
        return self.module(*inputs)
