"""Where people have their image-caption pairs: folders, tables, tar sets."""

import csv
import io
import json
import posixpath
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol

from data_pipeline.cache import ShardCache
from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import MANIFEST_NAME, Attribute, Manifest, read_manifest
from data_pipeline.shards import ShardReader, check_sizes
from data_pipeline.tar import TarSample, index_tar, local_tar, read_member
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import CredentialsError, TransientError, redact

Fault = Literal["caption missing", "image missing", "image unreadable"]

_TABLES = (".csv", ".parquet", ".jsonl")
_TARS = (".tar", ".tar.gz")
_WEB_SECONDS = 30
_WEB_BYTES = 1 << 28
_SCHEMES = ("http", "https", "s3", "gs", "gcs", "abfs", "file")


class InvalidSample(Exception):
    """Why one pair cannot be taken."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault: Fault = fault


@dataclass(frozen=True)
class Pair:
    """The bytes of an image file, its caption, and what else is known of it."""

    image: bytes | None
    """None in a derived set, which has arrays among ``members``."""
    caption: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    key: str | None = None
    """The key it has in a set already."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """What else goes into the set as it is, by extension."""


class Source(Protocol):
    """Numbered pairs; ``read`` is called from several threads."""

    @property
    def names(self) -> Sequence[str]:
        """What each pair is called in reports."""
        ...

    @property
    def identity(self) -> str:
        """Digest of what can be known of the contents without reading them all."""
        ...

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of a source that is a shard set."""
        ...

    def read(self, index: int) -> Pair:
        """Pair ``index``; raises BadPair."""
        ...

    def close(self) -> None:
        """Give back what reading needed."""
        ...


