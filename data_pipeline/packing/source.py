"""What a source of image-text pairs is: samples by index, and an account of what is no sample."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeGuard

from data_pipeline.manifest import Attribute, Manifest

Fault = Literal[
    "caption missing",
    "caption unusable",
    "image missing",
    "image unreadable",
    "download failed",
    "attribute unusable",
    "row unreadable",
]


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
    """Names of what is no sample, by the rule that leaves it out (`hidden`, `empty line`)."""
    manifest: Manifest | None = None
    """For a source that is a shard set."""

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
    try:
        fields = json.loads(content or b"{}")
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    return {str(name): value for name, value in fields.items() if is_attribute(value)}


def is_attribute(value: object) -> TypeGuard[Attribute]:
    """Whether a value can be an attribute as it is."""
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def decode_text(content: bytes) -> str:
    """The text of a caption file.

    Raises:
        InvalidSample: It is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidSample("caption missing", f"its caption is not UTF-8 ({error})") from error
