"""What a denoiser computes before a control acts on it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Context(NamedTuple):
    """What attention reads besides the image."""

    tokens: Tensor
    """(B, L, C)."""
    mask: Tensor | None = None
    """(B, L) bool: which of them count; None: all."""


class Caption(NamedTuple):
    """A caption as an encoder gives it; None where the network reads none."""

    tokens: Tensor | None = None
    """(B, L, C), for attention; those of an image embedding come first."""
    pooled: Tensor | None = None
    """(B, C), for the time's vector."""
    mask: Tensor | None = None
    """(B, L) bool: which tokens count; None: all."""

    @property
    def context(self) -> Context | None:
        """The tokens, as attention reads them."""
        return None if self.tokens is None else Context(self.tokens, self.mask)


class Encoding(NamedTuple):
    """The result of a network's `encode`, and the input of its `decode`."""

    hidden: Tensor
    """The middle of a UNet (B, C, h, w), or the tokens of a DiT (B, L, width)."""
    skips: tuple[Tensor, ...]
    """The skip connections of a UNet, the first convolution's first."""
    vector: Tensor
    """(B, C): of the time and what else modulates the blocks."""
    caption: Caption


def added(features: Sequence[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """The features, and residuals added to the last ones of them."""
    free = len(features) - len(residuals)
    return [
        each if number < free else each + residuals[number - free]
        for number, each in enumerate(features)
    ]
