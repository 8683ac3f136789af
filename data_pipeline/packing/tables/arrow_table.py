"""Parquet and Arrow tables, read in batches, only the columns that are used."""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol

from data_pipeline.packing.source import InvalidSample
from data_pipeline.packing.tables.cells import Moment, Table, shown
from mezzotint.common import downloads, storage
from mezzotint.common.digests import sha256, sha256_file
from mezzotint.common.errors import UserError

if TYPE_CHECKING:
    import pyarrow

_BATCH = 64
"""Rows of a Parquet batch; a row may hold an image of several megabytes."""
_RECENT = 4
"""Batches kept, for threads that ask for rows a little out of order."""


class _File(Protocol):
    """An open file: its schema, its rows, and batches from any row on."""

    schema: pyarrow.Schema
    rows: int

    def batches(self, row: int) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        """Batches with the number of their first row, from the one of `row` or an earlier one."""

    def close(self) -> None:
        """Close the file."""


class ArrowTable(Table):
    """A Parquet file, or an Arrow file or stream. One at a time of a remote one is held locally.

    Raises:
        UserError: It cannot be read, or two columns have the same name.
    """

    empty: Sequence[str] = ()

    def __init__(self, url: str, columns: Sequence[str], image_column: str) -> None:
        self._url = url
        self._wanted = columns
        self._lock = Lock()
        self._stack = ExitStack()
        self._file: _File | None = None
        self._recent: deque[tuple[int, pyarrow.RecordBatch]] = deque(maxlen=_RECENT)
        self._batches: Iterator[tuple[int, pyarrow.RecordBatch]] = iter(())
        self._next = 0
        with self._lock:
            file, path = self._open()
            self.digest = sha256_file(path)
            self._rows = file.rows
            self.schema = file.schema
        self.columns: Sequence[str] = self.schema.names
        self.is_text = _is_text(self.schema, image_column)
        self.close()

    def __len__(self) -> int:
        return self._rows

    def has(self, column: str) -> bool:
        return _leaf(self.schema, column) is not None

    def name(self, row: int) -> str:
        return f"row {row + 1}"

    def cells(self, row: int) -> Mapping[str, object]:
        try:
            with self._lock:
                first, batch = self._batch(row)
        except _errors() as error:
            raise UserError(
                f"{self._url}: row {row + 1} cannot be read ({shown(str(error))}); copy the file "
                "again"
            ) from error
        return {
            name: _value(column[row - first], name)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }

    def stamp(self, row: int) -> str:
        if self.is_text:
            with suppress(InvalidSample):
                return sha256(ascii(self.cells(row)))
        return f"{self.digest} {row}"

    def close(self) -> None:
        with self._lock:
            self._recent.clear()
            self._batches = iter(())
            self._file = None
            self._stack.close()

    def _open(self) -> tuple[_File, Path]:
        path = self._stack.enter_context(_local(self._url))
        try:
            file = _open_file(path, self._url, self._wanted)
        except _errors() as error:
            raise UserError(f"{self._url}: not a readable table ({shown(str(error))})") from error
        self._stack.callback(file.close)
        self._file = file
        return file, path

    def _batch(self, row: int) -> tuple[int, pyarrow.RecordBatch]:
        """The batch of a row, and the number of its first row."""
        for first, batch in self._recent:
            if first <= row < first + batch.num_rows:
                return first, batch
        if self._file is None or row < self._next or not self._recent:
            file = self._file or self._open()[0]
            self._recent.clear()
            self._batches = file.batches(row)
        for first, batch in self._batches:
            self._recent.append((first, batch))
            self._next = first + batch.num_rows
            if row < self._next:
                return first, batch
        raise UserError(f"{self._url}: ends before row {row + 1}; the file has changed")


