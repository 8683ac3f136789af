"""`mezzotint data`: make, inspect and verify shard sets."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import (
    AsJson,
    Device,
    ForcePreprocessing,
    ImageFilter,
    ImageFit,
    Processes,
)


class CaptionLines(StrEnum):
    """What several lines of a caption file are."""

    several = "several"
    one = "one"


class FolderContent(StrEnum):
    """What to read of a folder."""

    images = "images"
    tars = "tars"


data_app = typer.Typer(help="Make, inspect and verify shard sets.", no_args_is_help=True)
Url = Annotated[str, typer.Argument(help="A shard set: a directory or an fsspec URL.")]


@data_app.command(
    epilog="Examples:  [bold]mezzotint data pack photos/ data/photos[/]  ·  "
    "[bold]mezzotint data pack table.csv s3://bucket/set --image-column url --workers 16[/]  ·  "
    "[bold]mezzotint data pack parquet/ data/set --caption-column text "
    "--attribute-columns label,width[/]  ·  "
    "[bold]mezzotint data pack classes/ data/classes --folder-attribute label --folder-caption "
    "--min-size 64[/]  ·  "
    "[bold]mezzotint data pack data/emoji s3://bucket/people --split composition --limit 300[/]"
)
def pack(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of images with .txt captions, table or folder of tables (CSV, JSON Lines, "
            "Parquet, Arrow), shard set, or tars."
        ),
    ],
    out: Annotated[str, typer.Argument(help="The new set: a directory or an fsspec URL.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the set (default: that of a source set).")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Licence of the data (default: that of a source set)."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="From a source set: only SPLIT/train, SPLIT/test, or SPLIT (both)."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Maximum number of pairs, by hash.", min=1)
    ] = None,
    image_column: Annotated[
        str, typer.Option(help="Table column, or COLUMN.FIELD, with image, path or URL.")
    ] = "image",
    caption_column: Annotated[
        str, typer.Option(help="Table column, or COLUMN.FIELD, with the caption or captions.")
    ] = "caption",
    attribute_columns: Annotated[
        list[str] | None,
        typer.Option(help="Table columns to keep as attributes, as A,B or repeated."),
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Samples per shard.", min=1)] = 1000,
    workers: Annotated[int, typer.Option(help="Pairs read in parallel.", min=1)] = 8,
    test_fraction: Annotated[
        float,
        typer.Option(
            help="Fraction of the captions held out, by hash; equal images or captions stay "
            "together.",
            min=0,
            max=0.9,
        ),
    ] = 0.0,
    caption_lines: Annotated[
        CaptionLines,
        typer.Option(help="Lines of a caption file are several captions of the image, or one."),
    ] = CaptionLines.several,
    folder_attribute: Annotated[
        str | None, typer.Option(help="Keep the name of an image's folder as this attribute.")
    ] = None,
    read: Annotated[
        FolderContent | None, typer.Option(help="What to read of a folder that holds both.")
    ] = None,
    min_size: Annotated[
        int, typer.Option(help="Reject images with a shorter side, in pixels.", min=1)
    ] = 1,
    max_aspect: Annotated[
        float | None, typer.Option(help="Reject images more times as long as wide.", min=1)
    ] = None,
    *,
    folder_caption: Annotated[
        bool,
        typer.Option(
            "--folder-caption", help="The folder's name is the caption of images without one."
        ),
    ] = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Remove samples of the finished set that the source no longer has."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pack image-text pairs into shards with a manifest; rejected pairs are listed.

    The same command again adds what is new or changed in the source and tries rejected pairs again.
    """
    from data_pipeline.packing.options import PackOptions
    from launch.data.pack import pack_set, selections

    options = PackOptions(
        name=name,
        licence=licence,
        select=selections(split or []),
        limit=limit,
        image_column=image_column,
        caption_column=caption_column,
        attribute_columns=tuple(
            name for names in attribute_columns or () for name in names.split(",") if name
        ),
        shard_size=shard_size,
        workers=workers,
        test_fraction=test_fraction,
        caption_lines=caption_lines.value,
        folder_attribute=folder_attribute,
        folder_caption=folder_caption,
        read=read.value if read is not None else None,
        min_size=min_size,
        max_aspect=max_aspect,
        update=update,
    )
    typer.echo(pack_set(source, out, options, as_json=as_json))


