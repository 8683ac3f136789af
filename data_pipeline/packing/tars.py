"""Webdataset tars and shard sets as sources."""

import posixpath
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from types import MappingProxyType

from data_pipeline.cache import ShardCache
from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import SampleEntry
from data_pipeline.packing.hints import split_hint
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.report import by_rule
from data_pipeline.packing.source import (
    InvalidSample,
    Source,
    SourceSample,
    decode_text,
    json_attributes,
    json_captions,
    shown_name,
)
from data_pipeline.sets.stored_set import contents_of, read_set
from data_pipeline.shards import ShardReader, check_sizes, unlisted_files
from data_pipeline.tar import index_tar, local_tar, read_member, split_name
from data_pipeline.text.captions import caption_lines
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.local_files import FileStatus

_GAP = 1024
"""Bytes of padding and header between two members, at most."""
_TEXTS = ("txt", "caption", "json")
"""Extensions of members with captions, in order of preference."""


class TarSource(Source):
    """Webdataset tars without a manifest; keys need not be unique.

    Images and texts are paired by their names without the last extension, so that names with dots
    (`photo.01.jpg`, `photo.01.txt`) are samples of their own.
    """

    def __init__(
        self,
        url: str,
        tars: Mapping[str, FileStatus],
        ignored: Mapping[str, Sequence[str]],
        options: PackOptions,
    ) -> None:
        self._stack = ExitStack()
        self._lock = Lock()
        self._current: tuple[str, Path] | None = None
        self._url = url
        self._tars = tars
        self._options = options
        self._samples: list[tuple[str, SampleEntry]] = []
        left_out: list[tuple[str, str]] = []
        for name in sorted(tars):
            with local_tar(storage.join(url, name)) as tar:
                index = index_tar(
                    tar.plain, shown_name(name), partial(split_pair, columns=options.hint_columns)
                )
            for rule, members in index.ignored.items():
                left_out += [(rule, f"{shown_name(name)}: {one}") for one in members]
            for sample in index.samples:
                used = _used(sample, options.hint_columns)
                left_out += [
                    ("member that is not used", f"{shown_name(name)}: {sample.key}.{one}")
                    for one in sample.members
                    if one not in used
                ]
                if used:
                    self._samples.append((name, sample))
        self.ignored = {**ignored, **by_rule(left_out)}
        self.names = [f"{shown_name(name)}: {sample.key}" for name, sample in self._samples]
        self.identity = sha256(ascii(sorted((name, tuple(one)) for name, one in tars.items())))

    def members_used(self, index: int) -> list[str]:
        """The extensions of the members of a sample that are read."""
        return _used(self._samples[index][1], self._options.hint_columns)

    def stamp(self, index: int) -> str:
        tar, sample = self._samples[index]
        return sha256(ascii([tar, self._tars[tar], sample.key, sample.members]))[:32]

    def read(self, index: int) -> SourceSample:
        tar, sample = self._samples[index]
        members = sample.members
        extension = next((one for one in IMAGE_EXTENSIONS if one in members), None)
        if extension is None:
            raise InvalidSample("image missing", "no png, jpg, jpeg or webp member of this name")
        text = next((one for one in _TEXTS if one in members), None)
        if text is None and not self._options.folder_caption:
            raise InvalidSample("caption missing", "no txt member of this name")
        with self._lock:
            path = self._local(tar)
            found = {name: read_member(path, *members[name]) for name in self.members_used(index)}
        attributes = json_attributes(found.get("json"))
        folder = posixpath.basename(posixpath.dirname(sample.key)) or None
        if self._options.folder_attribute is not None:
            attributes[self._options.folder_attribute] = folder
        if text is None:
            if folder is None:
                raise InvalidSample("caption missing", "no txt member of this name")
            captions: tuple[str, ...] = (folder,)
        elif text == "json":
            captions = json_captions(found[text])
        else:
            captions = caption_lines(decode_text(found[text]))
        hints = {
            hint: found[member]
            for hint in self._options.hint_columns
            if (member := _hint_member(hint, members)) is not None
        }
        return SourceSample(found[extension], captions, attributes, hints=hints)

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

    def __init__(
        self,
        url: str,
        files: Mapping[str, FileStatus],
        ignored: Mapping[str, Sequence[str]],
    ) -> None:
        self.stored = read_set(url)
        check_sizes(self.stored)
        self.contents = contents_of(self.stored)
        self.names = [sample.key for sample in self.contents.samples()]
        self.identity = self.stored.manifest.fingerprint
        others = unlisted_files(self.stored, files)
        self.ignored = {**ignored, "file that is not in the manifest": others}
        self._shards = self.contents.shards
        self._samples = self.contents.located_samples()
        self._stack = ExitStack()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mezzotint-"))
        # space for two shards: threads may be ahead in the next one
        largest = max(shard.tar_bytes + shard.bytes for shard in self._shards)
        self._reader = ShardReader(self.stored, ShardCache(Path(directory), 2 * largest))
        self._stack.callback(self._reader.close)

    def stamp(self, index: int) -> str:
        shard, sample = self._samples[index]
        return sha256(
            ascii([self._shards[shard].sha256, sample.key, sample.members, sample.attributes])
        )[:32]

    def read(self, index: int) -> SourceSample:
        shard, sample = self._samples[index]
        members = self._members(shard, sample)
        if "txt" not in members:
            raise InvalidSample("caption missing", "no txt member")
        extension = next((one for one in IMAGE_EXTENSIONS if one in members), None)
        image = members.pop(extension) if extension else None
        captions = caption_lines(decode_text(members["txt"]))
        return SourceSample(image, captions, sample.attributes, sample.key, members)

    def _members(self, shard: int, sample: SampleEntry) -> dict[str, bytes]:
        """The members of a sample, in one read where nothing else is between them."""
        places = sample.members.values()
        start = min((offset for offset, _ in places), default=0)
        length = max((offset + size for offset, size in places), default=0) - start
        if length > sum(size + _GAP for _, size in places):
            return {name: self._reader.read(shard, *at) for name, at in sample.members.items()}
        content = self._reader.read(shard, start, length)
        return {
            name: content[offset - start : offset - start + size]
            for name, (offset, size) in sample.members.items()
        }

    def close(self) -> None:
        self._stack.close()


