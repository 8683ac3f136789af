"""The captions of a sample: one a line of its KEY.txt, of which training draws one."""

import re
import unicodedata
from collections.abc import Sequence

from data_pipeline.config import CaptionChoice
from data_pipeline.sample_order import draw

_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Unicode categories of controls, formats and separators."""
_BLANKS = "\u2800\u3164\u115f\u1160\uffa0"
"""Other characters without ink: the empty Braille pattern and Hangul's fillers."""
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def normalise(caption: str) -> str:
    """NFKC, lower case, single spaces: the form in which captions are tokenized."""
    return " ".join(unicodedata.normalize("NFKC", caption).lower().split())


def caption_lines(text: str) -> tuple[str, ...]:
    """The captions in the content of a KEY.txt: its lines that are not empty, stripped."""
    lines = (line.strip() for line in _LINE_BREAK.split(text))
    return tuple(line for line in lines if is_visible(line))


def is_visible(caption: str) -> bool:
    """Whether a caption has a character that is seen: not only spaces, joiners and fillers."""
    return any(
        character not in _BLANKS and unicodedata.category(character) not in _UNSEEN
        for character in caption
    )


def choose(captions: Sequence[str], choice: CaptionChoice, drawn: tuple[int, int, int]) -> str:
    """The caption that training reads; `drawn` is (seed, epoch, index of the sample).

    A sample without captions has the empty one.
    """
    if choice == "joined":
        return " ".join(captions)
    if len(captions) < 2:
        return first(captions)
    return captions[draw(len(captions), *drawn)] if choice == "random" else captions[0]


def first(captions: Sequence[str]) -> str:
    """The caption that everything but training reads."""
    return captions[0] if captions else ""
