"""Text features of a derived set, read in place of a frozen text encoder."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import CaptionChoice
from data_pipeline.manifest import Manifest
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.text_features import EMPTY_FEATURES, TextFeatureRecord


@dataclass(frozen=True)
class CachedTextFeatures:
    """What a set holds besides the features of its samples' captions."""

    url: str
    record: TextFeatureRecord
    empty: NDArray[np.generic]
    """(L, C), of an empty caption."""

    @classmethod
    def of_sets(
        cls, urls: Sequence[str], manifests: Sequence[Manifest], captions: CaptionChoice
    ) -> Self:
        """Of the first of the sets that has them.

        Raises:
            UserError: it has none, its file of the empty caption is missing or changed, or captions
                are joined, of which no features are kept.
        """
        if captions == "joined":
            raise UserError(
                "data.text.captions: text features are kept of single captions; set it to random "
                "or first, or task.condition.cached=false"
            )
        sets = zip(urls, manifests, strict=True)
        found = [(url, one.text_features) for url, one in sets if one.text_features is not None]
        if not found:
            raise UserError(
                f"{urls[0]}: has no text features; make a set of them with `mezzotint data "
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

    def of_caption(
        self,
        features: NDArray[np.generic],
        caption: str,
        lines: Sequence[str],
        encoded: Sequence[str],
        name: str,
    ) -> NDArray[np.generic]:
        """The features (L, C) of a caption, out of those (N, L, C) of its sample.

        `lines` are the captions of the sample, `encoded` those that the features were made of.

        Raises:
            UserError: they differ, or the features are not of so many captions.
        """
        read = tuple(lines) or ("",)
        if tuple(lines) != tuple(encoded) or features.shape != (len(read), *self.empty.shape):
            raise UserError(
                f"{name}: its features are not those of its captions, which were changed since; "
                "derive the text features again"
            )
        chosen: NDArray[np.generic] = features[read.index(caption)]
        return chosen