def split_pair(
    name: str, columns: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, str] | None:
    """The key and extension of a member: `a/b.c` and `jpg`, but `key` and `codes.npy`.

    The extension of a hint, those of `columns`, is that of its member in a set: `edges.png`.
    """
    split = split_name(name)
    if split is None:
        return None
    if (hint := split_hint(name, columns)) is not None:
        return hint[0], f"{hint[1]}.{name.rpartition('.')[2].lower()}"
    key, _, extension = f"{split[0]}.{split[1]}".rpartition(".")
    return (key, extension) if extension in (*IMAGE_EXTENSIONS, *_TEXTS) else split


def _used(sample: SampleEntry, hints: Iterable[str] = ()) -> list[str]:
    """The members of a sample that packing reads; none of a sample without image and caption."""
    members = sample.members
    image = [one for one in IMAGE_EXTENSIONS if one in members][:1]
    text = [one for one in _TEXTS if one in members][:1]
    if not image and text in ([], ["json"]):
        return []
    found = (_hint_member(hint, members) for hint in hints)
    more = [one for one in found if one is not None] + (["json"] if "json" in members else [])
    return list(dict.fromkeys([*image, *text, *more]))


def _hint_member(hint: str, members: Collection[str]) -> str | None:
    """The extension of the member of a sample that holds a hint."""
    return next((f"{hint}.{one}" for one in IMAGE_EXTENSIONS if f"{hint}.{one}" in members), None)
