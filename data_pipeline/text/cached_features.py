"""Arrays of captions in derived sets: text features, read in place of an encoder, and embeddings.

Such an array of a sample has a row for every line of its KEY.txt, and the one of the caption that
is read is taken, so that all of them belong to one caption.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import CaptionChoice
from data_pipeline.manifest import Manifest
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.embedding_scaling import TEXT_EMBEDDING
from mezzotint.common.errors import UserError
from mezzotint.common.text_features import (
    CAPTION_ARRAYS,
    EMPTY_FEATURES,
    TEXT_FEATURES,
    TEXT_TOKENS,
    TextFeatureRecord,
)

Sets = Sequence[tuple[str, Manifest]]
"""A set and those joined to it, with their URLs."""


@dataclass(frozen=True)
class CachedTextFeatures:
    """What a set holds besides the features of its samples' captions."""

    url: str
    record: TextFeatureRecord
    empty: NDArray[np.generic]
    """(L, C), of an empty caption."""

    @classmethod
    def of_sets(cls, sets: Sets) -> Self:
        """Of the first of the sets that has them.

        Raises:
            UserError: none has any, or its file of the empty caption is missing or changed.
        """
        found = [(url, one.text_features) for url, one in sets if one.text_features is not None]
        if not found:
            raise UserError(
                f"{sets[0][0]}: has no text features; make a set of them with `mezzotint data "
                "derive SET OUT --text-encoder MODEL` and name it in data.join, or set "
                "task.condition.cached=false"
            )
        url, record = found[0]
        path = storage.join(url, EMPTY_FEATURES)
        content = storage.read_bytes(path)
        if sha256(content) != record.empty_sha256:
            raise UserError(
                f"{path}: does not match the manifest; derive the set again with `mezzotint data "
                "derive SET OUT --text-encoder MODEL`"
            )
        return cls(url, record, np.load(io.BytesIO(content), allow_pickle=False))


@dataclass(frozen=True)
class CaptionArrays:
    """The arrays of captions that a run reads, and what they are of an empty caption."""

    empty: Mapping[str, NDArray[np.generic]]
    """By name; of one caption, (L, C), () and (D,)."""
    features: CachedTextFeatures | None = None

    @classmethod
    def of_sets(cls, sets: Sets, arrays: Collection[str], captions: CaptionChoice) -> Self:
        """Those among `arrays`, which are the names of all arrays that a run reads.

        Raises:
            UserError: a set lacks what belongs to one of them, or captions are joined, of which
                nothing is kept.
        """
        wanted = [name for name in CAPTION_ARRAYS if name in arrays]
        embeddings = [one for _, one in sets if one.empty_text_embedding is not None]
        if not embeddings:  # an array of that name by somebody else has no captions
            wanted = [name for name in wanted if name != TEXT_EMBEDDING]
        if wanted and captions == "joined":
            raise UserError(
                f"data.text.captions: {wanted[0].replace('_', ' ')} are kept of single captions; "
                "set it to random or first, or task.condition.cached=false"
            )
        empty: dict[str, NDArray[np.generic]] = {}
        features = None
        if TEXT_FEATURES in wanted:
            features = CachedTextFeatures.of_sets(sets)
            empty[TEXT_FEATURES] = features.empty
        if TEXT_TOKENS in wanted:
            empty[TEXT_TOKENS] = np.asarray(_empty_tokens(sets), dtype=np.int64)
        if TEXT_EMBEDDING in wanted:
            empty[TEXT_EMBEDDING] = np.asarray(embeddings[0].empty_text_embedding, np.float32)
        return cls(empty, features)

    def of_caption(
        self,
        name: str,
        array: NDArray[np.generic],
        caption: str,
        lines: Sequence[str],
        encoded: Sequence[str],
        where: str,
    ) -> NDArray[np.generic]:
        """What an array called `name` of all captions of a sample (N, ...) has of one caption.

        `lines` are the captions of the sample, `encoded` those that the array was made of; `where`
        is the array's name in messages.

        Raises:
            UserError: they differ, or the array is not of so many captions.
        """
        read = tuple(lines) or ("",)
        if tuple(lines) != tuple(encoded) or array.shape != (len(read), *self.empty[name].shape):
            raise UserError(
                f"{where}: its {name.replace('_', ' ')} are not those of its captions, which were "
                "changed since; derive the set again"
            )
        return np.asarray(array[read.index(caption)])


def _empty_tokens(sets: Sets) -> int:
    for _, one in sets:
        if one.text_features is not None and one.text_features.empty_tokens is not None:
            return one.text_features.empty_tokens
    raise UserError(
        f"{sets[0][0]}: its text features do not say which of them are padding; make them with "
        "`mezzotint data derive SET OUT --clip MODEL --text-features`"
    )
