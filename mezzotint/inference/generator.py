"""What every system's generator offers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.diffusion.sampling import NFE


@dataclass(frozen=True)
class Drawn:
    """Candidates (B, N, H, W, 3) uint8 and, if they were ranked, their scores (B, N)."""

    pictures: Tensor
    scores: Tensor | None
    calls: NFE | None = None
    """Of the networks that drew them, a batch at a time; None where they are not counted."""


class System(Protocol):
    """Anything that draws pictures for captions."""

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        ...

    def draw(self, captions: Sequence[str], seed: int) -> Drawn:
        """Draw every caption; the same captions and seed give the same pictures."""
        ...

    def reconstruct(self, pictures: Tensor) -> Tensor | None:
        """Pictures (n, H, W, 3) uint8 as this system could draw them at best; None: as they are."""
        ...

    def protocol(self) -> Mapping[str, object]:
        """Models with digests, sampler, steps, guidance: what is needed to draw the same again."""
        ...
