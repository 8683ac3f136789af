"""Moving averages of an engine's weights, sharded as the weights are."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainer.averages.config import ExponentialEma, PowerEma
from trainer.engine import Engine


class Ema:
    """fp32 averages of one engine's local weights: one, or several side by side.

    Under ZeRO-3 each process averages its own shard, so that no process holds the whole.
    """

    def __init__(self, engine: Engine, config: ExponentialEma | PowerEma) -> None:
        self._config = config
        self._engine = engine
        self.updates = 0
        weights = {name: value.detach() for name, value in engine.local_weights().items()}
        self.values = {
            _key(name, track): weight.float().clone()
            for track in range(config.tracks)
            for name, weight in weights.items()
        }
        """The first average by the names of the weights; the others are prefixed by their index."""

    def update(self) -> None:
        self.updates += 1
        weights = self._engine.local_weights()
        whole = [name for name, weight in weights.items() if weight.dtype == torch.float32]
        rest = [name for name in weights if name not in set(whole)]
        decays = self._config.decays(self.updates)
        for track, decay in enumerate(decays):
            if whole:
                torch._foreach_lerp_(
                    self._of(track, whole), [weights[name] for name in whole], 1.0 - decay
                )
        for name in rest:  # one after the other: each needs an fp32 copy
            weight = weights[name].float()
            for track, decay in enumerate(decays):
                self.values[_key(name, track)].lerp_(weight, 1.0 - decay)

    def _of(self, track: int, names: Sequence[str]) -> list[Tensor]:
        return [self.values[_key(name, track)] for name in names]

    def restore(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Take over averages saved from an equally sharded engine."""
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    def gather_full_state(self, track: int = 0) -> dict[str, Tensor]:
        """Whole averaged weights on the CPU, on every process."""
        names = list(self._engine.local_weights())
        return self._engine.gather_full_state(dict(zip(names, self._of(track, names), strict=True)))


def _key(name: str, track: int) -> str:
    """Where a weight's average is kept."""
    return name if track == 0 else f"{track}/{name}"
