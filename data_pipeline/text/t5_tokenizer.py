"""Tokenizers by the style of their sentencepiece model: this project's, and published T5's."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, assert_never

import sentencepiece
import torch
from torch import Tensor

from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.errors import UserError


class T5Tokenizer:
    """T5's sentencepiece model, whose ids 0, 1 and 2 are padding, end and unknown.

    Captions are `length` ids: the pieces, cut so that the end mark fits, then padding. The model
    normalises by itself.
    """

    pad_id: ClassVar[int] = 0
    end_id: ClassVar[int] = 1

    def __init__(self, model_bytes: bytes, name: str) -> None:
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(model_bytes)
        except RuntimeError as error:
            raise UserError(
                f"{name}: is no sentencepiece model; put T5's spiece.model there"
            ) from (error)
        model = self._model
        if (model.pad_id(), model.eos_id(), model.unk_id()) != (0, 1, 2):
            raise UserError(
                f"{name}: padding, end and unknown must be ids 0, 1 and 2, as T5's are; put its "
                "spiece.model there"
            )

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """(B, length) int64 ids of B captions."""
        rows = []
        for caption in captions:
            ids = [*self._model.EncodeAsIds(caption)[: length - 1], self.end_id]
            rows.append(ids + [self.pad_id] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)


def tokenizer_of(
    style: Literal["own", "t5"], content: bytes, name: str
) -> Callable[[Sequence[str], int], Tensor]:
    """The tokenizer in a sentencepiece model, which messages call `name`.

    Raises:
        UserError: it is none of that style.
    """
    match style:
        case "own":
            return Tokenizer(content, name)
        case "t5":
            return T5Tokenizer(content, name)
        case _:
            assert_never(style)
