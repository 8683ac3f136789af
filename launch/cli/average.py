"""`mezzotint average`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import AsJson

average_app = typer.Typer()


@average_app.command(
    epilog="Examples:  [bold]mezzotint average runs/emoji_class --sigma-rel 0.15[/]  ·  "
    "[bold]mezzotint average runs/emoji_class --sigma-rel 0.05 --update 4000 --out early --json[/]"
)
def average(
    run: Annotated[Path, typer.Argument(help="The directory of a run with `ema.kind: power`.")],
    sigma_rel: Annotated[
        float, typer.Option(help="Relative width of the EMA: 0.05 is short, 0.25 is long.")
    ],
    update: Annotated[
        int | None, typer.Option(help="The last update; default: the last snapshot's.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The model directory; default: beside the run's own.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Write the model of another EMA length from a run's snapshots (post-hoc EMA)."""
    from launch.weights.ema import average_run

    averaged = average_run(run, sigma_rel, update, out)
    typer.echo(averaged.to_json() if as_json else averaged.to_text())
