"""CSV tables, read strictly: every line is in a row, or in a row that is rejected by its number.

The separator is that of the header. A quoted field may hold separators and line breaks, and two
quotes for one (RFC 4180). A quote that is not closed costs the line on which it begins.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data_pipeline.packing.source import InvalidSample
from data_pipeline.packing.tables.cells import prefixes, shown
from data_pipeline.packing.tables.text_table import Content, RowTable, TextRow
from mezzotint.common.errors import UserError

_SEPARATORS = (",", ";", "\t", "|")
_QUOTED_MAX = 1 << 20
"""Characters of a quoted field; a longer one is taken for a quote that is not closed."""
_STATED = re.compile('"?sep=([^"\r\n])"?\r?\n')
"""A first line by which spreadsheets state the separator."""
MISSING = frozenset({"", "nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "#N/A"})
"""What programs write into a CSV table for no value."""
_DIGIT = re.compile("[0-9]")
_LOCATION = re.compile(r'^"?\w+://|\.(png|jpe?g|webp|gif|bmp|tiff?|avif)"?$', re.IGNORECASE)


class _BadRow(Exception):
    """A row that breaks the format, and why."""


@dataclass(frozen=True)
class _Dialect:
    """How fields and rows end."""

    separator: str
    line_end: str
    """A line feed, with or without a carriage return before it; without any, carriage returns."""
    skip_space: bool = False
    """Whether spaces after a separator belong to no field."""


@dataclass(frozen=True)
class _Header:
    names: tuple[str, ...]
    image: int | None
    """The index of the image column."""
    dialect: _Dialect
    end: int
    """Offset of the first row."""


def csv_table(url: str, content: Content, columns: Sequence[str], image_column: str) -> RowTable:
    """A CSV table with a header. Only the cells of `columns` are kept; None for no value.

    Raises:
        UserError: The header cannot be read, or two of `columns` have the same name.
    """
    text = content.text
    header = _header(url, content, columns, image_column)
    kept = [index for index, name in enumerate(header.names) if name in prefixes(columns)]
    rows: list[TextRow] = []
    empty: list[str] = []
    for number, record in _records(text, header):
        if isinstance(record, _BadRow):
            rows.append(TextRow(number, InvalidSample("row unreadable", str(record))))
        elif not record:
            empty.append(f"line {number}")
        else:
            cells = {header.names[index]: _cell(record[index]) for index in kept}
            rows.append(_checked(content, TextRow(number, cells)))
    names = tuple(name or f"(column {index})" for index, name in enumerate(header.names, 1))
    return RowTable(names, rows, content.digest, empty, "line", image_column, untyped=True)


def _cell(text: str) -> str | None:
    return None if text in MISSING else text


def _checked(content: Content, row: TextRow) -> TextRow:
    try:
        for cell in () if isinstance(row.cells, InvalidSample) else row.cells.values():
            content.check(str(cell))
    except InvalidSample as error:
        return TextRow(row.number, error)
    return row


def _header(url: str, content: Content, columns: Sequence[str], image_column: str) -> _Header:
    """The header by the separator that gives the most of `columns`, then the most columns."""
    text = content.text
    line_end = "\n" if "\n" in text or "\r" not in text else "\r"
    start, stated = 0, _STATED.match(text)
    if stated:
        start = stated.end()
    while text.startswith(("\n", "\r"), start):
        start += 1
    found: list[tuple[list[str], _Dialect, int]] = []
    error: Exception | None = None
    for separator in (stated[1],) if stated else _SEPARATORS:
        dialect = _Dialect(separator, line_end)
        try:
            fields, end = _record(text, start, dialect)
            if len(fields) > 1 and all(one.startswith(" ") for one in fields[1:]):
                dialect = replace(dialect, skip_space=True)
                fields, end = _record(text, start, dialect)
            content.check("".join(fields))
        except (_BadRow, InvalidSample) as bad:
            error = bad
            continue
        found.append(([one.strip() for one in fields], dialect, end))
    if not found:
        raise UserError(f"{url}: the first line must name the columns: {error}")
    wanted = prefixes(columns)
    names, dialect, end = max(found, key=lambda one: (len(wanted & set(one[0])), len(one[0])))
    for name, count in Counter(names).items():
        if count > 1 and name in wanted:
            raise UserError(
                f"{url}: {count} columns have the name '{shown(name)}'; rename all but one"
            )
    image = names.index(image_column) if image_column in names else None
    return _Header(tuple(names), image, dialect, end)


def _records(text: str, header: _Header) -> Iterator[tuple[int, list[str] | _BadRow]]:
    """Rows with the number of their first line; of an empty line no fields."""
    start, dialect = header.end, header.dialect
    line = 1 + text.count(dialect.line_end, 0, start)
    while start < len(text):
        record: list[str] | _BadRow
        try:
            record, end = _record(text, start, dialect)
            if record:
                _check(record, header)
        except _BadRow as bad:
            # what follows on later lines may be sound
            record, end = bad, _after_line(text, start, dialect)
        yield line, record
        line += text.count(dialect.line_end, start, end)
        start = end


def _check(record: Sequence[str], header: _Header) -> None:
    """Refuse a row that has not one field for each column, or fields that hold other rows."""
    if header.image is not None and len(record) > header.image:
        for field in record:
            if header.dialect.line_end in field:
                _check_lines(field, record[header.image], header)
    if len(record) != len(header.names):
        fields = f"{len(record)} field{'s' if len(record) != 1 else ''}"
        raise _BadRow(f"{fields}, but the header has {len(header.names)}")


def _check_lines(field: str, image: str, header: _Header) -> None:
    """Refuse a field with a later line that reads like a row: a quote was not closed before it.

    Such a line has as many fields as there are columns, and in that of the image a path with the
    suffix of one, a URL, or what differs from `image` in its digits only.
    """
    for line in field.split(header.dialect.line_end)[1:]:
        parts = line.split(header.dialect.separator)
        if len(parts) == len(header.names) > 1:
            other = parts[header.image or 0].strip()
            same = bool(other) and _DIGIT.sub("0", other) == _DIGIT.sub("0", image)
            if same or _LOCATION.search(other):
                raise _BadRow("a quote seems not to be closed: the field goes on over a whole row")


def _record(text: str, start: int, dialect: _Dialect) -> tuple[list[str], int]:
    """The fields of the row at `start` and the offset behind it; no fields of an empty line.

    Raises:
        _BadRow: A quote is not closed, or text follows a closing quote.
    """
    after = _after_line(text, start, dialect)
    line = _without_end(text[start:after], dialect)
    if not line.strip(" \t\r") and dialect.separator not in line:
        return [], after
    if '"' not in line and not dialect.skip_space:
        return line.split(dialect.separator), after
    fields: list[str] = []
    at = start
    while True:
        while dialect.skip_space and text.startswith(" ", at):
            at += 1
        after = _after_line(text, at, dialect)
        if text.startswith('"', at):
            field, at = _quoted(text, at)
            after = _after_line(text, at, dialect)
            rest = _without_end(text[at:after], dialect)
            if rest and not rest.startswith(dialect.separator):
                raise _BadRow("a quote is not closed, or text follows a closing quote")
        else:
            rest = _without_end(text[at:after], dialect)
            field = rest.split(dialect.separator, 1)[0]
            at, rest = at + len(field), rest[len(field) :]
        fields.append(field)
        if not rest:
            return fields, after
        at += len(dialect.separator)


def _quoted(text: str, start: int) -> tuple[str, int]:
    """The content of the quoted field that begins at `start`, and the offset behind it."""
    at = start + 1
    while (at := text.find('"', at, start + _QUOTED_MAX)) >= 0:
        if not text.startswith('"', at + 1):
            return text[start + 1 : at].replace('""', '"'), at + 1
        at += 2
    raise _BadRow("a quote is not closed")


def _after_line(text: str, start: int, dialect: _Dialect) -> int:
    found = text.find(dialect.line_end, start)
    return len(text) if found < 0 else found + len(dialect.line_end)


def _without_end(line: str, dialect: _Dialect) -> str:
    """A line without its end, of which a carriage return may be a part."""
    return line.removesuffix(dialect.line_end).removesuffix("\r")
