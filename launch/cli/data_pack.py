"""`mezzotint data pack`."""

from enum import StrEnum
from typing import Annotated

import typer

from launch.cli.options import AsJson

EXAMPLES = (
    "Examples:  [bold]mezzotint data pack photos/ data/photos --test-fraction 0.05[/]  ·  "
    "[bold]mezzotint data pack table.csv s3://bucket/set --image-column url --workers 16[/]  ·  "
    "[bold]mezzotint data pack parquet/ data/set --caption-column text "
    "--attribute-columns label,width[/]  ·  "
    "[bold]mezzotint data pack classes/ data/classes --folder-attribute label --folder-caption[/]"
    "  ·  [bold]mezzotint data pack photos/ data/large --caption-lines one --min-size 256 "
    "--max-aspect 3 --image-sizes[/]  ·  "
    "[bold]mezzotint data pack mixed/ data/tars --read tars[/]  ·  "
    "[bold]mezzotint data pack photos/ data/photos --update[/]  ·  "
    "[bold]mezzotint data pack fill50k/ data/fill --image-column image --caption-column text "
    "--hint-column edges=conditioning_image[/]  ·  "
    "[bold]mezzotint data pack data/emoji s3://bucket/people --split composition --limit 300[/]"
)


class CaptionLines(StrEnum):
    """What several lines of a caption file are."""

    several = "several"
    one = "one"
    first = "first"


class SplitBy(StrEnum):
    """What of each sample is hashed for a split."""

    caption = "caption"
    image = "image"
    key = "key"


class FolderContent(StrEnum):
    """What to read of a folder."""

    images = "images"
    tars = "tars"


_TABLE, _FOLDER = "Tables", "Folders and tars"
_SET, _IMAGES = "Shard sets as sources", "Images and captions"

Source = Annotated[
    str,
    typer.Argument(
        help="Folder of images with captions beside them, table or folder of tables (CSV, JSON "
        "Lines, Parquet, Arrow), shard set, or tars."
    ),
]
Out = Annotated[str, typer.Argument(help="The new set: a directory or an fsspec URL.")]
Name = Annotated[str | None, typer.Option(help="Name of the set (default: that of a source set).")]
Licence = Annotated[
    str | None, typer.Option(help="Licence of the data (default: that of a source set).")
]
Splits = Annotated[
    list[str] | None,
    typer.Option(help="Only SPLIT/train, SPLIT/test, or SPLIT (both).", rich_help_panel=_SET),
]
Limit = Annotated[int | None, typer.Option(help="Maximum number of pairs, by hash.", min=1)]
ImageColumn = Annotated[
    str,
    typer.Option(help="Column, or COLUMN.FIELD, with image, path or URL.", rich_help_panel=_TABLE),
]
CaptionColumn = Annotated[
    str,
    typer.Option(
        help="Column, or COLUMN.FIELD, with the caption or captions.", rich_help_panel=_TABLE
    ),
]
AttributeColumns = Annotated[
    list[str] | None,
    typer.Option(help="Columns to keep as attributes, as A,B or repeated.", rich_help_panel=_TABLE),
]
HintColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--hint-column",
        metavar="[NAME=]COLUMN",
        help="An image column that is a hint for a control, kept as KEY.NAME.png; in a folder or "
        "tar the files named IMAGE.COLUMN.png. Repeat for more.",
        rich_help_panel=_IMAGES,
    ),
]
ShardSize = Annotated[int, typer.Option(help="Samples per shard.", min=1)]
Workers = Annotated[int, typer.Option(help="Pairs of a shard read in parallel.", min=1)]
Processes = Annotated[
    int | None,
    typer.Option(help="Shards written in parallel (default: the cores, 4 shards for each).", min=1),
]
PartOption = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Write every N-th shard of a new set only, from the I-th on, for instance one part "
        "on each of N nodes; the command without --part finishes the set.",
    ),
]
TestFraction = Annotated[
    float,
    typer.Option(
        help="Fraction held out, by hash of the captions; equal images or captions stay together.",
        min=0,
        max=0.9,
    ),
]
SplitByOption = Annotated[
    SplitBy | None,
    typer.Option(
        help="Hash this of each sample alone, which takes no memory for all of them (default: "
        "captions, and equal images or captions stay together)."
    ),
]
Lines = Annotated[
    CaptionLines,
    typer.Option(
        help="Lines of a caption file are several captions of the image, one, or only the first.",
        rich_help_panel=_IMAGES,
    ),
]
MinSize = Annotated[
    int,
    typer.Option(
        help="Reject images with a shorter side, in pixels.", min=1, rich_help_panel=_IMAGES
    ),
]
MaxAspect = Annotated[
    float | None,
    typer.Option(
        help="Reject images whose longer side is more times the shorter.",
        min=1,
        rich_help_panel=_IMAGES,
    ),
]
ImageSizes = Annotated[
    bool,
    typer.Option(
        "--image-sizes",
        help="Keep width and height of each image as attributes, for data.image.buckets.",
        rich_help_panel=_IMAGES,
    ),
]
FolderAttribute = Annotated[
    str | None,
    typer.Option(
        help="Keep the name of an image's folder as this attribute.", rich_help_panel=_FOLDER
    ),
]
FolderCaption = Annotated[
    bool,
    typer.Option(
        "--folder-caption",
        help="The name of its folder is the caption of an image without one.",
        rich_help_panel=_FOLDER,
    ),
]
Read = Annotated[
    FolderContent | None,
    typer.Option(help="What to read of a folder that holds both.", rich_help_panel=_FOLDER),
]
Update = Annotated[
    bool,
    typer.Option(
        "--update", help="Remove samples of a finished set that the source no longer has."
    ),
]


def pack(
    source: Source,
    out: Out,
    name: Name = None,
    licence: Licence = None,
    split: Splits = None,
    limit: Limit = None,
    image_column: ImageColumn = "image",
    caption_column: CaptionColumn = "caption",
    attribute_columns: AttributeColumns = None,
    hint_column: HintColumns = None,
    shard_size: ShardSize = 1000,
    workers: Workers = 8,
    processes: Processes = None,
    part: PartOption = None,
    test_fraction: TestFraction = 0.0,
    split_by: SplitByOption = None,
    caption_lines: Lines = CaptionLines.several,
    min_size: MinSize = 1,
    max_aspect: MaxAspect = None,
    folder_attribute: FolderAttribute = None,
    read: Read = None,
    *,
    folder_caption: FolderCaption = False,
    image_sizes: ImageSizes = False,
    update: Update = False,
    as_json: AsJson = False,
) -> None:
    """Pack image-text pairs into shards with a manifest; rejected pairs are listed.

    The same command again adds what is new or changed in the source and tries rejected pairs again.
    """
    from data_pipeline.packing.options import PackOptions
    from launch.data import pack as command

    options = PackOptions(
        name=name,
        licence=licence,
        select=command.selections(split or []),
        limit=limit,
        image_column=image_column,
        caption_column=caption_column,
        attribute_columns=command.column_names(attribute_columns or []),
        hint_columns=command.hint_columns(hint_column or []),
        shard_size=shard_size,
        workers=workers,
        processes=processes,
        part=command.pack_part_of(part),
        test_fraction=test_fraction,
        split_by=None if split_by is None else split_by.value,
        caption_lines=caption_lines.value,
        min_size=min_size,
        max_aspect=max_aspect,
        folder_attribute=folder_attribute,
        folder_caption=folder_caption,
        read=read.value if read is not None else None,
        image_sizes=image_sizes,
        update=update,
    )
    typer.echo(command.pack_set(source, out, options, as_json=as_json))
