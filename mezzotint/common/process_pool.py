"""Work on many items in several processes of this machine."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

_begun: list[tuple[Callable[[Any, Any], Any], Any]] = []
"""Of a process of the pool: its function and what all items share."""


def process_count(wanted: int | None, items: int, least: int) -> int:
    """How many processes work on so many items.

    None is one for every core, and at least `least` items for each.
    """
    each = wanted or min(len(os.sched_getaffinity(0)), items // least)
    return max(1, min(each, items))


def map_in_processes(
    function: Callable[[S, T], R], shared: S, items: Iterable[T], processes: int
) -> Iterator[tuple[T, R]]:
    """Items with `function(shared, item)`, as they are done; `shared` is sent to a process once.

    All of them are spawned and pickled: the function is one of a module, and no item is left
    running where the caller stops.

    Raises:
        Exception: What the function raises.
    """
    with ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(function, shared),
    ) as pool:
        futures: dict[Future[R], T] = {pool.submit(_call, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(function: Callable[[S, T], R], shared: S) -> None:
    _begun.append((function, shared))


def _call(item: T) -> R:  # type: ignore[type-var]
    function: Callable[[object, T], R]
    [(function, shared)] = _begun
    return function(shared, item)
