"""`mezzotint average`: another average of a finished run's weights."""

from pathlib import Path
from typing import Annotated

import typer

averaging_app = typer.Typer()


@averaging_app.command(
    epilog="Examples:  [bold]mezzotint average runs/emoji_class --sigma-rel 0.15[/]  ·  "
    "[bold]mezzotint average runs/emoji_class --sigma-rel 0.05 --update 4000 --out early --json[/]"
)
def average(
    run: Annotated[Path, typer.Argument(help="The directory of a run with ema kind power.")],
    sigma_rel: Annotated[
        float, typer.Option(help="Relative width: 0.05 follows the weights, 0.25 smooths most.")
    ],
    update: Annotated[
        int | None, typer.Option(help="Where it ends; by default at the last snapshot.", min=1)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The model directory; by default beside the run's own.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a model of another average, from the snapshots that a run has kept."""
    from launch.weights.ema import average_run

    made = average_run(run, sigma_rel, update, out)
    typer.echo(made.to_json() if as_json else made.to_text())
