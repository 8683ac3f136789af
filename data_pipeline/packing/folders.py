"""Folders of images with captions beside them."""

import posixpath
from collections.abc import Iterable, Mapping, Sequence

from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.packing.fetch import fetch
from data_pipeline.packing.source import (
    InvalidSample,
    Source,
    SourceSample,
    decode_text,
)
from data_pipeline.text.captions import caption_lines
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.local_files import FileStatus


class FolderSource(Source):
    """Images at any depth of a folder, each next to a .txt file of the same name."""

    def __init__(self, url: str, files: Mapping[str, FileStatus]) -> None:
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
        self.ignored: Mapping[str, Sequence[str]] = {}
        self.identity = sha256(
            "\n".join(f"{name} {files[name].size} {files[name].stamp}" for name in sorted(files))
        )

    def read(self, index: int) -> SourceSample:
        name = self.names[index]
        text = posixpath.splitext(name)[0] + ".txt"
        if name == text:
            raise InvalidSample("image missing", "a caption file without an image")
        if text not in self._files:
            raise InvalidSample("caption missing", f"its caption file {text} is missing")
        captions = caption_lines(decode_text(fetch(storage.join(self._url, text))))
        return SourceSample(fetch(storage.join(self._url, name)), captions)


def has_images(names: Iterable[str]) -> bool:
    """Whether an image file is among them."""
    return any(_suffix(name) in IMAGE_EXTENSIONS for name in names)


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].removeprefix(".").lower()
