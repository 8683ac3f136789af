"""Calls that end after a time, whatever they wait for."""

import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL = 0.05
"""Seconds between two looks at a call that runs."""


def with_timeout(
    seconds: float,
    call: Callable[[], T],
    progress: Callable[[], object] = lambda: None,
    total: float = math.inf,
) -> T:
    """The result of `call()`, run in a thread.

    Raises:
        TimeoutError: For `seconds` it did not return and `progress()` did not change, or it did not
            return for `total` seconds. The thread is abandoned.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 (raised again in the waiting thread)
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="storage")
    began = time.monotonic()
    thread.start()
    seen, since = progress(), began
    while thread.is_alive() and time.monotonic() < min(since + seconds, began + total):
        thread.join(min(_POLL, seconds / 4))
        if (now := progress()) != seen:
            seen, since = now, time.monotonic()
    if errors:
        raise errors[0]
    if not results:
        if time.monotonic() >= began + total:
            raise TimeoutError(f"not complete after {total:,.0f} s")
        raise TimeoutError(f"no response for {seconds:.0f} s")
    return results[0]
