"""Captions as token ids: a sentencepiece BPE model, and BPE dropout with a keyed generator."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import sentencepiece
import torch
from torch import Tensor

from data_pipeline.text.captions import normalise
from data_pipeline.text.train_tokenizer import SPECIAL_IDS, TokenizerOptions, train_tokenizer
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

TOKENIZER_NAME = "tokenizer.model"


def load_sentencepiece(
    content: bytes, name: str, special: Mapping[str, int], hint: str
) -> sentencepiece.SentencePieceProcessor:
    """Load a sentencepiece model and check its special ids (`pad`, `unk`, `bos`, `eos`).

    Raises:
        UserError: It is none, or has other ids; the message has `name` and `hint`.
    """
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise UserError(f"{name}: is no sentencepiece model; {hint}") from error
    ids = {key: getattr(model, f"{key}_id")() for key in special}
    if ids != special:
        raise UserError(f"{name}: its special ids are {ids}, not {dict(special)}; {hint}")
    return model


@dataclass(frozen=True)
class TokenizerAt:
    """A tokenizer at one length."""

    tokenizer: "Tokenizer"
    length: int

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Ids (n, length) int64."""
        return self.tokenizer(captions, self.length)

    def lost(self, caption: str) -> str:
        """The end of a caption that is cut; empty where it fits."""
        return self.tokenizer.lost(caption, self.length)


def lost_text(model: sentencepiece.SentencePieceProcessor, text: str, length: int) -> str:
    """The end of a text that does not fit in `length` ids with an end id; empty where it does."""
    starts = [start for start, _ in model.EncodeAsOffsetMapping(text)["offsets"]]
    return text[starts[length - 1] :].strip() if len(starts) >= length else ""


class Tokenizer:
    """A trained BPE model. Ids 0 to 3 are padding, unknown, beginning and end.

    A caption is `length` ids: its pieces, cut so that the end id fits, and padding. Picklable.
    """

    pad_id: ClassVar[int] = 0
    unknown_id: ClassVar[int] = 1
    begin_id: ClassVar[int] = 2
    end_id: ClassVar[int] = 3

    def __init__(self, model_bytes: bytes, name: str = TOKENIZER_NAME) -> None:
        self.model_bytes = model_bytes
        self._name = name
        hint = "train one with `mezzotint data tokenizer`"
        self._model = model = load_sentencepiece(model_bytes, name, SPECIAL_IDS, hint)
        ids = range(model.GetPieceSize())
        no_text = (model.IsControl, model.IsUnknown, model.IsUnused, model.IsByte)
        self._pieces = {
            model.IdToPiece(id_): (model.GetScore(id_), id_)
            for id_ in ids
            if not any(check(id_) for check in no_text)
        }
        self._byte_ids = [id_ for id_ in ids if model.IsByte(id_)]
        """Of the bytes 0 to 255, with byte fallback; else empty."""

    def __getstate__(self) -> tuple[bytes, str]:
        return self.model_bytes, self._name

    def __setstate__(self, state: tuple[bytes, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @classmethod
    def load(cls, path: str) -> Self:
        """Read `tokenizer.model`, or the one in a directory.

        Raises:
            UserError: There is none, or it is not a tokenizer of this project.
        """
        inside = storage.join(path, TOKENIZER_NAME)
        file = inside if storage.exists(inside) else path
        if not storage.is_file(file):
            raise UserError(f"{inside}: no such file; train it with `mezzotint data tokenizer`")
        return cls(storage.read_bytes(file), file)

    @staticmethod
    def train(captions: Iterable[str], vocab: int) -> bytes:
        """The content of `tokenizer.model`, a BPE model of `vocab` pieces; see `train_tokenizer`.

        Raises:
            UserError: The captions have too few or too many different pieces for this vocabulary.
        """
        return train_tokenizer(captions, TokenizerOptions(vocab)).content

    @property
    def vocab_size(self) -> int:
        return int(self._model.GetPieceSize())

    @property
    def sha256(self) -> str:
        return sha256(self.model_bytes)

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """(B, length) int64 ids of B captions."""
        rows = [self.encode(caption, length) for caption in captions]
        return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(len(rows), length)

    def encode(self, caption: str, length: int) -> list[int]:
        return self._fit(self._model.EncodeAsIds(normalise(caption)), length)

    def encode_dropout(
        self, caption: str, length: int, probability: float, rng: np.random.Generator
    ) -> list[int]:
        """Encode with BPE dropout: every merge is skipped with this probability.

        Provilkov et al. 2020, algorithm 1, in the variant of sentencepiece, which decides once per
        candidate pair. sentencepiece's own sampler uses a global generator.
        """
        symbols = list(self._model.Normalize(normalise(caption)))
        return self._fit(self._ids(self._merge(symbols, probability, rng)), length)

    def lost(self, caption: str, length: int) -> str:
        """The end of a normalised caption that is cut at `length` ids; empty where it fits."""
        return lost_text(self._model, normalise(caption), length)

    def count(self, caption: str) -> int:
        """Ids of a caption that is not cut, with the end id."""
        return len(self._model.EncodeAsIds(normalise(caption))) + 1

    def decode(self, ids: Sequence[int]) -> str:
        """The normalised caption, without special ids."""
        return str(self._model.DecodeIds([id_ for id_ in ids if id_ > self.end_id]))

    def _fit(self, ids: list[int], length: int) -> list[int]:
        ids = [*ids[: length - 1], self.end_id]
        return ids + [self.pad_id] * (length - len(ids))

    def _merge(self, symbols: list[str], probability: float, rng: np.random.Generator) -> list[str]:
        """Merge adjacent symbols into pieces, best score first, leftmost of equal ones first."""
        following = [*range(1, len(symbols)), -1]
        previous = list(range(-1, len(symbols) - 1))
        candidates: list[tuple[float, int, int, str]] = []

        def propose(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            merged = symbols[left] + symbols[right]
            if merged in self._pieces:
                heapq.heappush(candidates, (-self._pieces[merged][0], left, right, merged))

        for left in range(len(symbols) - 1):
            propose(left, left + 1)
        while candidates:
            _, left, right, merged = heapq.heappop(candidates)
            if not symbols[left] or symbols[left] + symbols[right] != merged:
                continue  # one of the two was merged with another
            if following[left] != right:
                continue
            if probability > 0 and rng.random() < probability:
                continue
            symbols[left], symbols[right] = merged, ""
            following[left] = following[right]
            if following[right] >= 0:
                previous[following[right]] = left
            propose(previous[left], left)
            propose(left, following[left])
        return [symbol for symbol in symbols if symbol]

    def _ids(self, symbols: list[str]) -> list[int]:
        """Ids of pieces, as sentencepiece gives them.

        Unknown symbols are spelled in bytes, or adjacent ones are one unknown id.
        """
        ids: list[int] = []
        for symbol in symbols:
            if symbol in self._pieces:
                ids.append(self._pieces[symbol][1])
            elif self._byte_ids:
                ids += [self._byte_ids[byte] for byte in symbol.encode()]
            elif ids[-1:] != [self.unknown_id]:
                ids.append(self.unknown_id)
        return ids
