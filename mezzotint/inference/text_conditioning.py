"""Captions as conditions of a diffusion model: tokens, or features of a frozen text encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from data_pipeline.text.t5_tokenizer import tokenizer_of
from data_pipeline.text.tokenizer import TokenizerAt
from mezzotint.common.errors import UserError
from mezzotint.inference.clip import caption_tokenizer
from models import frozen_text, store
from models.diffusion.condition import Condition
from models.frozen_text import CaptionTokens, FrozenTextEncoder


@dataclass(frozen=True)
class TokenConditioning:
    """For a model with a text encoder of its own."""

    tokens: TokenizerAt
    device: torch.device

    def __call__(self, cond: Condition, captions: Sequence[str]) -> Condition:
        """The condition with tokens; of an empty caption padding, as where training dropped it."""
        tokens = self.tokens(captions)
        tokens[[not caption.strip() for caption in captions]] = 0
        return replace(cond, text=tokens.to(self.device))

    def protocol(self) -> Mapping[str, object]:
        return {"kind": "tokens", "length": self.tokens.length}


@dataclass(frozen=True)
class _FrozenConditioning:
    """Reads captions by a frozen encoder."""

    reader: FrozenTextEncoder

    @property
    def tokens(self) -> CaptionTokens:
        return self.reader.tokens

    def protocol(self) -> Mapping[str, object]:
        return self.reader.source.model_dump(mode="json")


@dataclass(frozen=True)
class FeatureConditioning(_FrozenConditioning):
    """For a model that is conditioned on features of a frozen encoder."""

    def __call__(self, cond: Condition, captions: Sequence[str]) -> Condition:
        """The condition with features, and those of an empty caption for guidance."""
        features = self.reader(["", *captions])
        return replace(cond, features=features[1:], empty_features=features[0])


@dataclass(frozen=True)
class ClipTextConditioning(_FrozenConditioning):
    """For a model that is conditioned on a CLIP's features and embeddings of captions."""

    def __call__(self, cond: Condition, captions: Sequence[str]) -> Condition:
        """The condition with both of the captions, and those of an empty one for guidance."""
        found = self.reader.encode(["", *captions])
        return replace(
            cond,
            features=found.features[1:],
            empty_features=found.features[0],
            features_mask=found.mask[1:],
            empty_features_mask=found.mask[0],
            text_embedding=found.embedding[1:],
            empty_text_embedding=found.embedding[0],
        )


TextConditioning = TokenConditioning | FeatureConditioning | ClipTextConditioning
"""Adds captions to a condition, one per sample."""


def text_conditioning(
    model: str, conditions: frozenset[str], device: torch.device
) -> TextConditioning | None:
    """The text conditioning of the model in a directory; None if it has none.

    Raises:
        UserError: tokenizer or encoder are missing or not those of training, or the directory
            does not name the encoder.
    """
    if "text" in conditions:
        return TokenConditioning(caption_tokenizer(model), device)
    if not conditions & {"features", "clip_text"}:
        return None
    source = store.describe(model).text_encoder
    if source is None:
        raise UserError(
            f"{model}: is conditioned on text features, and its {store.CONFIG} names no "
            "text_encoder that makes them; train it here, or name one there"
        )
    try:
        reader = frozen_text.load(frozen_text.as_trained(source), tokenizer_of).to(device)
    except UserError as error:
        raise UserError(f"{model}/{store.CONFIG}: text_encoder: {error}") from error
    return (
        ClipTextConditioning(reader) if "clip_text" in conditions else FeatureConditioning(reader)
    )
