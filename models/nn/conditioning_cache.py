"""Results of conditioning modules, computed once per sampling run and not at every step."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from operator import is_
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

MAX_ENTRIES = 4
"""Results kept per module: those of captions, of negative prompts, and of none."""

R = TypeVar("R")
Arguments = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class _Entry:
    arguments: Arguments
    versions: tuple[int | None, ...]
    result: Any

    def is_of(self, arguments: Arguments) -> bool:
        """Whether the result is of these very tensors, unchanged."""
        same = len(arguments) == len(self.arguments) and all(map(is_, arguments, self.arguments))
        return same and self.versions == _versions(arguments)


def _versions(arguments: Arguments) -> tuple[int | None, ...]:
    """How often tensors were written to; None where inference mode does not count."""
    return tuple(
        None if each is None or each.is_inference() else each._version for each in arguments
    )


class ActivationCache:
    """Results of modules with constant weights, by the identity of their argument.

    Several callers of one network have a cache each.
    """

    def __init__(self) -> None:
        self._entries: dict[nn.Module, deque[_Entry]] = {}

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Let `cached` use this cache."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def get(self, module: nn.Module, arguments: Arguments, compute: Callable[[], R]) -> R:
        """compute(), a function of the arguments alone, or its earlier result."""
        entries = self._entries.setdefault(module, deque(maxlen=MAX_ENTRIES))
        for entry in entries:
            if entry.is_of(arguments):
                found: R = entry.result
                return found
        result = compute()
        entries.append(_Entry(arguments, _versions(arguments), result))
        return result


_ACTIVE: ContextVar[ActivationCache | None] = ContextVar("activation_cache", default=None)


def cached(module: nn.Module, argument: Tensor, compute: Callable[[Tensor], R]) -> R:
    """What a module computes of a tensor alone, from the active `ActivationCache` if there is one.

    With gradients it is always computed. A module has one such computation at most.
    """
    return cached_of(module, (argument,), lambda: compute(argument))


def cached_of(module: nn.Module, arguments: Arguments, compute: Callable[[], R]) -> R:
    """The same of several tensors."""
    cache = _ACTIVE.get()
    if cache is None or torch.is_grad_enabled():
        return compute()
    return cache.get(module, arguments, compute)
