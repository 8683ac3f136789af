"""Tables of image files, paths or URLs with captions: CSV, JSON Lines, Parquet and Arrow."""

import posixpath
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock
from urllib.parse import urlsplit

from data_pipeline.packing.fetch import HTTP, SCHEMES, Downloader, fetch
from data_pipeline.packing.source import Fault, InvalidSample, Source, SourceSample
from data_pipeline.packing.tables.arrow_table import ArrowTable
from data_pipeline.packing.tables.cells import (
    Table,
    attribute_of,
    captions_of,
    find,
    image_of,
    shown,
)
from data_pipeline.packing.tables.csv_table import csv_table
from data_pipeline.packing.tables.json_table import json_table
from data_pipeline.packing.tables.text_table import RowTable, read_content
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.local_files import local_status

_CSV = (".csv", ".tsv")
_LINES = (".jsonl", ".ndjson")
_JSON = (*_LINES, ".json")
_PARQUET = (".parquet",)
_ARROW = (".arrow", ".feather")
_TEXT = tuple(suffix + packed for suffix in (*_CSV, *_JSON) for packed in ("", ".gz"))
_FAMILIES = {"CSV": _CSV, "JSON Lines": _LINES, "Parquet": _PARQUET, "Arrow": _ARROW}
"""Kinds of tables that a folder may consist of. A .json file there describes the data set."""
_LISTED = 20
"""Columns that a message names."""
_OPEN = 2
"""Arrow tables that are open at a time: threads may be ahead in the next one."""
_PART = re.compile(r"(?P<split>.+)-\d+-of-\d+")
_SPLIT_WORDS = frozenset(
    {
        *("train", "training", "test", "testing", "eval", "evaluation"),
        *("validation", "valid", "val", "dev"),
    }
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used; `name.field` is a field of a column."""

    image: str = "image"
    caption: str = "caption"
    attributes: tuple[str, ...] = ()
    hints: Mapping[str, str] = field(default_factory=dict)
    """Of the images that are hints, by the hint's name."""

    @property
    def all(self) -> tuple[str, ...]:
        used = (self.image, self.caption, *self.attributes, *self.hints.values())
        return tuple(dict.fromkeys(used))


def is_table(url: str) -> bool:
    """Whether a file is a table by its name."""
    return _file_name(url).endswith((*_TEXT, *_PARQUET, *_ARROW))


def tables_in(names: Iterable[str]) -> dict[str, list[str]]:
    """The tables of a folder by their kind."""
    names = list(names)
    found = {
        kind: [name for name in names if name.lower().removesuffix(".gz").endswith(suffixes)]
        for kind, suffixes in _FAMILIES.items()
    }
    return {kind: tables for kind, tables in found.items() if tables}


def open_table(url: str, columns: Columns) -> "TableSource":
    """The source of one table.

    Raises:
        UserError: It cannot be read, has no rows, or lacks one of `columns`.
    """
    directory, _, name = url.rpartition("/")
    folder = directory if directory or not url.startswith("/") else "/"
    return TableSource(url, folder, [name], columns, {})


def open_tables(
    url: str, files: Iterable[str], columns: Columns, ignored: Mapping[str, Sequence[str]]
) -> "TableSource":
    """The source of a folder of tables of one kind; `ignored` is what else it holds by rule.

    Raises:
        UserError: As for one table, or the tables are of several kinds.
    """
    found = tables_in(files)
    if len(found) > 1:
        examples = ", ".join(f"{tables[0]} ({kind})" for kind, tables in found.items())
        raise UserError(f"{url}: holds tables of several kinds: {examples}; give one of the files")
    (tables,) = found.values()
    others = sorted(set(files) - set(tables))
    return TableSource(url, url, tables, columns, {**ignored, "file beside the tables": others})


class TableSource(Source):
    """The rows of one or more tables with an image and a caption column.

    Relative paths are relative to the directory of their table. If the names of several files state
    different splits, as `train-00000-of-00002.parquet` does, their rows have the attribute `split`.
    """

    def __init__(
        self,
        url: str,
        folder: str,
        files: Sequence[str],
        columns: Columns,
        ignored: Mapping[str, Sequence[str]],
    ) -> None:
        self._columns = columns
        self._files = files
        self._urls = [storage.join(folder, name) if folder else name for name in files]
        self._tables = [_open(one, columns) for one in self._urls]
        for one, table in zip(self._urls, self._tables, strict=True):
            _check_columns(one, table, columns)
        self._starts = [0, *accumulate(len(table) for table in self._tables)]
        if not self._starts[-1]:
            raise UserError(f"{url}: the table has no rows")
        self._integers = _integer_columns(self._tables, columns)
        splits = {name: _split(name) for name in files}
        self._splits = splits if len(set(splits.values())) > 1 else {}
        self._downloader = Downloader()
        self._lock = Lock()
        self._opened: list[ArrowTable] = []
        self.names: Sequence[str] = _Names(self)
        contents = (
            f"{name} {table.digest}" for name, table in zip(files, self._tables, strict=True)
        )
        self.identity = sha256("\n".join(contents))
        self.ignored = {
            **ignored,
            "column not used": _unused(self._tables, columns),
            "empty line": [
                f"{name}: {line}" if len(files) > 1 else line
                for name, table in zip(files, self._tables, strict=True)
                for line in table.empty
            ],
        }

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        """`line 4: a.png`, after the name of the file if there are several."""
        number, row = self._place(index)
        name = self._tables[number].name(row)
        return f"{shown(self._files[number])}: {name}" if len(self._files) > 1 else name

    def stamp(self, index: int) -> str:
        number, row = self._place(index)
        table = self._tables[number]
        self._hold(table)
        known: list[object] = [table.stamp(row), self._splits.get(self._files[number])]
        known.append(sorted(self._integers))
        for column in (self._columns.image, *self._columns.hints.values()):
            try:
                image = image_of(find(table.cells(row), column)) if table.is_text else None
                url = self._resolve(image, self._urls[number]) if isinstance(image, str) else ""
            except InvalidSample:
                url = ""
            if url and storage.is_local(url):
                known.append(_status(url))
        return sha256(ascii(known))[:32]

    def read(self, index: int) -> SourceSample:
        number, row = self._place(index)
        table = self._tables[number]
        self._hold(table)
        cells = table.cells(row)
        captions = captions_of(find(cells, self._columns.caption))
        attributes = {
            name: attribute_of(self._cell(cells, name), name) for name in self._columns.attributes
        }
        if split := self._splits.get(self._files[number]):
            attributes.setdefault("split", split)
        image = self._image(cells, self._columns.image, number)
        hints = {
            name: self._hint(cells, name, column, number)
            for name, column in self._columns.hints.items()
        }
        return SourceSample(image, captions, attributes, hints=hints)

    def close(self) -> None:
        for table in self._tables:
            table.close()
        self._downloader.close()

    def _image(self, cells: Mapping[str, object], column: str, number: int) -> bytes:
        """The encoded image of a column, in the cell or where it says."""
        image = image_of(find(cells, column))
        if isinstance(image, str):
            return fetch(self._resolve(image, self._urls[number]), self._downloader)
        return image

    def _hint(self, cells: Mapping[str, object], name: str, column: str, number: int) -> bytes:
        try:
            return self._image(cells, column, number)
        except InvalidSample as error:
            fault: Fault = "hint missing" if error.fault == "image missing" else error.fault
            raise InvalidSample(fault, f"hint '{name}': {error}") from error

    def _place(self, index: int) -> tuple[int, int]:
        """The number of a sample's table, and its row there."""
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _hold(self, table: Table) -> None:
        """Close the Arrow tables that were used before the last ones."""
        if isinstance(table, ArrowTable):
            with self._lock:
                if table not in self._opened:
                    self._opened.append(table)
                    for old in self._opened[:-_OPEN]:
                        old.close()
                    self._opened = self._opened[-_OPEN:]

    def _cell(self, cells: Mapping[str, object], column: str) -> object:
        value = find(cells, column)
        return int(value) if column in self._integers and isinstance(value, str) else value

    def _resolve(self, image: str, table: str) -> str:
        """The path or URL of an image."""
        image = image.strip()
        if not _SCHEME.match(image):
            return storage.join(posixpath.dirname(table) or ".", image)
        scheme, rest = image.split("://", 1)
        url = f"{scheme.lower()}://{rest}"
        if not url.startswith(SCHEMES):
            raise InvalidSample(
                "image missing", f"its URL must start with one of {', '.join(SCHEMES)}"
            )
        return url


class _Names(Sequence[str]):
    """The names of the rows, made when they are asked for."""

    def __init__(self, source: TableSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self._source.name(index)


def _open(url: str, columns: Columns) -> Table:
    name = _file_name(url)
    if not name.endswith(_TEXT):
        return ArrowTable(url, columns.all, columns.image)
    content = read_content(url)
    read = csv_table if name.removesuffix(".gz").endswith(_CSV) else json_table
    return read(url, content, columns.all, columns.image)


def _file_name(url: str) -> str:
    """A path or URL in lower case, without what follows the path of an HTTP URL."""
    return (urlsplit(url).path if url.startswith(HTTP) else url).lower()


def _check_columns(url: str, table: Table, columns: Columns) -> None:
    """Refuse a table without one of the columns.

    Raises:
        UserError: It lacks one.
    """
    options = {
        columns.image: "--image-column",
        columns.caption: "--caption-column",
        **dict.fromkeys(columns.attributes, "--attribute-columns"),
        **dict.fromkeys(columns.hints.values(), "--hint-column"),
    }
    for column, option in options.items():
        if not table.has(column):
            if not table.columns:
                raise UserError(f"{url}: the table has no rows and no columns")
            names = ", ".join(map(shown, table.columns[:_LISTED]))
            names += ", ..." if len(table.columns) > _LISTED else ""
            raise UserError(f"{url}: no column '{column}'; it has {names}; choose one by {option}")


def _unused(tables: Iterable[Table], columns: Columns) -> list[str]:
    """The columns that are not used, in order."""
    names = dict.fromkeys(shown(name) for table in tables for name in table.columns)
    used = [f"{column}." for column in columns.all]
    return [name for name in names if not any(one.startswith(f"{name}.") for one in used)]


def _integer_columns(tables: Iterable[Table], columns: Columns) -> frozenset[str]:
    """The attribute columns of CSV tables that hold nothing but integers."""
    texts = [table for table in tables if isinstance(table, RowTable) and table.untyped]
    return frozenset(
        column
        for column in columns.attributes
        if texts and all(one.integers(column) for one in texts)
    )


def _status(path: str) -> object:
    """What is known of a local file without reading it."""
    try:
        return tuple(local_status(storage.local_path(path).stat()))
    except OSError as error:
        return error.errno


def _split(name: str) -> str | None:
    """The split that the path of a table states: `train-00000-of-00002.parquet`, `test/0.csv`."""
    words = re.split(r"[^a-z]+", name.lower())
    known = next((word for word in reversed(words) if word in _SPLIT_WORDS), None)
    part = _PART.match(posixpath.basename(name))
    return known or (part["split"] if part else None)
