"""Lengths of a set's captions in tokens of a tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_pipeline.text.cut_captions import CutCaptions, count_cut
from data_pipeline.text.t5_tokenizer import PIECES, T5Tokenizer
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common import storage


class CountsTokens(Protocol):
    """A tokenizer that knows the length of a caption that is not cut."""

    def count(self, caption: str) -> int:
        """Ids of a caption with the end id."""

    def lost(self, caption: str, length: int) -> str:
        """The end of a caption that is cut at `length` ids."""


@dataclass(frozen=True)
class TokenLengths:
    """Tokens per caption, with the end id."""

    tokenizer: str
    read: int
    mean: float
    most_of_95: int
    """Enough for 95% of the captions."""
    longest: int
    cut: CutCaptions | None
    """At the length that was asked for."""

    def to_text(self) -> str:
        """One line."""
        line = (
            f"tokens ({self.tokenizer}): {self.mean:.1f} a caption with the end, 95% have at most "
            f"{self.most_of_95}, the longest {self.longest}"
        )
        return line if self.cut is None else f"{line}; {self.cut.to_text()}"


def read_tokenizer(path: str) -> CountsTokens:
    """This project's tokenizer, or T5's where the file is called as its is.

    Raises:
        UserError: there is none.
    """
    inside = storage.join(path, PIECES)
    file = inside if storage.exists(inside) else path
    if file.rsplit("/", 1)[-1] == PIECES:
        return T5Tokenizer(storage.read_bytes(file), file)
    return Tokenizer.load(path)


def token_lengths(
    captions: Iterable[str], tokenizer: CountsTokens, name: str, length: int | None
) -> TokenLengths:
    """Count the tokens of captions, and those that are cut at a length."""
    read = list(captions)
    counts = np.asarray([tokenizer.count(caption) for caption in read] or [0])
    return TokenLengths(
        tokenizer=name,
        read=len(read),
        mean=float(counts.mean()),
        most_of_95=int(np.quantile(counts, 0.95, method="inverted_cdf")),
        longest=int(counts.max()),
        cut=None if length is None else count_cut(read, _At(tokenizer, length), "--length"),
    )


@dataclass(frozen=True)
class _At:
    tokenizer: CountsTokens
    length: int

    def lost(self, caption: str) -> str:
        return self.tokenizer.lost(caption, self.length)
