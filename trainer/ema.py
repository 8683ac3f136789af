"""Exponential moving averages of an engine's weights, sharded as the weights are."""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.engine import Engine
from trainer.recipe import EmaConfig


class Ema:
    """fp32 averages of one engine's local weights.

    Under ZeRO-3 each process averages its own shard, so that no process holds the whole.
    """

    def __init__(self, engine: Engine, config: EmaConfig) -> None:
        self._config = config
        self._engine = engine
        self.updates = 0
        self.values = {
            name: value.detach().float().clone() for name, value in engine.local_weights().items()
        }

    def update(self) -> None:
        """Move the averages towards the weights, after an optimizer step."""
        self.updates += 1
        decay = self._config.decay
        if self._config.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        weights = self._engine.local_weights()
        whole = [name for name, weight in weights.items() if weight.dtype == torch.float32]
        if whole:
            torch._foreach_lerp_(
                [self.values[name] for name in whole],
                [weights[name] for name in whole],
                1.0 - decay,
            )
        for name in weights.keys() - set(whole):  # one after the other: each needs an fp32 copy
            self.values[name].lerp_(weights[name].float(), 1.0 - decay)

    def restore(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Take over averages saved from an equally sharded engine."""
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    def whole(self) -> dict[str, Tensor]:
        """Whole averaged weights on the CPU, on every process."""
        return self._engine.whole(self.values)
