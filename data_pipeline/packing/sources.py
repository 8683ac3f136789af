"""Sources of image-text pairs: folders, tables, tars and shard sets."""

import csv
import io
import json
import posixpath
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol, TypeGuard

from data_pipeline.cache import ShardCache
from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import MANIFEST_NAME, Attribute, Manifest, SampleEntry, read_manifest
from data_pipeline.shards import ShardReader, check_sizes
from data_pipeline.tar import index_tar, local_tar, read_member
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import CredentialsError, TransientError, redact

Fault = Literal["caption missing", "image missing", "image unreadable"]

_TABLES = (".csv", ".parquet", ".jsonl")
_TARS = (".tar", ".tar.gz")
_HTTP_TIMEOUT = 30
_HTTP_BYTES = 1 << 28
_SCHEMES = ("http", "https", "s3", "gs", "gcs", "abfs", "file")


class InvalidSample(Exception):
    """A sample that cannot be used, and why."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault: Fault = fault


@dataclass(frozen=True)
class SourceSample:
    """An encoded image, its caption, and what else the source has of the sample."""

    image: bytes | None
    """None in a derived set, whose arrays are in `members`."""
    caption: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    key: str | None = None
    """Its key, in a shard set."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """Other members to copy, by extension."""


class Source(Protocol):
    """The samples of a folder, table or set, by index."""

    names: Sequence[str]
    """Names of the samples in reports."""
    identity: str
    """Digest of what is known of the contents without reading all of them."""
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


def open_source(
    url: str, *, image_column: str, caption_column: str, attribute_columns: Sequence[str]
) -> Source:
    """Open a table (by its suffix), a shard set, or a folder of tars or images.

    Raises:
        UserError: There is none of them.
    """
    if url.endswith(_TABLES):
        return TableSource(url, image_column, caption_column, attribute_columns)
    if storage.is_file(url):
        raise UserError(
            f"{url}: give a folder of images with .txt captions, a .csv, .parquet or .jsonl "
            "table, or a folder of tar shards"
        )
    files = storage.walk(url)
    if not files:
        raise UserError(f"{url}: no such folder, or an empty one")
    tars = {name: size for name, size in files.items() if name.endswith(_TARS)}
    if tars and MANIFEST_NAME in files:
        return SetSource(url)
    return TarSource(url, tars) if tars else FolderSource(url, files)


class FolderSource(Source):
    """Images at any depth of a folder, each next to a .txt file of the same name."""

    def __init__(self, url: str, files: Mapping[str, int]) -> None:
        self._url = url
        self._files = files
        images = [name for name in files if _suffix(name) in IMAGE_EXTENSIONS]
        stems = {posixpath.splitext(name)[0] for name in images}
        orphans = [
            name
            for name in files
            if _suffix(name) == "txt" and posixpath.splitext(name)[0] not in stems
        ]
        if not images:
            raise UserError(f"{url}: no .png, .jpg, .jpeg or .webp file in this folder")
        self.names = sorted(images + orphans)
        self.identity = sha256("\n".join(f"{name} {files[name]}" for name in sorted(files)))

    def read(self, index: int) -> SourceSample:
        name = self.names[index]
        text = posixpath.splitext(name)[0] + ".txt"
        if name == text:
            raise InvalidSample("image missing", "a caption file without an image")
        if text not in self._files:
            raise InvalidSample("caption missing", f"its caption file {text} is missing")
        caption = _decode(_fetch(storage.join(self._url, text)))
        return SourceSample(_fetch(storage.join(self._url, name)), caption)


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

    def read(self, index: int) -> SourceSample:
        image = self._images[index]
        if not image:
            raise InvalidSample("image missing", "the image cell is empty")
        content = _fetch(self._resolve(image))
        return SourceSample(content, self._captions[index], self._attributes[index])

    def _resolve(self, image: str) -> str:
        if "://" not in image:
            return image if image.startswith("/") else storage.join(self._directory or ".", image)
        if image.split("://", 1)[0] not in _SCHEMES:
            raise InvalidSample(
                "image missing", f"its URL must start with one of {', '.join(_SCHEMES)}"
            )
        return image


class TarSource(Source):
    """Webdataset tars without a manifest; keys need not be unique."""

    def __init__(self, url: str, tars: Mapping[str, int]) -> None:
        self._stack = ExitStack()
        self._lock = Lock()
        self._current: tuple[str, Path] | None = None
        self._url = url
        self._samples: list[tuple[str, SampleEntry]] = []
        for name in sorted(tars):
            with local_tar(storage.join(url, name)) as tar:
                self._samples += [(name, sample) for sample in index_tar(tar.plain, name)]
        self.names = [f"{name}: {sample.key}" for name, sample in self._samples]
        self.identity = sha256("\n".join(f"{name} {size}" for name, size in sorted(tars.items())))

    def read(self, index: int) -> SourceSample:
        tar, sample = self._samples[index]
        extension = next((one for one in IMAGE_EXTENSIONS if one in sample.members), None)
        if extension is None:
            raise InvalidSample("image missing", "no png, jpg, jpeg or webp member")
        if "txt" not in sample.members:
            raise InvalidSample("caption missing", "no txt member")
        needed = [name for name in (extension, "txt", "json") if name in sample.members]
        with self._lock:
            path = self._local(tar)
            found = {name: read_member(path, *sample.members[name]) for name in needed}
        attributes = json_attributes(found.get("json"))
        return SourceSample(found[extension], _decode(found["txt"]), attributes)

    def close(self) -> None:
        self._stack.close()

    def _local(self, tar: str) -> Path:
        """A local copy of a tar; one is kept, since adjacent samples share a tar."""
        if self._current is None or self._current[0] != tar:
            self._stack.close()
            copy = self._stack.enter_context(local_tar(storage.join(self._url, tar)))
            self._current = tar, copy.plain
        return self._current[1]


class SetSource(Source):
    """A shard set with a manifest; keys, members, attributes and splits are kept."""

    def __init__(self, url: str) -> None:
        self.manifest = manifest = read_manifest(url)
        check_sizes(url, manifest)
        self.names = [sample.key for sample in manifest.samples()]
        self.identity = manifest.fingerprint
        self._samples = manifest.located_samples()
        self._stack = ExitStack()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mezzotint-"))
        # space for two shards: threads may be ahead in the next one
        largest = max(shard.tar_bytes + shard.bytes for shard in manifest.shards)
        self._reader = ShardReader(url, manifest.shards, ShardCache(Path(directory), 2 * largest))
        self._stack.callback(self._reader.close)

    def read(self, index: int) -> SourceSample:
        shard, sample = self._samples[index]
        members = {name: self._reader.read(shard, *at) for name, at in sample.members.items()}
        if "txt" not in members:
            raise InvalidSample("caption missing", "no txt member")
        extension = next((one for one in IMAGE_EXTENSIONS if one in members), None)
        image = members.pop(extension) if extension else None
        caption = _decode(members["txt"])
        return SourceSample(image, caption, sample.attributes, sample.key, members)

    def close(self) -> None:
        self._stack.close()


def json_attributes(content: bytes | None) -> dict[str, Attribute]:
    """The strings and integers at the top level of a KEY.json; none if it is not valid."""
    try:
        fields = json.loads(content or b"{}")
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    return {str(name): value for name, value in fields.items() if _is_attribute(value)}


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


def _fetch(url: str) -> bytes:
    """The content of a file of one sample.

    Raises:
        InvalidSample: There is no such file; errors that concern all samples stay UserErrors.
    """
    try:
        return _get(url) if url.startswith(("http://", "https://")) else storage.read_bytes(url)
    except (CredentialsError, TransientError):
        raise
    except (UserError, OSError, HTTPException) as error:
        raise InvalidSample("image missing", str(error)) from error


def _get(url: str) -> bytes:
    """An image over HTTP, with limits on time and size."""
    with urllib.request.urlopen(url, timeout=_HTTP_TIMEOUT) as response:
        content = bytes(response.read(_HTTP_BYTES + 1))
        if len(content) > _HTTP_BYTES:
            raise OSError(f"more than {_HTTP_BYTES:,} bytes")
        if response.length:  # a read of limited size does not check that the body is complete
            raise OSError(f"the connection ended {response.length:,} bytes early")
    return content


def _attribute(value: object) -> Attribute:
    return value if _is_attribute(value) else str(value)


def _is_attribute(value: object) -> TypeGuard[Attribute]:
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidSample("caption missing", f"its caption is not UTF-8 ({error})") from error


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].removeprefix(".").lower()
