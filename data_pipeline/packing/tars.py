"""Webdataset tars and shard sets as sources."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock

from data_pipeline.cache import ShardCache
from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import SampleEntry, read_manifest
from data_pipeline.packing.source import (
    InvalidSample,
    Source,
    SourceSample,
    decode_text,
    json_attributes,
)
from data_pipeline.shards import ShardReader, check_sizes
from data_pipeline.tar import index_tar, local_tar, read_member
from data_pipeline.text.captions import caption_lines
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.local_files import FileStatus


class TarSource(Source):
    """Webdataset tars without a manifest; keys need not be unique."""

    def __init__(self, url: str, tars: Mapping[str, FileStatus]) -> None:
        self._stack = ExitStack()
        self._lock = Lock()
        self._current: tuple[str, Path] | None = None
        self._url = url
        self._samples: list[tuple[str, SampleEntry]] = []
        ignored: dict[str, list[str]] = {}
        for name in sorted(tars):
            with local_tar(storage.join(url, name)) as tar:
                index = index_tar(tar.plain, name)
            self._samples += [(name, sample) for sample in index.samples]
            for rule, members in index.ignored.items():
                ignored.setdefault(rule, []).extend(f"{name}: {one}" for one in members)
        self.ignored: Mapping[str, Sequence[str]] = ignored
        self.names = [f"{name}: {sample.key}" for name, sample in self._samples]
        self.identity = sha256(
            "\n".join(f"{name} {tuple(status)}" for name, status in sorted(tars.items()))
        )

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
        return SourceSample(found[extension], caption_lines(decode_text(found["txt"])), attributes)

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
        self.ignored: Mapping[str, Sequence[str]] = {}
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
        captions = caption_lines(decode_text(members["txt"]))
        return SourceSample(image, captions, sample.attributes, sample.key, members)

    def close(self) -> None:
        self._stack.close()
