"""The inputs of a diffusion network besides the noisy image and the time."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from models.nn.clip_captions import ClipCaption


@dataclass(frozen=True)
class Condition:
    """Any of a caption, its features, CLIP embeddings, a class, and a degraded image."""

    text: Tensor | None = None
    """(B, L) int64."""
    text_states: Tensor | None = None
    """(B, L, C): stands in place of what a network's own text encoder gives of `text`."""
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
    features_mask: Tensor | None = None
    """(B, L) bool: which features are of tokens, and not of padding; None: all count."""
    empty_features_mask: Tensor | None = None
    """(L,) bool: those of an empty caption."""
    text_embedding: Tensor | None = None
    """(B, D): projections of captions by CLIP as they are, not of unit norm (as Karlo reads them):
    of `ClipEmbedder.encode_captions`, or of a set made by `data derive --clip`."""
    empty_text_embedding: Tensor | None = None
    """(D,): that of an empty caption."""
    image_embedding: Tensor | None = None
    """(B, D): of images from CLIP, normalised as the network's set records; noisy ones without a
    mean taken off (`EmbeddingScaling.uncentred`)."""
    null_embedding: Tensor | None = None
    """(B,) bool: rows without an image embedding, for which the network has a learned vector;
    None: all have theirs."""
    embedding_level: Tensor | None = None
    """(B,) int64: the level of the noise that the image embeddings have, for a network that reads
    noisy ones."""
    sizes: Tensor | None = None
    """(B, 6) int64, in pixels: height and width of the whole image, rows above and columns left of
    what is shown of it after resizing, height and width of that."""
    mask: Tensor | None = None
    """(B, 1, h, w) of a network that inpaints: 1 is generated, 0 is kept."""
    masked: Tensor | None = None
    """(B, C, h, w): what is kept, as the network sees it: of an image whose other pixels are 0."""
    hints: tuple[Tensor | None, ...] = ()
    """(B, C, H, W) in [0, 1] each, at the size of the images: one for each control of the network.
    A control whose hint is None does not act; with none at all the base is called as it is."""

    @property
    def clip_caption(self) -> ClipCaption:
        """The captions as a CLIP's text tower gives them."""
        return ClipCaption(self.features, self.text_embedding, self.features_mask)

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

        Features and text embeddings become those of an empty caption. Where these are not known
        they become 0: a cross-attention over zeros adds nothing but its bias.
        """
        # the same tensors at every step of sampling: a network caches what it computes of them
        mask = self.features_mask
        if mask is not None and self.empty_features_mask is not None:
            mask = self.empty_features_mask.to(mask).expand_as(mask)
        return replace(
            self,
            text=None if self.text is None else torch.zeros_like(self.text),
            text_states=None,
            features=_empty(self.features, self.empty_features),
            features_mask=mask,
            text_embedding=_empty(self.text_embedding, self.empty_text_embedding),
        )

    @cached_property
    def without_embedding(self) -> "Condition":
        """The same without image embeddings: the unconditional branch of guidance."""
        if self.image_embedding is None:
            return self
        rows, device = self.image_embedding.shape[:1], self.image_embedding.device
        return replace(self, null_embedding=torch.ones(rows, dtype=torch.bool, device=device))

    def without_class(self, null: int) -> "Condition":
        """The same with the label `null`, "no class"."""
        if self.label is None:
            return self
        return replace(self, label=torch.full_like(self.label, null))


def _empty(given: Tensor | None, empty: Tensor | None) -> Tensor | None:
    """What an empty caption has in place of each of `given` (B, ...); 0 where it is not known."""
    if given is None:
        return None
    return torch.zeros_like(given) if empty is None else empty.to(given).expand_as(given)
