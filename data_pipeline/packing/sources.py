"""Opening a source of image-text pairs: a table, a folder of images or tars, a shard set."""

from collections.abc import Sequence

from data_pipeline.manifest import MANIFEST_NAME
from data_pipeline.packing.folders import FolderSource, has_images
from data_pipeline.packing.source import Source
from data_pipeline.packing.tables import Columns, is_table, open_table, open_tables, tables_in
from data_pipeline.packing.tars import SetSource, TarSource
from mezzotint.common import storage
from mezzotint.common.errors import UserError

_TARS = (".tar", ".tar.gz")


def open_source(
    url: str, *, image_column: str, caption_column: str, attribute_columns: Sequence[str]
) -> Source:
    """Open a table (by its suffix), a shard set, or a folder of tables, tars or images.

    Raises:
        UserError: There is none of them.
    """
    columns = Columns(image_column, caption_column, tuple(attribute_columns))
    if is_table(url) and not (storage.is_local(url) and storage.local_path(url).is_dir()):
        return open_table(url, columns)
    if storage.is_file(url):
        raise UserError(
            f"{url}: give a folder of images with .txt captions, a .csv, .tsv, .jsonl, .json, "
            ".parquet or .arrow table, or a folder of tables or tar shards"
        )
    files = storage.walk(url).files
    if not files:
        raise UserError(f"{url}: no such folder, or an empty one")
    tars = {name: size for name, size in files.items() if name.endswith(_TARS)}
    if tars and MANIFEST_NAME in files:
        return SetSource(url)
    if tars:
        return TarSource(url, tars)
    if tables_in(files) and not has_images(files):
        return open_tables(url, files, columns)
    return FolderSource(url, files)
