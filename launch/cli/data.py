"""`mezzotint data`: make, inspect and verify shard sets."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli import data_derive
from launch.cli.data_pack import EXAMPLES, SplitBy, pack
from launch.cli.options import AsJson, image_path

data_app = typer.Typer(help="Make, inspect and verify shard sets.", no_args_is_help=True)
Url = Annotated[str, typer.Argument(help="A shard set: a directory or an fsspec URL.")]


data_app.command(epilog=EXAMPLES)(pack)
data_app.command(epilog=data_derive.EXAMPLES)(data_derive.derive)


@data_app.command(
    epilog="Examples:  [bold]mezzotint data inspect data/emoji --sheet sheet.png --count 48[/]  ·  "
    "[bold]mezzotint data inspect data/emoji --tokenizer runs/emoji_tokenizer --length 16[/]"
)
def inspect(
    url: Url,
    sheet: Annotated[
        Path | None, typer.Option(help="Save a contact sheet as PNG.", callback=image_path)
    ] = None,
    count: Annotated[int, typer.Option(help="Images on the sheet.", min=1)] = 48,
    images: Annotated[
        int, typer.Option(help="Images decoded for their statistics, evenly spaced.", min=0)
    ] = 2000,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="tokenizer.model or T5's spiece.model: lengths of captions in tokens."),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens: the share of captions that are cut there.", min=1)
    ] = None,
    join: Annotated[
        list[str] | None,
        typer.Option(help="A set of the same keys, whose hints the sheet shows beside the images."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Describe a set: counts, splits and their overlap, captions, images, some samples."""
    from launch.data.inspect import inspect_set

    typer.echo(
        inspect_set(
            url,
            sheet,
            count,
            images=images,
            as_json=as_json,
            tokenizer=tokenizer,
            length=length,
            join=tuple(join or ()),
        )
    )


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
    "[bold]mezzotint data index s3://bucket/tars --no-images[/]  ·  "
    "[bold]mezzotint data index s3://public/tars --out indexes/public[/]"
)
def index(
    url: Annotated[str, typer.Argument(help="A folder of webdataset tars, or an fsspec URL.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Directory for manifest and indexes, for tars that one may only read; it is the "
            "set that recipes name (default: beside the tars)."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the set (default: as before, else images).")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the data (default: as before, else unknown).")
    ] = None,
    test_fraction: Annotated[
        float,
        typer.Option(help="Hold out about this fraction, in a split `random`.", min=0, max=0.99),
    ] = 0.0,
    split_by: Annotated[
        SplitBy, typer.Option(help="What of each sample is hashed for that split.")
    ] = SplitBy.caption,
    workers: Annotated[int, typer.Option(help="Samples of a tar read in parallel.", min=1)] = 8,
    processes: Annotated[
        int | None,
        typer.Option(help="Tars read in parallel (default: the cores, 8 tars for each).", min=1),
    ] = None,
    *,
    images: Annotated[
        bool,
        typer.Option(
            "--images/--no-images", help="Decode every image, and exclude what does not decode."
        ),
    ] = True,
    image_sizes: Annotated[
        bool,
        typer.Option(
            "--image-sizes",
            help="Keep width and height of each image as attributes, for data.image.buckets.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write manifest and indexes of existing webdataset tars; what a manifest knows is kept."""
    from data_pipeline.indexing.options import IndexOptions
    from data_pipeline.sets.split_rule import SplitRule
    from launch.data.verify import index_tars

    options = IndexOptions(
        name=name,
        licence=licence,
        images=images,
        workers=workers,
        processes=processes,
        split=SplitRule(by=split_by.value, fraction=test_fraction) if test_fraction else None,
        out=out,
        image_sizes=image_sizes,
    )
    typer.echo(index_tars(url, options, as_json=as_json))


@data_app.command(
    epilog="Examples:  [bold]mezzotint data dedup s3://bucket/set --sheet groups.png[/]  ·  "
    "[bold]mezzotint data dedup data/photos --exact[/]"
)
def dedup(
    url: Url,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Save the largest groups as images in a PNG.", callback=image_path),
    ] = None,
    bits: Annotated[
        int, typer.Option(help="Bits of the 256 of an image's gradient that may differ, below 8.")
    ] = 7,
    colours: Annotated[
        int, typer.Option(help="Levels by which the colours of its parts may differ.", min=0)
    ] = 12,
    processes: Annotated[
        int | None,
        typer.Option(help="Shards read in parallel (default: the cores, 4 shards each).", min=1),
    ] = None,
    *,
    exact: Annotated[bool, typer.Option("--exact", help="Find equal files only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find equal and nearly equal images, and write a split without them: `deduplicated`."""
    from data_pipeline.duplicates.dedup import DedupOptions
    from launch.data.dedup import dedup_set

    options = DedupOptions(bits, colours, exact, processes)
    typer.echo(dedup_set(url, options, sheet, as_json=as_json))


@data_app.command(
    epilog="Examples:  [bold]mezzotint data tokenizer data/emoji out/tokenizer --vocab 1000[/]  ·  "
    "[bold]mezzotint data tokenizer s3://bucket/set out/tokenizer --vocab 16000 "
    "--character-coverage 0.9995 --byte-fallback[/]"
)
def tokenizer(
    url: Url,
    out: Annotated[
        str, typer.Argument(help="Directory for tokenizer.model, local or an fsspec URL.")
    ],
    vocab: Annotated[int, typer.Option(help="Vocabulary size with special ids.", min=8)] = 1000,
    character_coverage: Annotated[
        float,
        typer.Option(
            help="Share of the characters in the captions, the most frequent first, that are "
            "pieces; others are unknown. 0.9995 for captions in Chinese or Japanese.",
            min=0,
            max=1,
        ),
    ] = 1.0,
    *,
    byte_fallback: Annotated[
        bool,
        typer.Option(
            "--byte-fallback", help="Spell other characters in bytes; takes 256 of the vocabulary."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a sentencepiece BPE tokenizer on all of a set's captions."""
    from data_pipeline.text.train_tokenizer import TokenizerOptions
    from launch.data.tokenizer import train_set

    options = TokenizerOptions(vocab, character_coverage, byte_fallback)
    typer.echo(train_set(url, out, options, as_json=as_json))
