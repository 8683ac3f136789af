"""Features of captions that a derived set keeps."""

from typing import Literal

from pydantic import BaseModel, Field

TEXT_FEATURES = "text_features"
"""The array of a sample: (lines, L, C), those of every line of its KEY.txt."""
TEXT_TOKENS = "text_tokens"
"""The array of a sample: (lines,), how many of the L features of each line are no padding."""
TEXT_EMBEDDING = "text_embedding"
"""The array of a sample: (lines, D), of every line by CLIP's text tower."""
CAPTION_ARRAYS = (TEXT_FEATURES, TEXT_TOKENS, TEXT_EMBEDDING)
"""Arrays with a row for every line of KEY.txt; that of the caption that is read is taken."""
EMPTY_FEATURES = "empty_text_features.npy"
"""The file of a set that holds the features (L, C) of an empty caption."""

FeatureType = Literal["fp16", "fp32"]


class TextFeatureRecord(BaseModel, frozen=True, extra="forbid"):
    """What made the text features of a set."""

    encoder: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Digest of the text encoder and its settings."""
    length: int = Field(gt=0)
    """L, tokens of a caption."""
    width: int = Field(gt=0)
    """C."""
    dtype: FeatureType
    empty_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the file with the features of an empty caption."""
    empty_tokens: int | None = Field(default=None, gt=0)
    """How many features of an empty caption are no padding; None where it is not kept."""
