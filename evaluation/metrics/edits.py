"""What an edit is measured by: attributes that it keeps, and captions that it is to reach."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from evaluation.metrics.intervals import Score


@dataclass(frozen=True)
class Trial:
    """An edit of a real image by words: indices of the source and of a real image of the target."""

    source: int
    target: int


def replaced(caption: str, old: str, new: str) -> str:
    """The caption with every `old` that is no part of a longer word replaced by `new`.

    A word may contain hyphens: "light" is not in "medium-light".
    """
    return re.sub(rf"(?<![\w-]){re.escape(old)}(?![\w-])", lambda _: new, caption)


def trials(
    captions: Sequence[str], identical: Sequence[frozenset[str]], old: str, new: str
) -> list[Trial]:
    """The images whose caption with `new` for `old` is the caption of another image.

    `identical` are, for every image, the captions of all images equal to it: an edit whose target
    looks like its source is left out.
    """
    index_of = {caption: index for index, caption in enumerate(captions)}
    found = []
    for source, caption in enumerate(captions):
        wanted = replaced(caption, old, new)
        if wanted != caption and wanted in index_of and wanted not in identical[source]:
            found.append(Trial(source, index_of[wanted]))
    return found


def chance_of_equal(value: Hashable, others: Sequence[Hashable]) -> float:
    """The share of `others` that are equal to `value`."""
    return Counter(others)[value] / len(others)


def best(scores: Sequence[tuple[float, Score]]) -> float:
    """The setting of the highest score; of equal ones the smallest."""
    return min(scores, key=lambda each: (-each[1].value, each[0]))[0]
