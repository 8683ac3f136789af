"""Folders of images with captions beside them."""

import posixpath
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import Attribute
from data_pipeline.packing.fetch import fetch
from data_pipeline.packing.hints import split_hint
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.source import (
    InvalidSample,
    Source,
    SourceSample,
    decode_text,
    json_captions,
    shown_name,
)
from data_pipeline.packing.tables.table_source import tables_in
from data_pipeline.text.captions import caption_lines
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.local_files import FileStatus

_CAPTIONS = ("txt", "caption", "json")
"""Suffixes of caption files, in order of preference."""
_ORPHANS = ("txt", "caption")
"""Suffixes of files that are captions, also without an image."""
_OTHER_IMAGES = {"svg", "gif", "bmp", "tif", "tiff", "avif", "heic", "jxl", "jp2", "tga", "psd"}
"""Suffixes of image files that are not read."""


class FolderSource(Source):
    """Images at any depth of a folder, each next to a caption file of the same name.

    `files` are those to read, of which `linked` are or are below links, `ignored` what else is in
    the folder.
    """

    is_picklable = True

    def __init__(
        self,
        url: str,
        files: Mapping[str, FileStatus],
        ignored: Mapping[str, Sequence[str]],
        linked: Collection[str],
        options: PackOptions,
    ) -> None:
        self._url = url
        self._files = files
        self._options = options
        images = [name for name in files if suffix(name) in IMAGE_EXTENSIONS]
        self._hints, alone = _hint_files(images, options.hint_columns)
        hints = [name for each in self._hints.values() for name in each.values()]
        images = [name for name in images if name not in {*hints, *alone}]
        if not images:
            raise UserError(f"{url}: no .png, .jpg, .jpeg or .webp file in this folder")
        of_stem: dict[str, list[str]] = {}
        for name in images:
            of_stem.setdefault(_stem(name), []).append(name)
        self._captions = _caption_files(files, of_stem)
        if not self._captions and not options.folder_caption:
            _refuse_table(url, files)
        used = {*images, *self._captions.values(), *hints, *alone}
        others = [name for name in files if name not in used]
        self._orphans = {
            name for name in others if suffix(name) in _ORPHANS and _stem(name) not in of_stem
        }
        stems = {_stem(name) for name in self._orphans}
        self._unread = {
            _stem(name): suffix(name)
            for name in others
            if suffix(name) in _OTHER_IMAGES and _stem(name) in stems
        }
        self.names = sorted([*images, *self._orphans])
        beside = [name for name in others if _stem(name) in of_stem and suffix(name) in _CAPTIONS]
        left_out = {*self._orphans, *beside}
        self.ignored = {
            **ignored,
            "file beside another caption file": beside,
            "hint without an image": alone,
            "unrelated file": [name for name in others if name not in left_out],
        }
        self.noticed = {
            "read through a link": [name for name in images if name in linked],
            "the caption file of another image": [
                name
                for stem, same in of_stem.items()
                if stem in self._captions
                for name in same[1:]
            ],
        }
        self.identity = sha256("\n".join(f"{name!a} {tuple(files[name])}" for name in files))

    def stamp(self, index: int) -> str:
        name = self.names[index]
        text = self._captions.get(_stem(name))
        known = [name, self._files[name], text, self._files[text] if text else None]
        for hint in self._hints.get(_stem(name), {}).values():
            known += [hint, self._files[hint]]
        return sha256(ascii(known))[:32]

    def read(self, index: int) -> SourceSample:
        name = self.names[index]
        if name in self._orphans:
            kind = self._unread.get(_stem(name))
            detail = f": .{kind} is not read, convert it to PNG" if kind else ""
            raise InvalidSample("image missing", f"a caption file without an image{detail}")
        captions = self._captions_of(name)
        attributes: dict[str, Attribute] = {}
        if self._options.folder_attribute is not None:
            attributes[self._options.folder_attribute] = self._folder(name)
        hints = {
            hint: fetch(storage.join(self._url, file))
            for hint, file in self._hints.get(_stem(name), {}).items()
        }
        image = fetch(storage.join(self._url, name))
        return SourceSample(image, captions, attributes, hints=hints)

    def _captions_of(self, name: str) -> tuple[str, ...]:
        text = self._captions.get(_stem(name))
        folder = self._folder(name)
        if text is None and self._options.folder_caption and folder:
            return (folder,)
        if text is None:
            missing = shown_name(_stem(name) + ".txt")
            raise InvalidSample("caption missing", f"its caption file {missing} is missing")
        try:
            content = fetch(storage.join(self._url, text))
        except InvalidSample as error:
            raise InvalidSample("caption missing", str(error)) from error
        if suffix(text) == "json":
            return json_captions(content)
        return caption_lines(decode_text(content))

    def _folder(self, name: str) -> str | None:
        """The name of the folder that holds an image, if that is not the source."""
        return shown_name(posixpath.basename(posixpath.dirname(name))) or None


@lru_cache(maxsize=1 << 16)
def suffix(name: str) -> str:
    """The part of a file's name after the last dot, in lower case."""
    return posixpath.splitext(name)[1].removeprefix(".").lower()


@lru_cache(maxsize=1 << 16)
def _stem(name: str) -> str:
    """A name without its suffix, as one Unicode form: archives of macOS hold another one."""
    return unicodedata.normalize("NFC", posixpath.splitext(name)[0])


def _hint_files(
    images: Sequence[str], columns: Mapping[str, str]
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The files of the hints of each stem that images have, by name; and those without an image."""
    parts = {name: split_hint(name, columns) for name in images}
    stems = {_stem(name) for name, part in parts.items() if part is None}
    found: dict[str, dict[str, str]] = {}
    alone = []
    for name, part in parts.items():
        if part is None:
            continue
        stem = unicodedata.normalize("NFC", part[0])
        if stem in stems:
            found.setdefault(stem, {})[part[1]] = name
        else:
            alone.append(name)
    return found, alone


def _refuse_table(url: str, files: Iterable[str]) -> None:
    """Refuse a folder whose captions are in a table beside the images.

    Raises:
        UserError: There is a table.
    """
    tables = [name for kind in tables_in(files).values() for name in kind]
    if tables:
        raise UserError(
            f"{url}: no image has a caption file beside it, but there is {_listed(tables)}: give "
            f"{shown_name(storage.join(url, tables[0]))} as the source, with --image-column and "
            "--caption-column"
        )


def _listed(tables: Sequence[str]) -> str:
    names = ", ".join(map(shown_name, tables[:3])) + (", ..." if len(tables) > 3 else "")
    return f"the table {names}" if len(tables) == 1 else f"a table in {len(tables)} parts ({names})"


def _caption_files(files: Mapping[str, FileStatus], stems: Mapping[str, object]) -> dict[str, str]:
    """The caption file of each stem that images have, where there is one."""
    found: dict[str, str] = {}
    for kind in _CAPTIONS:
        for name in files:
            if suffix(name) == kind and _stem(name) in stems:
                found.setdefault(_stem(name), name)
    return found