def open_source(
    url: str, *, image_column: str, caption_column: str, attribute_columns: Sequence[str]
) -> Source:
    """The source at ``url``: a table by its suffix, else a shard set, tars or images.

    Raises:
        UserError: Nothing of the kind is there.
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
        raise UserError(f"{url}: no such folder, or nothing in it")
    tars = {name: size for name, size in files.items() if name.endswith(_TARS)}
    if tars and MANIFEST_NAME in files:
        return SetSource(url)
    return TarSource(url, tars) if tars else FolderSource(url, files)


@dataclass(frozen=True)
class Part:
    """Some samples of a source."""

    source: Source
    indices: Sequence[int]

    @property
    def names(self) -> Sequence[str]:
        """Names of these samples."""
        return [self.source.names[index] for index in self.indices]

    @property
    def identity(self) -> str:
        """That of the source."""
        return self.source.identity

    @property
    def manifest(self) -> Manifest | None:
        """That of the source."""
        return self.source.manifest

    def read(self, index: int) -> Pair:
        """Pair ``index`` of these."""
        return self.source.read(self.indices[index])

    def close(self) -> None:
        """Close the source."""
        self.source.close()


class FolderSource:
    """Images at any depth of a folder, each beside a .txt of the same name."""

    manifest: Manifest | None = None

    def __init__(self, url: str, files: Mapping[str, int]) -> None:
        self._url = url
        self._files = files
        images = [name for name in files if _suffix(name) in IMAGE_EXTENSIONS]
        described = {posixpath.splitext(name)[0] for name in images}
        orphans = [
            name
            for name in files
            if _suffix(name) == "txt" and posixpath.splitext(name)[0] not in described
        ]
        if not images:
            raise UserError(f"{url}: no .png, .jpg, .jpeg or .webp file in this folder")
        self.names: Sequence[str] = sorted(images + orphans)
        self.identity = _digest(f"{name} {files[name]}" for name in sorted(files))

    def read(self, index: int) -> Pair:
        """Image and caption file ``index``."""
        name = self.names[index]
        text = posixpath.splitext(name)[0] + ".txt"
        if name == text:
            raise InvalidSample("image missing", "a caption file without an image")
        if text not in self._files:
            raise InvalidSample("caption missing", f"its caption file {text} is missing")
        try:
            caption = _text(storage.read_bytes(storage.join(self._url, text)))
            return Pair(storage.read_bytes(storage.join(self._url, name)), caption)
        except (CredentialsError, TransientError):
            raise
        except UserError as error:
            raise InvalidSample("image missing", str(error)) from error

    def close(self) -> None:
        """Nothing to do."""


class TableSource:
    """A CSV, Parquet or JSONL table with an image column (path or URL) and a caption column.

    Relative paths start at the table's directory.
    """

    manifest: Manifest | None = None

    def __init__(
        self, url: str, image_column: str, caption_column: str, attribute_columns: Sequence[str]
    ) -> None:
        content = storage.read_bytes(url)
        rows = _rows(url, content)
        for column in (image_column, caption_column, *attribute_columns):
            if rows and column not in rows[0]:
                raise UserError(
                    f"{url}: no column '{column}'; it has {', '.join(map(str, rows[0]))}"
                )
        if not rows:
            raise UserError(f"{url}: the table has no rows")
        self._directory = posixpath.dirname(url)
        self._images = [str(row.get(image_column) or "") for row in rows]
        self._captions = [str(row.get(caption_column) or "") for row in rows]
        self._attributes = [
            {name: _attribute(row.get(name)) for name in attribute_columns} for row in rows
        ]
        self.names: Sequence[str] = [
            f"row {number}: {redact(image)}" for number, image in enumerate(self._images, 1)
        ]
        self.identity = sha256(content)

    def read(self, index: int) -> Pair:
        """The image and caption of row ``index`` + 1."""
        image = self._images[index]
        if not image:
            raise InvalidSample("image missing", "the image cell is empty")
        url = self._resolve(image)
        try:
            content = (
                _get(url) if url.startswith(("http://", "https://")) else storage.read_bytes(url)
            )
        except (CredentialsError, TransientError):
            raise
        except (UserError, OSError, HTTPException) as error:
            raise InvalidSample("image missing", str(error)) from error
        return Pair(content, self._captions[index], self._attributes[index])

    def close(self) -> None:
        """Nothing to do."""

    def _resolve(self, image: str) -> str:
        if "://" not in image:
            return image if image.startswith("/") else storage.join(self._directory or ".", image)
        if image.split("://", 1)[0] not in _SCHEMES:
            raise InvalidSample(
                "image missing", f"its URL must start with one of {', '.join(_SCHEMES)}"
            )
        return image


class TarSource:
    """Webdataset tars without a manifest. Keys may repeat."""

    manifest: Manifest | None = None

    def __init__(self, url: str, tars: Mapping[str, int]) -> None:
        self._stack = ExitStack()
        self._lock = Lock()
        self._held: tuple[str, Path] | None = None
        self._url = url
        self._samples: list[tuple[str, TarSample]] = []
        for name in sorted(tars):
            with local_tar(storage.join(url, name)) as tar:
                self._samples += [(name, sample) for sample in index_tar(tar.plain, name)]
        self.names: Sequence[str] = [f"{name}: {sample.key}" for name, sample in self._samples]
        self.identity = _digest(f"{name} {size}" for name, size in sorted(tars.items()))

    def read(self, index: int) -> Pair:
        """Sample ``index``; scalar values of its JSON become attributes."""
        tar, sample = self._samples[index]
        extension = next((one for one in IMAGE_EXTENSIONS if one in sample.members), None)
        if extension is None:
            raise InvalidSample("image missing", "no png, jpg, jpeg or webp member")
        if "txt" not in sample.members:
            raise InvalidSample("caption missing", "no txt member")
        wanted = [name for name in (extension, "txt", "json") if name in sample.members]
        with self._lock:
            path = self._local(tar)
            found = {name: read_member(path, sample.members[name]) for name in wanted}
        return Pair(found[extension], _text(found["txt"]), json_attributes(found.get("json")))

    def close(self) -> None:
        """Delete the temporary copy."""
        self._stack.close()

    def _local(self, tar: str) -> Path:
        """Neighbouring samples share a tar, so the copy of one is enough."""
        if self._held is None or self._held[0] != tar:
            self._stack.close()
            copy = self._stack.enter_context(local_tar(storage.join(self._url, tar)))
            self._held = tar, copy.plain
        return self._held[1]


class SetSource:
    """A shard set with its manifest: keys, members, attributes and splits stay what they are."""

    def __init__(self, url: str) -> None:
        manifest = read_manifest(url)
        self.manifest: Manifest | None = manifest
        check_sizes(url, manifest)
        self.names: Sequence[str] = [sample.key for sample in manifest.samples()]
        self.identity = manifest.fingerprint
        self._places = [
            (number, sample)
            for number, shard in enumerate(manifest.shards)
            for sample in shard.samples
        ]
        self._stack = ExitStack()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mezzotint-"))
        # neighbouring samples share a shard; one more is read ahead by the other threads
        largest = max(shard.tar_bytes + shard.bytes for shard in manifest.shards)
        cache = ShardCache(Path(directory), 2 * largest)
        self._reader = ShardReader(url, manifest.shards, cache)
        self._stack.callback(self._reader.close)

    def read(self, index: int) -> Pair:
        """Sample ``index`` with all its members."""
        shard, sample = self._places[index]
        members = {name: self._reader.read(shard, *place) for name, place in sample.members.items()}
        if "txt" not in members:
            raise InvalidSample("caption missing", "no txt member")
        extension = next((one for one in IMAGE_EXTENSIONS if one in members), None)
        image = members.pop(extension) if extension else None
        caption = _text(members["txt"])
        return Pair(image, caption, sample.attributes, sample.key, members)

    def close(self) -> None:
        """Delete the temporary copies."""
        self._stack.close()


def json_attributes(content: bytes | None) -> dict[str, Attribute]:
    """The top-level texts and whole numbers of a KEY.json; nothing of a broken one."""
    try:
        fields = json.loads(content or b"{}")
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    return {
        str(name): value
        for name, value in fields.items()
        if value is None or (isinstance(value, str | int) and not isinstance(value, bool))
    }


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


def _get(url: str) -> bytes:
    """One image from the open web: patient, but not for ever, and not for a file of any size."""
    with urllib.request.urlopen(url, timeout=_WEB_SECONDS) as response:
        content = bytes(response.read(_WEB_BYTES + 1))
        if len(content) > _WEB_BYTES:
            raise OSError(f"more than {_WEB_BYTES:,} bytes")
        if response.length:  # a bounded read does not complain about a short body
            raise OSError(f"the connection ended {response.length:,} bytes early")
    return content


def _attribute(value: object) -> Attribute:
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return value
    return str(value)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidSample("caption missing", f"its caption is not UTF-8 ({error})") from error


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].removeprefix(".").lower()


def _digest(lines: Iterable[str]) -> str:
    return sha256("\n".join(lines))
