"""Results of conditioning modules, computed once per sampling run and not at every step."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

MAX_ENTRIES = 4
"""Results kept per module: those of captions, of negative prompts, and of none."""

R = TypeVar("R")


@dataclass(frozen=True)
class _Entry:
    argument: Tensor
    version: int | None
    result: Any


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where inference mode does not count."""
    return None if tensor.is_inference() else tensor._version


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

    def get(self, module: nn.Module, argument: Tensor, compute: Callable[[Tensor], R]) -> R:
        """compute(argument), or its earlier result."""
        entries = self._entries.setdefault(module, deque(maxlen=MAX_ENTRIES))
        version = _version(argument)
        for entry in entries:
            if entry.argument is argument and entry.version == version:
                found: R = entry.result
                return found
        result = compute(argument)
        entries.append(_Entry(argument, version, result))
        return result


_ACTIVE: ContextVar[ActivationCache | None] = ContextVar("activation_cache", default=None)


def cached(module: nn.Module, argument: Tensor, compute: Callable[[Tensor], R]) -> R:
    """What a module computes of a tensor alone, from the active `ActivationCache` if there is one.

    With gradients it is always computed. A module has one such computation at most.
    """
    cache = _ACTIVE.get()
    if cache is None or torch.is_grad_enabled():
        return compute(argument)
    return cache.get(module, argument, compute)
