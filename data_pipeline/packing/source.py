"""What a source of image-text pairs is: samples by index, and an account of what is no sample."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol, TypeGuard

from data_pipeline.manifest import Attribute
from data_pipeline.sets.contents import SetContents
from data_pipeline.sets.stored_set import StoredSet
from data_pipeline.tar import is_text

Fault = Literal[
    "caption missing",
    "caption unusable",
    "hint missing",
    "hint unusable",
    "image missing",
    "image unreadable",
    "image too small",
    "image too elongated",
    "download failed",
    "attribute unusable",
    "row unreadable",
]

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class InvalidSample(Exception):
    """A sample that cannot be used, and why."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault: Fault = fault


@dataclass(frozen=True)
class SourceSample:
    """An encoded image, its captions, and what else the source has of the sample."""

    image: bytes | None
    """None in a derived set, whose arrays are in `members`."""
    captions: tuple[str, ...]
    """Several captions of one image; empty ones do not count, a line break becomes a space."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    key: str | None = None
    """Its key, in a shard set."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """Other members to copy, by extension."""
    hints: Mapping[str, bytes] = field(default_factory=dict)
    """Encoded images of its hints, by name."""


class Source(Protocol):
    """The samples of a folder, table or set, by index.

    Everything that the source holds is a sample, which `read` returns or rejects, or is in
    `ignored`.
    """

    names: Sequence[str]
    """Names of the samples in reports."""
    identity: str
    """Digest of what is known of the contents without reading all of them."""
    ignored: Mapping[str, Sequence[str]]
    """Names of what is no sample, by the rule that leaves it out (`hidden name`, `empty line`)."""
    noticed: Mapping[str, Sequence[str]] = MappingProxyType({})
    """Names of what is used but may not be meant, by what was noticed."""
    is_picklable: bool = False
    """Whether it can be sent to another process, which opens it again otherwise."""
    stored: StoredSet | None = None
    contents: SetContents | None = None
    """For a source that is a shard set."""

    def stamp(self, index: int) -> str:
        """What is known of the content of a sample without reading it.

        A sample with the stamp that it had is not read again. It must differ once the content was
        changed, and may differ otherwise.
        """
        return self.identity

    def read(self, index: int) -> SourceSample:
        """Read one sample; called from several threads.

        Raises:
            InvalidSample: It cannot be used.
        """

    def close(self) -> None:
        """Delete temporary files."""
        return


def json_attributes(content: bytes | None) -> dict[str, Attribute]:
    """The strings and integers at the top level of a KEY.json; none if it is not valid."""
    fields = json_object(content or b"{}")
    return {name: value for name, value in fields.items() if is_attribute(value) and is_text(name)}


def json_object(content: bytes) -> dict[str, object]:
    """The fields of a JSON object; none if it is not one."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return dict(fields) if isinstance(fields, dict) else {}


def json_captions(content: bytes) -> tuple[str, ...]:
    """The captions of a KEY.json: `caption`, a text or a list of texts.

    Raises:
        InvalidSample: It has none.
    """
    match json_object(content).get("caption"):
        case str() as caption:
            return (caption,)
        case list() as captions if captions and all(isinstance(one, str) for one in captions):
            return tuple(captions)
    raise InvalidSample("caption missing", "its .json has no text named caption")


def is_attribute(value: object) -> TypeGuard[Attribute]:
    """Whether a value can be an attribute as it is."""
    if isinstance(value, str):
        return is_text(value)
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def shown_name(name: str) -> str:
    """A file's name as messages show it, with control characters escaped."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], name)


def decode_text(content: bytes) -> str:
    """The text of a caption file.

    Raises:
        InvalidSample: It is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidSample("caption unusable", f"its caption is not UTF-8 ({error})") from error
