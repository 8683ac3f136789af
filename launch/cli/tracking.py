"""`mezzotint tracking`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import AsJson, Runs

tracking_app = typer.Typer(help="Synchronize runs with MLflow.", no_args_is_help=True)


@tracking_app.callback()
def tracking() -> None:
    """Synchronize runs with MLflow."""


@tracking_app.command(
    epilog="Examples:  [bold]mezzotint tracking sync quickstart[/]  ·  "
    "[bold]MLFLOW_TRACKING_URI=http://tracking:5000 mezzotint tracking sync runs/try --json[/]"
)
def sync(
    run: Annotated[
        str, typer.Argument(help="A run: its name, or the path of its directory or a stage's.")
    ],
    runs: Runs = Path("runs"),
    *,
    as_json: AsJson = False,
) -> None:
    """Upload to MLflow what it has not received of a run, such as while a server was down."""
    from launch.tracking.sync import sync_run

    named = runs / run
    report = sync_run(named if named.is_dir() else Path(run))
    typer.echo(report.to_json() if as_json else report.to_text())
