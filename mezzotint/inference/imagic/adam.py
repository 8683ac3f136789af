"""Adam within the backward pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

SMALL = 4096
"""Values of a parameter up to which it is updated together with others."""
TOGETHER = 2**20
"""Values up to which all parameters are, since their gradients take little memory."""


class InBackward:
    """Adam that updates a parameter as soon as its gradient is complete, and drops the gradient.

    So the gradients never live at one time, which saves as much memory as the weights take. Those
    of small parameters wait for `update_small`: a call for each takes longer than its update.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], lr: float) -> None:
        self._parameters = dict(parameters)
        few = sum(each.numel() for each in self._parameters.values()) <= TOGETHER
        self._adam = {
            name: torch.optim.Adam([parameter], lr=lr, fused=True)
            for name, parameter in self._parameters.items()
            if parameter.numel() > SMALL and not few
        }
        rest = {name: each for name, each in self._parameters.items() if name not in self._adam}
        self._names = list(rest)
        self._small = torch.optim.Adam(rest.values(), lr=lr, fused=True) if rest else None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Update in every backward pass inside."""
        hooks = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(_update, self._adam[name])
            )
            for name, parameter in self._parameters.items()
            if name in self._adam
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def update_small(self) -> None:
        """Update small parameters, after a backward pass."""
        if self._small is not None:
            self._small.step()
            self._small.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Moments and steps by `name|key`."""
        small = {} if self._small is None else self._small.state
        states = {name: small[self._parameters[name]] for name in self._names}
        for name, adam in self._adam.items():
            states[name] = adam.state[self._parameters[name]]
        return {
            f"{name}|{key}": value for name, each in states.items() for key, value in each.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        kept: dict[str, dict[str, Tensor]] = {}
        for label, value in state.items():
            name, _, key = label.rpartition("|")
            kept.setdefault(name, {})[key] = value
        for name, adam in self._adam.items():
            if name in kept:
                _load(adam, {0: kept[name]})
        if self._small is not None:
            _load(
                self._small, {n: kept[name] for n, name in enumerate(self._names) if name in kept}
            )


def _load(adam: torch.optim.Adam, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
    groups = adam.state_dict()["param_groups"]
    adam.load_state_dict({"state": dict(moments), "param_groups": groups})


def _update(adam: torch.optim.Adam, parameter: Tensor) -> None:
    adam.step()
    parameter.grad = None
