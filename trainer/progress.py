"""What a run tells whoever watches it."""

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """What the loop tells whoever watches."""

    def __call__(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """`step` of `steps` updates are done."""
        ...
