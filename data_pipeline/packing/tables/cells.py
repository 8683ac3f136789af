"""Values of table cells: captions, images and attributes, each with a strict type."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from data_pipeline.manifest import Attribute
from data_pipeline.packing.source import Fault, InvalidSample

_SHOWN = 100
"""Characters of a cell that a message may show."""
_FIELD, _FIELDS = 20, 5
"""Characters and number of an object's field names that a message may show."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
_LIST = re.compile(r"""\[\s*(['"]).*['"]\s*\]""", re.DOTALL)
"""A list of texts as JSON, Python or numpy write it."""
_LOCATIONS = ("path", "url", "src")
"""Keys of an image cell with fields that say where the image is."""


@dataclass(frozen=True)
class Moment:
    """A date, time or duration of a typed table."""

    text: str


class Table(Protocol):
    """The rows of one table, by number."""

    columns: Sequence[str]
    """Names of the columns, of a table of JSON objects all their keys."""
    digest: str
    """SHA-256 of the file."""
    empty: Sequence[str]
    """Names of the lines that hold nothing."""
    is_text: bool
    """Whether images are paths or URLs, so that rows can be read without images."""

    def __len__(self) -> int: ...

    def has(self, column: str) -> bool:
        """Whether there is such a column, or a field `column.field`."""

    def name(self, row: int) -> str:
        """`line 4` or `row 4`, counted from 1, with the image's path or URL where it is known."""

    def cells(self, row: int) -> Mapping[str, object]:
        """The cells of a row by column; called from several threads.

        Raises:
            InvalidSample: The row cannot be read.
        """

    def stamp(self, row: int) -> str:
        """Differs once the row was changed, and may differ otherwise."""

    def close(self) -> None:
        """Delete temporary files."""
        return


def shown(text: str) -> str:
    """A text as a message shows it: at most about 100 characters, without control characters."""
    cut = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], cut)


def prefixes(columns: Sequence[str]) -> frozenset[str]:
    """The columns, and those in which a name with dots may be a field."""
    parts = [column.split(".") for column in columns]
    return frozenset(".".join(one[:end]) for one in parts for end in range(1, len(one) + 1))


def find(cells: Mapping[str, object], column: str) -> object:
    """The value of a column, or of a field `column.field` of one.

    Raises:
        InvalidSample: The row has none.
    """
    return _field(cells, column, column)


def _field(cell: object, name: str, column: str) -> object:
    """A field of a cell; of a list, the field of each of its elements."""
    match cell:
        case None:
            return None
        case list():
            return [_field(one, name, column) for one in cell]
        case Mapping():
            if name in cell:
                return cell[name]
            parts = name.split(".")
            for end in range(1, len(parts)):
                if (head := ".".join(parts[:end])) in cell:
                    return _field(cell[head], ".".join(parts[end:]), column)
            raise InvalidSample("row unreadable", f"it has no '{shown(column)}'")
    raise InvalidSample("row unreadable", f"'{shown(column)}': a field of {described(cell)}")


def captions_of(cell: object) -> tuple[str, ...]:
    """The captions in a cell: a text, a list of texts, or one written as JSON.

    Raises:
        InvalidSample: It holds something else.
    """
    if cell is None:
        raise InvalidSample("caption missing", "its caption cell is empty")
    if isinstance(cell, str) and _LIST.fullmatch(cell.strip()):
        cell = _list(cell)
    if not isinstance(cell, list):
        return (_caption(cell, "its caption is"),)
    return tuple(_caption(one, "its list of captions holds") for one in cell)


def _list(text: str) -> object:
    """A list that is written as JSON; what programs print of a list is no caption."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSample(
            "caption unusable",
            "its caption is a list that a program printed; write it as JSON, or the table as JSON "
            "Lines or Parquet",
        ) from error


def _caption(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidSample("caption unusable", f"{what} {described(value)}, not a text")
    return _text(value, "caption unusable", "its caption")


def _text(text: str, fault: Fault, what: str) -> str:
    """`text`, which can be written as UTF-8.

    Raises:
        InvalidSample: It holds a NUL or half of a surrogate pair.
    """
    if found := _NOT_TEXT.search(text):
        kind = "a NUL character" if found[0] == "\0" else "half of a surrogate pair"
        raise InvalidSample(fault, f"{what} holds {kind}")
    return text


def image_of(cell: object) -> bytes | str:
    """The encoded image in a cell, or its path or URL.

    Raises:
        InvalidSample: There is neither.
    """
    match cell:
        case None | "" | b"" | []:
            raise InvalidSample("image missing", "its image cell is empty")
        case bytes():
            return cell
        case str():
            if not cell.strip():
                return image_of(None)
            return _text(cell, "image missing", "its image cell")
        case [one]:
            return image_of(one)
        case {"bytes": bytes() as content} if content:
            return content
        case dict():
            found = next((cell[name] for name in _LOCATIONS if cell.get(name)), None)
            if isinstance(found, str):
                return image_of(found)
            raise InvalidSample(
                "image missing",
                f"its image cell is {described(cell)}, and in none of bytes, "
                f"{', '.join(_LOCATIONS)} is an image; name another by --image-column NAME.FIELD",
            )
    raise InvalidSample("image missing", f"its image cell is {described(cell)}")


def attribute_of(cell: object, column: str) -> Attribute:
    """An attribute: a text, an integer or nothing.

    A whole number that a table keeps as a floating-point number is an integer, NaN there is
    nothing, and dates are texts.

    Raises:
        InvalidSample: It has another type.
    """
    what = f"its '{shown(column)}'"
    match cell:
        case None:
            return None
        case str():
            return _text(cell, "attribute unusable", what)
        case bool():
            pass
        case int():
            return cell
        case float() if math.isnan(cell):
            return None
        case float() | Decimal() if cell == cell // 1:
            return int(cell)
        case Moment():
            return cell.text
    raise InvalidSample(
        "attribute unusable",
        f"{what} is {described(cell)}; an attribute is a text or an integer",
    )


def described(value: object) -> str:
    """The type of a value in words."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return "true or false"
        case int() | Decimal():
            return "a number"
        case float():
            return "a number" if math.isfinite(value) else f"a number that is not finite ({value})"
        case str():
            return "a text"
        case bytes():
            return "binary data"
        case list() | tuple():
            return f"a list of {len(value)}"
        case Mapping():
            names = [shown(str(name))[:_FIELD] for name in list(value)[:_FIELDS]]
            more = ", ..." if len(value) > _FIELDS else ""
            return f"an object with the fields {', '.join(names)}{more}" if names else "an object"
        case Moment():
            return "a date or time"
    return f"of the type {type(value).__name__}"
