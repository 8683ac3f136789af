"""Opening a source of image-text pairs: a table, a folder of images or tars, a shard set."""

from collections.abc import Mapping

from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import MANIFEST_NAME
from data_pipeline.packing.folders import FolderSource, suffix
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.report import by_rule
from data_pipeline.packing.source import Source, shown_name
from data_pipeline.packing.tables.table_source import (
    Columns,
    is_table,
    open_table,
    open_tables,
    tables_in,
)
from data_pipeline.packing.tars import SetSource, TarSource
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.local_files import FileStatus, Listing

_TARS = (".tar", ".tar.gz", ".tgz")
_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}


def open_source(url: str, options: PackOptions) -> Source:
    """Open a table (by its suffix), a shard set, or a folder of tables, tars or images.

    Raises:
        UserError: There is none of them, or a folder holds both tars and images.
    """
    columns = Columns(
        options.image_column,
        options.caption_column,
        tuple(options.attribute_columns),
        options.hint_columns,
    )
    if is_table(url) and not (storage.is_local(url) and storage.local_path(url).is_dir()):
        return open_table(url, columns)
    if storage.is_file(url):
        raise UserError(
            f"{url}: give a folder of images with .txt captions, a .csv, .tsv, .jsonl, .json, "
            ".parquet or .arrow table, or a folder of tables or tars (also for one tar)"
        )
    listing = storage.walk(url)
    files, ignored = _usable(listing)
    if not files:
        left_out = sum(map(len, ignored.values()))
        more = f" ({left_out:,} files with hidden names or of the system)" if left_out else ""
        raise UserError(f"{url}: no such folder, or an empty one{more}")
    tars = {name: status for name, status in files.items() if name.lower().endswith(_TARS)}
    if tars and MANIFEST_NAME in files and options.read is None:
        if options.hint_columns:
            raise UserError(
                f"{url}: is a shard set, whose hints are kept as they are; leave out --hint-column"
            )
        return SetSource(url, files, ignored)
    images = [name for name in files if suffix(name) in IMAGE_EXTENSIONS]
    if images and tars and options.read is None:
        image, tar = shown_name(images[0]), shown_name(next(iter(tars)))
        raise UserError(
            f"{url}: holds {len(images):,} images ({image}, ...) and {len(tars):,} tars "
            f"({tar}, ...); choose with --read images or --read tars"
        )
    if options.read == "tars" or (tars and options.read is None):
        if not tars:
            raise UserError(f"{url}: no .tar, .tar.gz or .tgz file in this folder")
        others = [name for name in files if name not in tars]
        return TarSource(url, tars, {**ignored, "file beside the tars": others}, options)
    if not images and tables_in(files):
        return open_tables(url, files, columns, ignored)
    rest = {name: status for name, status in files.items() if name not in tars}
    return FolderSource(
        url, rest, {**ignored, "tar beside the images": list(tars)}, set(listing.linked), options
    )


def _usable(listing: Listing) -> tuple[Mapping[str, FileStatus], dict[str, list[str]]]:
    """The files that may be samples, and the others by rule."""
    rules = {name: _left_out(name) for name in listing.files}
    ignored = by_rule((rule, name) for name, rule in rules.items() if rule is not None)
    ignored["link to a folder that is read already"] = listing.repeated
    ignored["neither file nor folder"] = listing.special
    return {name: listing.files[name] for name, rule in rules.items() if rule is None}, ignored


def _left_out(name: str) -> str | None:
    """The rule that leaves a file out by its name, if any."""
    parts = name.lower().split("/")
    if any(part.startswith(".") for part in parts):
        return "hidden name"
    if parts[-1] in _SYSTEM_FILES or not _SYSTEM_FOLDERS.isdisjoint(parts):
        return "file of the system"
    return None
