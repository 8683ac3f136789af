"""CSV, Parquet and JSONL tables of image paths or URLs and captions."""

import csv
import io
import json
import posixpath
from collections.abc import Mapping, Sequence

from data_pipeline.manifest import Attribute
from data_pipeline.packing.fetch import fetch
from data_pipeline.packing.source import InvalidSample, Source, SourceSample, is_attribute
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import redact

TABLES = (".csv", ".parquet", ".jsonl")
"""Suffixes of tables."""
_SCHEMES = ("http", "https", "s3", "gs", "gcs", "abfs", "file")


class TableSource(Source):
    """A CSV, Parquet or JSONL table with an image column (path or URL) and a caption column.

    Relative paths are relative to the table's directory.
    """

    def __init__(
        self, url: str, image_column: str, caption_column: str, attribute_columns: Sequence[str]
    ) -> None:
        content = storage.read_bytes(url)
        rows = _rows(url, content)
        if not rows:
            raise UserError(f"{url}: the table has no rows")
        for column in (image_column, caption_column, *attribute_columns):
            if column not in rows[0]:
                raise UserError(
                    f"{url}: no column '{column}'; it has {', '.join(map(str, rows[0]))}"
                )
        self._directory = posixpath.dirname(url)
        self._images = [str(row.get(image_column) or "") for row in rows]
        self._captions = [str(row.get(caption_column) or "") for row in rows]
        self._attributes = [
            {name: _attribute(row.get(name)) for name in attribute_columns} for row in rows
        ]
        self.names = [f"row {row}: {redact(image)}" for row, image in enumerate(self._images, 1)]
        self.identity = sha256(content)
        self.ignored: Mapping[str, Sequence[str]] = {}

    def read(self, index: int) -> SourceSample:
        image = self._images[index]
        if not image:
            raise InvalidSample("image missing", "the image cell is empty")
        content = fetch(self._resolve(image))
        return SourceSample(content, (self._captions[index],), self._attributes[index])

    def _resolve(self, image: str) -> str:
        if "://" not in image:
            return image if image.startswith("/") else storage.join(self._directory or ".", image)
        if image.split("://", 1)[0] not in _SCHEMES:
            raise InvalidSample(
                "image missing", f"its URL must start with one of {', '.join(_SCHEMES)}"
            )
        return image


def _rows(url: str, content: bytes) -> list[dict[str, object]]:
    try:
        if url.endswith(".parquet"):
            import pyarrow.parquet

            table = pyarrow.parquet.read_table(io.BytesIO(content))
            return list(table.to_pylist())
        text = content.decode("utf-8-sig")
        if url.endswith(".csv"):
            return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{url}: not a readable table ({error})") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{url}: every line must be a JSON object")
    return rows


def _attribute(value: object) -> Attribute:
    return value if is_attribute(value) else str(value)
