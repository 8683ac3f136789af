"""Adam within the backward pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


class InBackward:
    """Adam that updates a parameter as soon as its gradient is complete, and drops the gradient.

    So the gradients never live at one time, which saves as much memory as the weights take.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], lr: float) -> None:
        self._parameters = dict(parameters)
        self._adam = {
            name: torch.optim.Adam([parameter], lr=lr, fused=True)
            for name, parameter in self._parameters.items()
        }

    @contextmanager
    def active(self) -> Iterator[None]:
        """Update in every backward pass inside."""
        hooks = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(_update, self._adam[name])
            )
            for name, parameter in self._parameters.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def state(self) -> dict[str, Tensor]:
        """Moments and steps by `name|key`."""
        return {
            f"{name}|{key}": value
            for name, adam in self._adam.items()
            for state in adam.state.values()
            for key, value in state.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        kept: dict[str, dict[str, Tensor]] = {}
        for label, value in state.items():
            name, _, key = label.rpartition("|")
            kept.setdefault(name, {})[key] = value
        for name, moments in kept.items():
            adam = self._adam[name]
            groups = adam.state_dict()["param_groups"]
            adam.load_state_dict({"state": {0: moments}, "param_groups": groups})


def _update(adam: torch.optim.Adam, parameter: Tensor) -> None:
    adam.step()
    parameter.grad = None