@data_app.command(
    epilog="Example:  [bold]mezzotint data inspect data/emoji --sheet sheet.png --count 48[/]"
)
def inspect(
    url: Url,
    sheet: Annotated[Path | None, typer.Option(help="Save a contact sheet as PNG.")] = None,
    count: Annotated[int, typer.Option(help="Images on the sheet.", min=1)] = 48,
    *,
    as_json: AsJson = False,
) -> None:
    """Describe a set: counts, sizes, splits, captions, some samples."""
    from launch.data.inspect import inspect_set

    typer.echo(inspect_set(url, sheet, count, as_json=as_json))


@data_app.command(
    epilog="Examples:  [bold]mezzotint data verify s3://bucket/set[/]  ·  "
    "[bold]mezzotint data verify data/photos --images --workers 16[/]"
)
def verify(
    url: Url,
    workers: Annotated[int, typer.Option(help="Samples read in parallel.", min=1)] = 8,
    *,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Decode every image too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every shard with the manifest, byte for byte; captions and arrays are decoded."""
    from launch.data.verify import verify_set

    typer.echo(verify_set(url, images=images, workers=workers, as_json=as_json))


@data_app.command(
    epilog="Examples:  [bold]mezzotint data index my-tars --name mine --licence CC-BY-4.0[/]  ·  "
    "[bold]mezzotint data index s3://bucket/tars --no-images[/]"
)
def index(
    url: Annotated[str, typer.Argument(help="A folder of webdataset tars, or an fsspec URL.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the set (default: as before, else images).")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the data (default: as before, else unknown).")
    ] = None,
    workers: Annotated[int, typer.Option(help="Samples read in parallel.", min=1)] = 8,
    *,
    images: Annotated[
        bool,
        typer.Option(
            "--images/--no-images", help="Decode every image, and exclude what does not decode."
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write the manifest of existing webdataset tars; one that is there keeps what it knows."""
    from data_pipeline.index import IndexOptions
    from launch.data.verify import index_tars

    options = IndexOptions(name=name, licence=licence, images=images, workers=workers)
    typer.echo(index_tars(url, options, as_json=as_json))


@data_app.command(
    epilog="Example:  [bold]mezzotint data tokenizer data/emoji out/tokenizer --vocab 1000[/]"
)
def tokenizer(
    url: Url,
    out: Annotated[
        str, typer.Argument(help="Directory for tokenizer.model, local or an fsspec URL.")
    ],
    vocab: Annotated[int, typer.Option(help="Vocabulary size with special ids.", min=8)] = 1000,
) -> None:
    """Train a sentencepiece BPE tokenizer on a set's captions."""
    from data_pipeline.config import DataConfig
    from data_pipeline.dataset import open_dataset
    from data_pipeline.text.tokenizer import TOKENIZER_NAME, Tokenizer
    from mezzotint.common import storage

    captions = list(open_dataset(DataConfig(url=url)).all_captions())
    path = storage.join(out, TOKENIZER_NAME)
    storage.write_bytes(path, Tokenizer.train(captions, vocab))
    typer.echo(f"{path}: {vocab} pieces from {len(captions):,} captions")


@data_app.command(
    epilog="Examples:  [bold]mezzotint data derive data/emoji out/tokens --model runs/dvae/model[/]"
    "  ·  [bold]mezzotint data derive data/emoji out/latents --model runs/emoji_kl/model[/]"
    "  ·  [bold]mezzotint data derive photos out/padded --model runs/dvae/model --image-fit pad "
    "--force-preprocessing[/]"
)
def derive(
    url: Url,
    out: Annotated[str, typer.Argument(help="The new set: a directory or an fsspec URL.")],
    model: Annotated[str, typer.Option(help="Model directory of an autoencoder.")],
    batch: Annotated[int, typer.Option(help="Images encoded at a time.", min=1)] = 64,
    device: Device = None,
    processes: Processes = None,
    *,
    latents: Annotated[
        bool, typer.Option("--latents", help="Encode latents even if the autoencoder has codes.")
    ] = False,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Encode a set's images as codes or latents; the new set holds the encoder's digest.

    Images are prepared as those were that the model was trained on.
    """
    from launch.data.derive import DeriveOptions, derive_set
    from mezzotint.common.preprocessing import StatedPreprocessing

    stated = StatedPreprocessing.of_options(image_fit, image_filter, force=force_preprocessing)
    options = DeriveOptions(url, out, model, batch, latents, device, processes, as_json, stated)
    report = derive_set(options)
    if report is not None:
        typer.echo(report)
