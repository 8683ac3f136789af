"""Captions as a CLIP's text tower gives them: positions of a transformer that reads them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models.nn.embedding import LearnedPositionEmbedding
from models.nn.prefix import Packing


class ClipCaption(NamedTuple):
    """Captions of a batch."""

    features: Tensor | None
    """(B, L, C): one vector per token."""
    embedding: Tensor | None
    """(B, D): the projections of the text tower."""
    mask: Tensor | None
    """(B, L) bool: which features are of tokens, and not of padding; None: all."""


def caption_tokens(
    caption: ClipCaption,
    layer: nn.Linear,
    position: LearnedPositionEmbedding,
    length: int,
    packing: Packing | None,
) -> Tensor:
    """The tokens of captions of `length` tokens with their positions: (B, longest, width).

    Raises:
        UserError: there are no features, or they have another size.
    """
    features = caption.features
    if features is None:
        raise UserError("this prior needs the features of captions from a CLIP's text tower")
    if features.shape[1:] != (length, layer.in_features):
        raise UserError(
            f"this prior takes {length} tokens of {layer.in_features} features, got "
            f"{features.shape[1]} of {features.shape[2]}; set model.length and "
            "model.features.width to those of the text encoder"
        )
    features = features.to(layer.weight.dtype)
    if packing is None:
        order = torch.arange(length, device=features.device)
    else:
        features, order = packing.take(features), packing.order
    # the same modules for every batch: under ZeRO 3 all processes gather in the same order
    return layer(features) + position.table(order)


def caption_embedding(caption: ClipCaption, dim: int) -> Tensor:
    """The embeddings of captions (B, dim).

    Raises:
        UserError: there are none, or they have another size.
    """
    embedding = caption.embedding
    if embedding is None or embedding.shape[1:] != (dim,):
        found = "none" if embedding is None else f"{embedding.shape[1]} values"
        raise UserError(
            f"this prior takes CLIP embeddings of captions of {dim} values, got {found}; set "
            "model.dim to that of the CLIP model"
        )
    return embedding
