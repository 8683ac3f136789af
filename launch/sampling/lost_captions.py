"""Captions of which a system does not read the end."""

import logging
from collections.abc import Iterable, Mapping

from data_pipeline.text.cut_captions import shown
from mezzotint.inference.generator import ImageGenerator

log = logging.getLogger(__name__)

Lost = Mapping[str, Mapping[str, str]]
"""Ends of captions that are not read, by caption and by role: `model` or `ranker`."""


def find_lost(generator: ImageGenerator, captions: Iterable[str | None]) -> Lost:
    """The captions that are cut, each once."""
    found = {each: generator.lost(each) for each in dict.fromkeys(captions) if each}
    return {caption: lost for caption, lost in found.items() if lost}


def lost_captions(lost: Lost) -> list[str]:
    """A warning for each, with what is not read."""
    return [
        f"warning: {shown(caption)} is too long: the {role} does not read {shown(end)}"
        for caption, ends in lost.items()
        for role, end in ends.items()
    ]


def log_lost(generator: ImageGenerator, captions: Iterable[str | None]) -> None:
    """Log the warnings, for commands that report something else."""
    for warning in lost_captions(find_lost(generator, captions)):
        log.warning("%s", warning.removeprefix("warning: "))
