"""`mezzotint edit`: variations, interpolations and text edits of real images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from launch.cli.edit_imagic import EXAMPLES, imagic
from launch.cli.options import (
    AsJson,
    Device,
    ForcePreprocessing,
    ImageFilter,
    ImageFit,
    ImageOut,
    Processes,
)

if TYPE_CHECKING:
    from launch.edit.run import EditOptions, EditReport

edit_app = typer.Typer(
    help="Edit images with trained systems.", no_args_is_help=True, rich_markup_mode="rich"
)

Where = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A pipeline's run with an unclip system, or the run or directory of its decoder.",
    ),
]
System = Annotated[
    str | None, typer.Option(help="A pipeline's evaluate stage; its first unclip system.")
]
Clip = Annotated[
    str | None, typer.Option(help="Where the CLIP is now, if not where the system says.")
]
Caption = Annotated[
    list[str] | None,
    typer.Option(help="What the images show, for a decoder of captions: once for all, or each."),
]
Steps = Annotated[int, typer.Option(help="Steps of DDIM, each way.", min=1)]
Guidance = Annotated[
    float,
    typer.Option(help="Guidance of the decoder, each way; 1, none, is the most exact.", min=0),
]
Start = Annotated[
    float,
    typer.Option(help="Timestep at which images are taken as noisy ones.", min=0, max=0.9),
]
Seed = Annotated[int, typer.Option(help="Same seed, same images.", min=0)]
Batch = Annotated[int, typer.Option(help="Images generated together.", min=1)]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"], typer.Option(help="fp32 inverts most exactly.")
]


def _options(
    out: Path,
    system: str | None,
    clip: str | None,
    caption: list[str] | None,
    sampling: tuple[int, float, float, int, int],
    device: str | None,
    processes: int | None,
    precision: Literal["auto", "fp32", "bf16"],
    preprocessing: tuple[str | None, str | None, bool],
    *,
    as_json: bool,
) -> "EditOptions":
    """`sampling` is steps, guidance, start, seed and batch."""
    from launch.data.derive_embeddings import clip_source
    from launch.edit.run import EditOptions
    from mezzotint.common.preprocessing import StatedPreprocessing
    from mezzotint.inference.unclip.edits import EditSettings

    image_fit, image_filter, force = preprocessing
    return EditOptions(
        out=out,
        settings=EditSettings(*sampling),
        captions=tuple(caption or ()),
        system=system,
        clip=None if clip is None else clip_source(clip),
        device=device,
        processes=processes,
        precision=precision,
        show_progress=not as_json,
        preprocessing=StatedPreprocessing.of_options(image_fit, image_filter, force=force),
    )


def _print(report: "EditReport | None", *, as_json: bool) -> None:
    if report is not None:
        typer.echo(report.to_json() if as_json else report.to_text())


@edit_app.command(
    epilog="Example:  [bold]mezzotint edit variations runs/unclip pilot.png --etas 0,0.5,1 "
    "--number 3[/]"
)
def variations(
    where: Where,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    etas: Annotated[
        str, typer.Option(help="Noise that DDIM adds: 0 returns the image itself.")
    ] = "0,0.25,0.5,0.75,1",
    number: Annotated[int, typer.Option(help="Images for each eta.", min=1)] = 2,
    out: ImageOut = Path("variations.png"),
    system: System = None,
    clip: Clip = None,
    caption: Caption = None,
    steps: Steps = 50,
    guidance: Guidance = 1.0,
    start: Start = 0.03,
    seed: Seed = 0,
    batch: Batch = 16,
    device: Device = None,
    processes: Processes = None,
    precision: Precision = "fp32",
    *,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Images with the same CLIP embedding: what the embedding does not say changes with eta."""
    from launch.edit.run import run_edit
    from launch.edit.strips import Variations, parse_numbers

    options = _options(out, system, clip, caption, (steps, guidance, start, seed, batch), device,
                       processes, precision, (image_fit, image_filter, force_preprocessing),
                       as_json=as_json)  # fmt: skip
    edit = Variations(parse_numbers("--etas", etas), number)
    _print(run_edit("variations", where, images, edit, options), as_json=as_json)


@edit_app.command(
    epilog="Example:  [bold]mezzotint edit interpolate runs/unclip pilot.png cook.png "
    "--between 5[/]"
)
def interpolate(
    where: Where,
    images: Annotated[list[Path], typer.Argument(help="Two image files.")],
    between: Annotated[int, typer.Option(help="Images between both.", min=1)] = 5,
    out: ImageOut = Path("interpolation.png"),
    system: System = None,
    clip: Clip = None,
    caption: Caption = None,
    steps: Steps = 50,
    guidance: Guidance = 1.0,
    start: Start = 0.03,
    seed: Seed = 0,
    batch: Batch = 16,
    device: Device = None,
    processes: Processes = None,
    precision: Precision = "fp32",
    *,
    noise: Annotated[
        bool, typer.Option(help="Interpolate the inverted noise too; else it is the first's.")
    ] = True,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Images between two, by spherical interpolation of their CLIP embeddings and noise."""
    from launch.edit.run import run_edit
    from launch.edit.strips import Interpolation

    options = _options(out, system, clip, caption, (steps, guidance, start, seed, batch), device,
                       processes, precision, (image_fit, image_filter, force_preprocessing),
                       as_json=as_json)  # fmt: skip
    edit = Interpolation(between, noise)
    _print(run_edit("interpolate", where, images, edit, options), as_json=as_json)


@edit_app.command(
    epilog="Example:  [bold]mezzotint edit textdiff runs/unclip pilot.png --from 'man pilot' "
    "--to 'woman pilot'[/]"
)
def textdiff(
    where: Where,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    source: Annotated[str, typer.Option("--from", help="What the images show.")],
    target: Annotated[str, typer.Option("--to", help="What they should show.")],
    thetas: Annotated[
        str, typer.Option(help="Parts of the angle to the captions' difference; 0 is the image.")
    ] = "0,0.1,0.2,0.3,0.4,0.5",
    out: ImageOut = Path("textdiff.png"),
    system: System = None,
    clip: Clip = None,
    caption: Caption = None,
    steps: Steps = 50,
    guidance: Guidance = 1.0,
    start: Start = 0.03,
    seed: Seed = 0,
    batch: Batch = 16,
    device: Device = None,
    processes: Processes = None,
    precision: Precision = "fp32",
    *,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
    as_json: AsJson = False,
) -> None:
    """Images turned from what one caption says to what another one says (a text difference)."""
    from launch.edit.run import run_edit
    from launch.edit.strips import TextEdit, parse_numbers

    options = _options(out, system, clip, caption, (steps, guidance, start, seed, batch), device,
                       processes, precision, (image_fit, image_filter, force_preprocessing),
                       as_json=as_json)  # fmt: skip
    edit = TextEdit(source, target, parse_numbers("--thetas", thetas))
    _print(run_edit("textdiff", where, images, edit, options), as_json=as_json)


edit_app.command(epilog=EXAMPLES)(imagic)
