"""Captions and classes that name a side, which a mirrored image does not show."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SIDE = re.compile(
    r"(?<![a-z])((left|right)(wards?|most|handed|hand|side)?|(anti|counter)?-?clockwise)(?![a-z])"
)


def names_side(text: str) -> bool:
    """Whether a text has an English word for a side: left, right, leftmost, clockwise, ..."""
    return _SIDE.search(text.lower()) is not None


@dataclass(frozen=True)
class SideCaptions:
    """How many captions of those that were read name a side, so that their images stay as they
    are where others are mirrored."""

    read: int
    found: int
    example: str
    """One of them; empty without any."""

    @classmethod
    def count(cls, captions: Iterable[str]) -> "SideCaptions":
        read = found = 0
        example = ""
        for caption in captions:
            read += 1
            if names_side(caption):
                found += 1
                example = example or caption
        return cls(read, found, example)

    def to_text(self) -> str:
        """One sentence."""
        share = self.found / self.read if self.read else 0.0
        counted = (
            f"{self.found:,} of {self.read:,} captions read ({share:.1%}) name a side, and their "
            "images are not mirrored"
        )
        return f"{counted}, one of them {self.example[:60]!r}" if self.found else counted
