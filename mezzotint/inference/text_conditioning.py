"""Captions as a diffusion model is told them: as tokens, or as a frozen encoder's features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from data_pipeline.text.t5_tokenizer import tokenizer_of
from mezzotint.common.errors import UserError
from mezzotint.inference.clip import TextReader
from models import frozen_text, store
from models.diffusion.condition import Condition
from models.frozen_text import CaptionReader


class Captions(Protocol):
    """Tells a model captions."""

    def __call__(self, cond: Condition, captions: Sequence[str]) -> Condition:
        """The condition with captions, one a picture."""
        ...

    def protocol(self) -> Mapping[str, object]:
        """What reads them."""
        ...


@dataclass(frozen=True)
class Tokens:
    """For a model that reads tokens itself."""

    text: TextReader

    def __call__(self, cond: Condition, captions: Sequence[str]) -> Condition:
        """The condition with tokens."""
        return replace(cond, text=self.text(captions))

    def protocol(self) -> Mapping[str, object]:
        """The model itself does."""
        return {"kind": "tokens", "length": self.text.length}


@dataclass(frozen=True)
class Features:
    """For a model that is told features of a frozen encoder."""

    reader: CaptionReader

    def __call__(self, cond: Condition, captions: Sequence[str]) -> Condition:
        """The condition with features, and those of an empty caption."""
        features = self.reader(["", *captions])
        return replace(cond, features=features[1:], empty_features=features[0])

    def protocol(self) -> Mapping[str, object]:
        """The encoder with its digest."""
        return self.reader.source.model_dump(mode="json")


def captions_of(model: str, told: frozenset[str]) -> Captions | None:
    """What tells the model in a directory its captions; None if it is told none.

    Raises:
        UserError: tokenizer or encoder are missing, or other ones than in training.
        UserError: the directory does not say what reads captions.
    """
    if "text" in told:
        return Tokens(TextReader.of(model))
    if "features" not in told:
        return None
    source = store.describe(model).text_encoder
    if source is None:
        raise UserError(
            f"{model}: is told features of captions, and its {store.CONFIG} names no text_encoder "
            "that makes them; train it here, or name one there"
        )
    try:
        return Features(frozen_text.load(source, tokenizer_of))
    except UserError as error:
        raise UserError(f"{model}/{store.CONFIG}: text_encoder: {error}") from error
