"""`mezzotint invert` and `likelihood`: images to noise, and to their density."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import AsJson, Device, Processes

invert_app = typer.Typer()

Model = Annotated[
    str, typer.Argument(help="A training run or a model directory (also s3://) of one model.")
]
Start = Annotated[
    float,
    typer.Option(
        help="Timestep at which images are taken as noisy ones; later for a less exact network.",
        min=0,
        max=0.9,
    ),
]


@invert_app.command(
    epilog="Examples:  [bold]mezzotint invert runs/emoji_base face.png --caption 'man pilot'[/]"
    "  ·  [bold]mezzotint sample runs/emoji_base 'woman pilot' --from-noise "
    "inverted.safetensors[/]"
)
def invert(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    caption: Annotated[
        list[str] | None, typer.Option(help="What they show: once for all, or once each.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Their class, by name or number.")
    ] = None,
    steps: Annotated[str, typer.Option(help="Numbers of steps to compare.")] = "10,25,50,100",
    times: Annotated[str, typer.Option(help="Time grid.")] = "log_snr",
    start: Start = 0.02,
    out: Annotated[Path, typer.Option(help="Where the grid goes.")] = Path("inverted.png"),
    noise: Annotated[
        Path | None, typer.Option(help="Where the noise goes; beside the grid by default.")
    ] = None,
    device: Device = None,
    processes: Processes = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Find the noise from which DDIM generates images, and report how well it does."""
    from launch.sampling.invert import InvertOptions, parse_steps
    from launch.sampling.invert import invert as invert_images

    options = InvertOptions(
        captions=tuple(caption or ()),
        classes=tuple(classes or ()),
        steps=parse_steps(steps),
        times=times,
        start=start,
        out=out,
        noise=noise or out.with_suffix(".safetensors"),
        device=device,
        processes=processes,
        show_progress=not as_json,
    )
    report = invert_images(model, images, options)
    if report is not None:
        typer.echo(report.to_json() if as_json else report.to_text())


@invert_app.command(
    epilog="Example:  [bold]mezzotint likelihood runs/emoji_base data/emoji --split composition "
    "--limit 64[/]"
)
def likelihood(
    model: Model,
    data: Annotated[str, typer.Argument(help="A set of images.")],
    split: Annotated[
        str | None, typer.Option(help="NAME (its test part) or NAME/train; all by default.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Images, chosen by the seed.", min=2)] = 64,
    steps: Annotated[int, typer.Option(help="Heun steps.", min=2)] = 64,
    start: Start = 0.02,
    probes: Annotated[int, typer.Option(help="Random vectors of the estimate.", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of choice, dequantisation and probes.", min=0)] = 0,
    device: Device = None,
    processes: Processes = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Bits per dimension of a set's images, by the probability-flow ODE, with an interval."""
    from evaluation.metrics.likelihood import Integration
    from launch.sampling.likelihood import LikelihoodOptions, evaluate_likelihood

    options = LikelihoodOptions(
        url=data,
        split=split,
        limit=limit,
        integration=Integration(steps, start, probes, seed, batch),
        device=device,
        processes=processes,
        show_progress=not as_json,
    )
    result = evaluate_likelihood(model, options)
    if result is not None:
        typer.echo(result.to_json() if as_json else result.to_text())
