"""Values kept in memory by number, up to a limit."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedCache(Generic[T]):
    """Keeps the most recently used values while their sizes add up to at most `limit` bytes.

    Thread-safe and picklable; a copy in another process begins empty.
    """

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self._limit = limit
        self._size = size
        self._kept: OrderedDict[int, T] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._limit, self._size)

    def get(self, number: int, make: Callable[[int], T]) -> T:
        """The value of a number; where it is not kept, `make` makes it."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        value = make(number)
        with self._lock:
            if number not in self._kept:
                self._kept[number] = value
                self._bytes += self._size(value)
            while self._bytes > self._limit and len(self._kept) > 1:
                self._bytes -= self._size(self._kept.popitem(last=False)[1])
        return value
