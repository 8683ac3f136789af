"""`mezzotint tracking`: runs and the MLflow server."""

from pathlib import Path
from typing import Annotated

import typer

tracking_app = typer.Typer(help="Runs and the MLflow server.", no_args_is_help=True)


@tracking_app.callback()
def tracking() -> None:
    """Runs and the MLflow server."""


@tracking_app.command(
    epilog="Examples:  [bold]mezzotint tracking sync quickstart[/]  ·  "
    "[bold]MLFLOW_TRACKING_URI=http://tracking:5000 mezzotint tracking sync runs/try --json[/]"
)
def sync(
    run: Annotated[
        str, typer.Argument(help="A run: its name, or the path of its directory or a stage's.")
    ],
    runs: Annotated[Path, typer.Option(help="Where run directories are kept.")] = Path("runs"),
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Send MLflow what it missed of a run while it was down; each step goes once."""
    from launch.tracking.sync import sync_run as send_missing

    named = runs / run
    report = send_missing(named if named.is_dir() else Path(run))
    typer.echo(report.to_json() if as_json else report.to_text())