class _Parquet:
    """A Parquet file; a batch never spans row groups."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        import pyarrow.parquet

        self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
        metadata = self._file.metadata
        self.rows: int = metadata.num_rows
        self.schema = _unique(self._file.schema_arrow)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = [0, *accumulate(sizes)]
        found = (_leaf(self.schema, column) for column in columns)
        self._leaves = [one.path for one in found if one is not None]

    def batches(self, row: int) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        for group, start in enumerate(self._starts[:-1]):
            first = start
            if self._starts[group + 1] <= row:
                continue
            for batch in self._file.iter_batches(
                _BATCH, row_groups=[group], columns=self._leaves, use_threads=False
            ):
                yield first, batch
                first += batch.num_rows

    def close(self) -> None:
        self._file.close()


class _Ipc:
    """An Arrow file, or an Arrow stream as the datasets library writes it."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        with self._reader(()) as reader:
            self.schema = _unique(reader.schema)
        found = (_leaf(self.schema, column) for column in columns)
        names = {one.head for one in found if one is not None}
        self._fields = [index for index, one in enumerate(self.schema.names) if one in names]
        self.rows = sum(batch.num_rows for _, batch in self.batches(0))

    @contextmanager
    def _reader(self, fields: Sequence[int]) -> Iterator[pyarrow.ipc.RecordBatchReader]:
        import pyarrow.ipc

        options = pyarrow.ipc.IpcReadOptions(included_fields=list(fields) or None)
        with pyarrow.OSFile(str(self._path)) as file:
            magic = file.read(6)
            file.seek(0)
            is_file = magic == b"ARROW1"
            opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
            with opened(file, options=options) as reader:
                yield reader

    def batches(self, row: int) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
        first = 0
        with self._reader(self._fields) as reader:
            count = getattr(reader, "num_record_batches", None)
            stored = reader if count is None else map(reader.get_batch, range(count))
            for batch in stored:
                if first + batch.num_rows > row:
                    for column in batch.columns:
                        _check_offsets(column)
                    yield first, batch
                first += batch.num_rows

    def close(self) -> None:
        """Nothing is open between batches."""


def _open_file(path: Path, url: str, columns: Sequence[str]) -> _File:
    try:
        import pyarrow.parquet  # noqa: F401 (to name the extra that is missing)
    except ImportError as error:
        raise UserError(
            f"{url}: reading it needs pyarrow: pip install 'mezzotint[data]'"
        ) from error
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1" or ".parquet" in url.lower()
    return _Parquet(path, columns) if is_parquet else _Ipc(path, columns)


def _errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for a file that is damaged."""
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError)


def _unique(schema: pyarrow.Schema) -> pyarrow.Schema:
    """A schema whose columns have different names.

    Raises:
        ValueError: They have not.
    """
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    if repeated:
        raise ValueError(f"several columns have the name '{repeated[0]}'; rename them")
    return schema


def _is_text(schema: pyarrow.Schema, column: str) -> bool:
    """Whether a column holds texts, and not images."""
    import pyarrow

    leaf = _leaf(schema, column)
    if leaf is None:
        return False
    kind = leaf.type.value_type if pyarrow.types.is_dictionary(leaf.type) else leaf.type
    types = pyarrow.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


class _Leaf(NamedTuple):
    """The part of a schema that a column `name` or `name.field` needs."""

    head: str
    """The column."""
    path: str
    """The column, or what of it can be read alone."""
    type: pyarrow.DataType


def _leaf(schema: pyarrow.Schema, column: str) -> _Leaf | None:
    """Where a column or a field of one is; None: there is none."""
    import pyarrow

    if column in schema.names:
        return _Leaf(column, column, schema.field(column).type)
    parts = column.split(".")
    for end in range(1, len(parts)):
        head = ".".join(parts[:end])
        if head not in schema.names:
            continue
        kind, selected, through_list = schema.field(head).type, head, False
        for part in parts[end:]:
            while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
                kind, through_list = kind.value_type, True
            if not pyarrow.types.is_struct(kind) or kind.get_field_index(part) < 0:
                break
            kind = kind.field(part).type
            selected = selected if through_list else f"{selected}.{part}"
        else:
            return _Leaf(head, selected, kind)
    return None


def _check_offsets(array: pyarrow.Array) -> None:
    """Refuse an array with offsets outside of its data, which pyarrow would follow.

    Raises:
        ArrowInvalid: It has such offsets.
    """
    import pyarrow

    as_bytes = {
        pyarrow.string(): pyarrow.binary(),
        pyarrow.large_string(): pyarrow.large_binary(),
    }.get(array.type)
    if as_bytes is not None:  # each text is decoded on its own
        buffers = array.buffers()
        array = pyarrow.Array.from_buffers(as_bytes, len(array), buffers, offset=array.offset)
    array.validate(full=True)


def _value(scalar: pyarrow.Scalar, column: str) -> object:
    import pyarrow

    try:
        if pyarrow.types.is_temporal(scalar.type):
            return Moment(scalar.cast(pyarrow.string()).as_py()) if scalar.is_valid else None
        return scalar.as_py()
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise InvalidSample(
            "row unreadable", f"'{shown(column)}' is no valid {scalar.type}"
        ) from error


@contextmanager
def _local(url: str) -> Iterator[Path]:
    """A local copy of a file, or the file itself."""
    if storage.is_local(url):
        path = storage.local_path(url)
        if not path.is_file():
            raise UserError(f"{url}: no such file")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mezzotint-") as directory:
        path = Path(directory) / "table"
        downloads.download(url, path)
        yield path
