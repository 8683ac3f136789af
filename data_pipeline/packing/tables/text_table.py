"""Tables that are text: reading their file, and their rows in memory."""

import codecs
import gzip
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.packing.source import InvalidSample
from data_pipeline.packing.tables.cells import Table, find, shown
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact

_UNDECODED = re.compile("[\udc80-\udcff]")
_INTEGER = re.compile("0|-?[1-9][0-9]{0,17}")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Content:
    """The text of a file, and the SHA-256 of its bytes."""

    text: str
    digest: str
    valid: bool
    """Whether all of it is UTF-8; else the other bytes are half surrogates, U+DC80 to U+DCFF."""

    def check(self, text: str) -> None:
        """Refuse a part of the text that is not UTF-8.

        Raises:
            InvalidSample: It is not.
        """
        if not self.valid and _UNDECODED.search(text):
            raise InvalidSample("row unreadable", "not UTF-8; write the table as UTF-8")


@dataclass(frozen=True)
class TextRow:
    """A row: its number, and its cells by column or the reason why it cannot be read."""

    number: int
    cells: Mapping[str, object] | InvalidSample


class RowTable(Table):
    """A table in memory."""

    is_text = True

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[TextRow],
        digest: str,
        empty: Sequence[str],
        unit: str,
        image_column: str,
        *,
        untyped: bool = False,
    ) -> None:
        self.columns = columns
        self.rows = rows
        self.digest = digest
        self.empty = empty
        self.untyped = untyped
        """Whether every cell is a text."""
        self._unit = unit
        self._image_column = image_column

    def __len__(self) -> int:
        return len(self.rows)

    def has(self, column: str) -> bool:
        parts = column.split(".")
        return any(".".join(parts[:end]) in self.columns for end in range(1, len(parts) + 1))

    def integers(self, column: str) -> bool:
        """Whether a column holds integers alone, as they are written without change."""
        cells = (row.cells.get(column) for row in self.rows if isinstance(row.cells, Mapping))
        found = {cell for cell in cells if cell is not None}
        return bool(found) and all(_INTEGER.fullmatch(str(cell)) for cell in found)

    def name(self, row: int) -> str:
        name = f"{self._unit} {self.rows[row].number}"
        try:
            image = find(self.cells(row), self._image_column)
        except InvalidSample:
            return name
        if isinstance(image, Mapping):
            image = image.get("path")
        return f"{name}: {shown(redact(image))}" if isinstance(image, str) else name

    def cells(self, row: int) -> Mapping[str, object]:
        cells = self.rows[row].cells
        if isinstance(cells, InvalidSample):
            raise cells
        return cells

    def stamp(self, row: int) -> str:
        cells = self.rows[row].cells
        return sha256(str(cells) if isinstance(cells, InvalidSample) else ascii(cells))


def read_content(url: str) -> Content:
    """The text of a file: UTF-8, UTF-16 with a byte order mark, or either compressed by gzip.

    Raises:
        UserError: It cannot be read or expanded.
    """
    stored = content = storage.read_bytes(url)
    if url.lower().endswith(".gz"):
        try:
            content = gzip.decompress(stored)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{url}: not a whole gzip file ({error}); copy it again") from error
    digest = sha256(stored)
    if content.startswith(_UTF16):
        try:
            return Content(content.decode("utf-16"), digest, valid=True)
        except UnicodeDecodeError as error:
            raise UserError(f"{url}: not UTF-16 ({error}); write it as UTF-8") from error
    text = content.decode("utf-8-sig", errors="surrogateescape")
    return Content(text, digest, valid=_UNDECODED.search(text) is None)
