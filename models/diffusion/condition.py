"""The inputs of a diffusion network besides the noisy image and the time."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Any of a caption, its features, a class, a low-resolution image and its degradation level."""

    text: Tensor | None = None
    """(B, L) int64."""
    label: Tensor | None = None
    """(B,) int64; `classes` is the null class of networks that were also trained without."""
    low_res: Tensor | None = None
    """(B, 3, h, w) in [-1, 1]."""
    noise_level: Tensor | None = None
    """(B,): how strongly `low_res` was degraded."""
    features: Tensor | None = None
    """(B, L, C): features of captions from a frozen encoder."""
    empty_features: Tensor | None = None
    """(L, C): the features of an empty caption."""
    mask: Tensor | None = None
    """(B, 1, h, w) of a network that inpaints: 1 is generated, 0 is kept."""
    masked: Tensor | None = None
    """(B, C, h, w): what is kept, as the network sees it: of an image whose other pixels are 0."""
    hints: tuple[Tensor | None, ...] = ()
    """(B, C, H, W) in [0, 1] each, at the size of the images: one for each control of the network.
    A control whose hint is None does not act; with none at all the base is called as it is."""

    @cached_property
    def without_hints(self) -> "Condition":
        """The same without any control."""
        return replace(self, hints=()) if self.hints else self

    def without_hints_of(self, controls: Collection[int]) -> "Condition":
        """The same without the controls of these numbers."""
        if not self.hints:
            return self
        hints = (None if number in controls else hint for number, hint in enumerate(self.hints))
        return replace(self, hints=tuple(hints))

    @cached_property
    def without_text(self) -> "Condition":
        """The same with empty captions (all pads): the unconditional branch of guidance.

        Features become those of an empty caption. Where these are not known they become 0: a
        cross-attention over zeros adds nothing but its bias.
        """
        # the same tensors at every step of sampling: a network caches what it computes of them
        text, features = self.text, self.features
        if features is not None:
            none = (
                torch.zeros_like(features) if self.empty_features is None else self.empty_features
            )
            features = none.to(features).expand_as(features)
        text = None if text is None else torch.zeros_like(text)
        return replace(self, text=text, features=features)

    def without_class(self, null: int) -> "Condition":
        """The same with the label `null`, "no class"."""
        if self.label is None:
            return self
        return replace(self, label=torch.full_like(self.label, null))
