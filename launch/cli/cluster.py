"""`mezzotint submit`, `status`, `logs` and `cancel`."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import AsJson, ClusterFile, Overrides, Redo, RunName, Runs, StageName

cluster_app = typer.Typer()


@cluster_app.command(
    epilog="Examples:  [bold]mezzotint submit recipes/pipelines/quickstart.yaml "
    "--cluster recipes/clusters/lab.yaml[/]  ·  "
    "[bold]mezzotint submit recipes/emoji_base.yaml batch=64 --cluster gpu.yaml --dry-run[/]"
)
def submit(
    source: Annotated[
        Path, typer.Argument(metavar="RECIPE|PIPELINE", help="What to train, one YAML file.")
    ],
    overrides: Overrides = None,
    *,
    cluster: ClusterFile,
    runs: Runs = Path("runs"),
    redo: Redo = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch scripts; submit nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a recipe or a pipeline to SLURM, one job per stage; the same command resumes it."""
    from launch.slurm.config import load_cluster
    from launch.submit import submit

    loaded = submit.load_source(source, overrides or [])
    result = submit.submit(loaded, load_cluster(cluster), runs, redo=redo or [], dry_run=dry_run)
    typer.echo(result.to_json() if as_json else result.to_text())


@cluster_app.command(
    epilog="Examples:  [bold]mezzotint status quickstart[/]  ·  "
    "[bold]mezzotint status quickstart --watch[/]  ·  [bold]mezzotint status --json[/]"
)
def status(
    run: Annotated[
        str | None,
        typer.Argument(help="A run: its name under --runs, or its directory. Default: all runs."),
    ] = None,
    runs: Runs = Path("runs"),
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every 2 s until all have ended, or Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --watch, a line per change.")
    ] = False,
) -> None:
    """Show the status of runs: jobs, nodes, steps, losses, speed, time left."""
    from launch.status import table
    from launch.status.lookup import all_runs, find_run
    from launch.status.run import RunStatus, query

    def query_runs() -> list[RunStatus]:
        return query(all_runs(runs) if run is None else [find_run(run, runs)])

    show = table.watch if watch else table.show
    show(query_runs, listed=run is None, as_json=as_json)


@cluster_app.command(
    epilog="Examples:  [bold]mezzotint logs quickstart --follow[/]  ·  "
    "[bold]mezzotint logs quickstart dvae --lines 200[/]"
)
def logs(
    run: RunName,
    stage: StageName = None,
    runs: Runs = Path("runs"),
    lines: Annotated[int, typer.Option(help="Number of lines.", min=1)] = 40,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue until the stage ends, or Ctrl-C.")
    ] = False,
) -> None:
    """Print the end of a stage's log; default: of the stage that is running or has failed."""
    from launch.status.logs import show_log
    from launch.status.lookup import find_run

    try:
        show_log(find_run(run, runs), stage, lines, follow=follow)
    except KeyboardInterrupt:
        return


@cluster_app.command(
    epilog="Examples:  [bold]mezzotint cancel quickstart[/]  ·  "
    "[bold]mezzotint cancel quickstart prior[/]"
)
def cancel(
    run: RunName,
    stage: StageName = None,
    runs: Runs = Path("runs"),
    *,
    as_json: AsJson = False,
) -> None:
    """Cancel the jobs of a run, or of a stage and those that wait for it; checkpoints stay."""
    from launch.status.lookup import find_run
    from launch.submit import cancel

    root = find_run(run, runs)
    jobs = cancel.cancel(root, stage)
    typer.echo((cancel.to_json if as_json else cancel.to_text)(jobs, root.name))
