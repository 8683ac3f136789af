"""Arrays of mirrored images in derived sets, beside those of the images."""

from collections.abc import Iterable

from mezzotint.common.text_features import CAPTION_ARRAYS

MIRRORED = "_mirrored"
"""What the name of the array of a mirrored image ends with: `latents_mirrored`."""


def mirrored(name: str) -> str:
    """The array of the mirrored image that belongs to array `name`; of captions the same array."""
    return name if name in CAPTION_ARRAYS else f"{name}{MIRRORED}"


def with_mirrored(names: Iterable[str]) -> tuple[str, ...]:
    """The arrays with those of the mirrored images."""
    names = tuple(names)
    return tuple(dict.fromkeys((*names, *map(mirrored, names))))
