"""Reading one pair of a source: its captions and a trial decoding of its image."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from data_pipeline.buckets.sizes import size_attributes
from data_pipeline.images import DecodedImage, extension_of, read_image
from data_pipeline.packing.hints import hint_members
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.records import Content
from data_pipeline.packing.report import Rejection
from data_pipeline.packing.shard_writer import RawSample
from data_pipeline.packing.source import InvalidSample, Source, shown_name
from data_pipeline.tar import is_text
from data_pipeline.text.captions import is_visible
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

_DIGITS = 32
"""Hexadecimal digits of a digest that records keep of a sample."""


@dataclass(frozen=True)
class Pair:
    """A valid pair, ready to be written."""

    sample: RawSample
    content: Content


def read_pair(source: Source, index: int, key: str, options: PackOptions) -> Pair | Rejection:
    """A pair of the source; `key` is its key unless it has one."""
    name = shown_name(source.names[index])
    try:
        sample = source.read(index)
        captions = _single_lines(sample.captions)
        left_out = 0
        match options.caption_lines:
            case "one":
                captions = [" ".join(captions)] if captions else []
            case "first":
                captions, left_out = captions[:1], len(captions[1:])
        _check_captions(captions)
        image: dict[str, bytes] = {}
        decoded = None
        if sample.image is not None:
            image, decoded = _image(sample.image, name, options)
        members = dict(sample.members)
        if decoded is not None:
            members |= hint_members(sample.hints, options.hint_columns, decoded.size)
    except InvalidSample as error:
        return Rejection(name=name, fault=error.fault, detail=shown_name(str(error)))
    text = {"txt": "\n".join(captions).encode()}
    attributes = json.dumps(dict(sample.attributes), ensure_ascii=False, sort_keys=True)
    rest = hashlib.sha256(text["txt"] + b"\0" + attributes.encode())
    for extension, member in sorted(members.items()):
        rest.update(extension.encode())
        rest.update(member)
    known = dict(sample.attributes)
    if decoded is not None and options.image_sizes:
        known = {**size_attributes(*decoded.image.size), **known}
    if sample.key is not None:
        if options.caption_lines == "several":
            text = {}  # as it is in the set
        raw = RawSample(sample.key, {**image, **members, **text}, known)
    else:
        record = {"source": name, **known}
        json_ = json.dumps(record, ensure_ascii=False).encode()
        raw = RawSample(key, {**image, **members, **text, "json": json_}, known)
    content = Content(
        image=None if sample.image is None else _digest(sample.image),
        captions=tuple(sha256(comparable(caption))[:16] for caption in captions),
        left_out=left_out,
        rest=rest.hexdigest()[:_DIGITS],
        size=decoded.size if decoded else None,
        notes=tuple(sorted(decoded.notes)) if decoded else (),
    )
    return Pair(raw, content)


def _single_lines(captions: Iterable[str]) -> list[str]:
    """Captions that are not empty, each on one line."""
    joined = (" ".join(caption.splitlines()).strip() for caption in captions)
    return [caption for caption in joined if is_visible(caption)]


def _check_captions(captions: list[str]) -> None:
    if not captions:
        raise InvalidSample("caption missing", "its caption is empty")
    for caption in captions:
        if "\0" in caption or not is_text(caption):
            raise InvalidSample("caption unusable", "its caption is no valid text (UTF-16?)")


def comparable(caption: str) -> str:
    """A caption without differences of case, spaces and Unicode forms."""
    return " ".join(unicodedata.normalize("NFKC", caption).casefold().split())


def _image(
    content: bytes, name: str, options: PackOptions
) -> tuple[dict[str, bytes], DecodedImage]:
    """An image as a member, and as a trial decoding shows it."""
    extension = extension_of(content)
    if extension is None:
        raise InvalidSample("image unreadable", "not a PNG, JPEG or WebP file")
    try:
        decoded = read_image(content, name, max_pixels=options.max_pixels)
    except UserError as error:
        raise InvalidSample("image unreadable", str(error)) from error
    width, height = decoded.size
    if min(width, height) < options.min_size:
        raise InvalidSample(
            "image too small", f"{width} x {height} pixels, --min-size is {options.min_size}"
        )
    if options.max_aspect is not None and max(width, height) > options.max_aspect * min(
        width, height
    ):
        raise InvalidSample(
            "image too elongated",
            f"{width} x {height} pixels, --max-aspect is {options.max_aspect:g}",
        )
    return {extension: content}, decoded


def _digest(content: bytes) -> str:
    return sha256(content)[:_DIGITS]
