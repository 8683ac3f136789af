"""Hints of a source: image files beside the image of a sample, kept unchanged as `KEY.NAME.png`."""

import posixpath
from collections.abc import Mapping

from data_pipeline.hints.read import image_hint_size
from data_pipeline.images import IMAGE_EXTENSIONS, extension_of
from data_pipeline.packing.source import InvalidSample
from mezzotint.common.errors import UserError


def split_hint(name: str, columns: Mapping[str, str]) -> tuple[str, str] | None:
    """The stem of the image and the name of the hint that a file is: `a/b.edges.png`.

    `columns` are those of the source by the hint's name: the word before the last dot.
    """
    stem, dot, kind = name.rpartition(".")
    stem, separator, column = stem.rpartition(".")
    if not (dot and separator and posixpath.basename(stem)) or kind.lower() not in IMAGE_EXTENSIONS:
        return None
    found = next((hint for hint, one in columns.items() if one == column), None)
    return None if found is None else (stem, found)


def hint_members(
    hints: Mapping[str, bytes], wanted: Mapping[str, str], size: tuple[int, int]
) -> dict[str, bytes]:
    """The members of a sample's hints, after a trial decoding; `size` is that of the image.

    Raises:
        InvalidSample: one is missing, cannot be read, or has other proportions than the image.
    """
    members = {}
    for name in wanted:
        content = hints.get(name)
        if content is None:
            raise InvalidSample("hint missing", f"it has no image of its hint '{name}'")
        extension = extension_of(content)
        if extension is None:
            raise InvalidSample("hint unusable", f"hint '{name}': not a PNG, JPEG or WebP file")
        try:
            width, height = image_hint_size(content, f"hint '{name}'")
        except UserError as error:
            raise InvalidSample("hint unusable", str(error)) from error
        if abs(width - height * size[0] / size[1]) > 1:
            raise InvalidSample(
                "hint unusable",
                f"hint '{name}': {width} x {height} pixels, other proportions than those of the "
                f"image, {size[0]} x {size[1]}",
            )
        members[f"{name}.{extension}"] = content
    return members
