"""The tables that img2dataset writes beside its tars: a row for every URL, also for failed ones."""

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data_pipeline.manifest import Attribute
from data_pipeline.packing.source import is_attribute
from data_pipeline.tar import is_text
from mezzotint.common import storage
from mezzotint.common.errors import UserError

_TABLE, _STATISTICS = ".parquet", "_stats.json"
_KEY, _STATUS, _SUCCESS = "key", "status", "success"


@dataclass(frozen=True)
class Table:
    """The rows of a tar."""

    columns: Mapping[str, list[object]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    """By key."""
    failed: int = 0
    """Rows whose image is not in the tar, as they say."""

    def attributes(self, key: str) -> dict[str, Attribute]:
        """The strings and integers in the row of a sample."""
        if key not in self.rows:
            return {}
        row = {name: values[self.rows[key]] for name, values in self.columns.items()}
        return {name: value for name, value in row.items() if is_attribute(value) and is_text(name)}


def tables(tars: Iterable[str], present: Iterable[str]) -> dict[str, str]:
    """The table of every tar that has one, `00000.parquet` of `00000.tar`."""
    files = set(present)
    found = {tar: f"{_stem(tar)}{_TABLE}" for tar in tars}
    return {tar: table for tar, table in found.items() if table in files}


def belongs_to(name: str, tars: Iterable[str]) -> bool:
    """Whether a file is a table, or the statistics, of one of the tars."""
    stem = re.sub(rf"({re.escape(_TABLE)}|{re.escape(_STATISTICS)})$", "", name)
    return stem != name and stem in {_stem(tar) for tar in tars}


def _stem(tar: str) -> str:
    return tar.partition(".tar")[0]


def read_table(url: str) -> Table:
    """The table at `url`; without a column of keys it says nothing of the samples.

    Raises:
        UserError: It is damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{url}: reading the table of a tar needs pyarrow; install mezzotint[data], or move "
            "the table away"
        ) from error
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(storage.read_bytes(url)))
        columns: dict[str, list[object]] = table.to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{url}: not a readable Parquet file ({error}); copy it again, or move it away"
        ) from error
    keys = columns.pop(_KEY, [])
    statuses = columns.get(_STATUS, [])
    failed = sum(status != _SUCCESS for status in statuses)
    return Table(columns, {str(key): row for row, key in enumerate(keys)}, failed)
