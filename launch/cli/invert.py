"""`mezzotint invert` and `likelihood`: a diffusion model looked at from the other end."""

from pathlib import Path
from typing import Annotated

import typer

invert_app = typer.Typer()

Model = Annotated[
    str, typer.Argument(help="A training run or a model directory (also s3://) of one model.")
]
Start = Annotated[
    float,
    typer.Option(
        help="The time a picture is taken for: later for a network that is less exact.",
        min=0,
        max=0.9,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@invert_app.command(
    epilog="Examples:  [bold]mezzotint invert runs/emoji_base face.png --caption 'man pilot'[/]"
    "  ·  [bold]mezzotint sample runs/emoji_base 'woman pilot' --from-noise "
    "inverted.safetensors[/]"
)
def invert(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Picture files.")],
    caption: Annotated[
        list[str] | None, typer.Option(help="What they show: once for all, or once each.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Their class, by name or number.")
    ] = None,
    steps: Annotated[str, typer.Option(help="Numbers of steps to compare.")] = "10,25,50,100",
    times: Annotated[str, typer.Option(help="Grid of times.")] = "log_snr",
    start: Start = 0.02,
    out: Annotated[Path, typer.Option(help="Where the sheet goes.")] = Path("inverted.png"),
    noise: Annotated[
        Path | None, typer.Option(help="Where the noise goes; beside the sheet by default.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Find the noise that DDIM draws pictures from, and report how well it draws them again."""
    from launch.sampling.invert import Inverting, invert, whole_numbers

    options = Inverting(
        captions=tuple(caption or ()),
        classes=tuple(classes or ()),
        steps=whole_numbers("steps", steps),
        times=times,
        start=start,
        out=out,
        noise=noise or out.with_suffix(".safetensors"),
        shows_progress=not as_json,
    )
    inverted = invert(model, images, options)
    typer.echo(inverted.to_json() if as_json else inverted.to_text())


@invert_app.command(
    epilog="Example:  [bold]mezzotint likelihood runs/emoji_base data/emoji --split composition "
    "--limit 64[/]"
)
def likelihood(
    model: Model,
    data: Annotated[str, typer.Argument(help="A set of pictures.")],
    split: Annotated[
        str | None, typer.Option(help="NAME (its test part) or NAME/train; all by default.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Pictures, chosen by the seed.", min=2)] = 64,
    steps: Annotated[int, typer.Option(help="Heun steps.", min=2)] = 64,
    start: Start = 0.02,
    probes: Annotated[int, typer.Option(help="Random vectors of the estimate.", min=1)] = 1,
    batch: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of choice, dequantisation and probes.", min=0)] = 0,
    *,
    as_json: AsJson = False,
) -> None:
    """Bits per dimension of a set's pictures, by the probability-flow ODE, with an interval."""
    from evaluation.metrics.likelihood import Integration
    from launch.sampling.likelihood import weigh

    weighed = weigh(
        model,
        data,
        split=split,
        limit=limit,
        integration=Integration(steps, start, probes, seed, batch),
        shows_progress=not as_json,
    )
    typer.echo(weighed.to_json() if as_json else weighed.to_text())
