"""Decoding every member of a sample, so that no damaged one is called whole."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from data_pipeline.images import IMAGE_EXTENSIONS, open_rgb
from data_pipeline.manifest import SampleEntry
from data_pipeline.text.captions import caption_lines
from mezzotint.common.errors import UserError

_ADDRESS = re.compile(r" image file <[^<>]* object at 0x[0-9a-f]+>")
"""In Pillow's messages, different in every process."""

MAX_PIXELS = 178_000_000
"""Pillow's own limit; a recipe may set a lower one."""


def sample_faults(
    tar: Path, samples: Sequence[SampleEntry], *, images: bool, workers: int
) -> Iterator[str | None]:
    """What is wrong with each of the samples of an uncompressed tar, in order; None if nothing is.

    Captions must be UTF-8 texts, arrays plain and finite, and with `images` every image must
    decode. A fault begins with the name of the member.
    """

    def check(sample: SampleEntry) -> str | None:
        for extension, (offset, size) in sample.members.items():
            fault = member_fault(extension, partial(os.pread, file, size, offset), images=images)
            if fault is not None:
                return f"{sample.key}.{extension}: {fault}"
        return None

    file = os.open(tar, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(check, samples)
    finally:
        os.close(file)


def member_fault(extension: str, read: Callable[[], bytes], *, images: bool) -> str | None:
    """What is wrong with the content of a member, if anything; others than these are not read."""
    if extension == "txt":
        return _caption_fault(read())
    if extension.endswith("npy"):
        return _array_fault(read())
    if images and extension in IMAGE_EXTENSIONS:
        try:
            open_rgb(read(), "image", max_pixels=MAX_PIXELS)
        except UserError as error:
            return _ADDRESS.sub("", str(error)).removeprefix("image: ")
    return None


def _caption_fault(content: bytes) -> str | None:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"the caption is not UTF-8 ({error.reason} at byte {error.start})"
    if not caption_lines(text):
        return "the caption is empty"
    if "\0" in text:
        return f"the caption has a NUL character at position {text.index(chr(0))}"
    return None


def _array_fault(content: bytes) -> str | None:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        return f"not a plain array ({str(error)[:100]})"
    if not isinstance(array, np.ndarray):
        return "not a plain array (an archive of arrays)"
    if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
        return "the array has values that are not finite"
    return None
