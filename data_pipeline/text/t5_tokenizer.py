"""T5's published tokenizer, and the choice between it and this project's."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, assert_never

import torch
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer, load_sentencepiece, lost_text

PIECES = "spiece.model"
"""Its published name."""


class CaptionTokens(Protocol):
    """A tokenizer that cuts captions at a length."""

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """(B, length) int64 ids of B captions, padded with 0."""

    def lost(self, caption: str, length: int) -> str:
        """The end of a caption that is cut at `length` ids; empty where it fits."""


class T5Tokenizer:
    """T5's sentencepiece model, with ids 0, 1 and 2 for padding, end and unknown.

    A caption is encoded as `length` ids: pieces, truncated so that the end id fits, and padding.
    The model normalises text itself.
    """

    pad_id: ClassVar[int] = 0
    end_id: ClassVar[int] = 1

    def __init__(self, model_bytes: bytes, name: str) -> None:
        special = {"pad": 0, "eos": 1, "unk": 2}
        self._model = load_sentencepiece(model_bytes, name, special, "put T5's spiece.model there")

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """(B, length) int64 ids of B captions."""
        rows = []
        for caption in captions:
            ids = [*self._model.EncodeAsIds(caption)[: length - 1], self.end_id]
            rows.append(ids + [self.pad_id] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), length)

    def count(self, caption: str) -> int:
        """Ids of a caption that is not cut, with the end id."""
        return len(self._model.EncodeAsIds(caption)) + 1

    def lost(self, caption: str, length: int) -> str:
        """The end of a caption that is cut at `length` ids; empty where it fits."""
        return lost_text(self._model, caption, length)


def tokenizer_of(style: Literal["own", "t5"], content: bytes, name: str) -> CaptionTokens:
    """The tokenizer of a sentencepiece model; `name` is its name in error messages.

    Raises:
        UserError: The model is not of that style.
    """
    match style:
        case "own":
            return Tokenizer(content, name)
        case "t5":
            return T5Tokenizer(content, name)
        case _:
            assert_never(style)
