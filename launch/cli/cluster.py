"""`mezzotint submit`, `status`, `logs` and `cancel`: runs on a cluster, and on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

cluster_app = typer.Typer()

Runs = Annotated[Path, typer.Option(help="Where run directories are kept.")]
RunName = Annotated[str, typer.Argument(help="A run: its name under --runs, or its directory.")]
StageName = Annotated[str | None, typer.Argument(help="One of its stages.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@cluster_app.command(
    epilog="Examples:  [bold]mezzotint submit recipes/pipelines/quickstart.yaml "
    "--cluster recipes/clusters/lab.yaml[/]  ·  "
    "[bold]mezzotint submit recipes/emoji_base.yaml batch=64 --cluster gpu.yaml --dry-run[/]"
)
def submit(
    source: Annotated[
        Path, typer.Argument(metavar="RECIPE|PIPELINE", help="What to train, one YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Dotted settings, like optimizer.lr.peak=1e-4."
        ),
    ] = None,
    *,
    cluster: Annotated[Path, typer.Option(help="A cluster file (see recipes/clusters/).")],
    runs: Runs = Path("runs"),
    redo: Annotated[
        list[str] | None,
        typer.Option(help="Move a finished stage and all that reads it aside, and run them again."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch scripts; submit nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send a recipe or a pipeline to SLURM, one job per stage; the same command again goes on."""
    from launch.slurm.config import load_cluster as load_cluster
    from launch.submit.submit import load_source, plan_submit
    from launch.submit.submit import submit as send

    loaded, machines = load_source(source, overrides or []), load_cluster(cluster)
    act = plan_submit if dry_run else send
    result = act(loaded, machines, runs, redo=redo or [])
    typer.echo(result.to_json() if as_json else result.to_text())


@cluster_app.command(
    epilog="Examples:  [bold]mezzotint status quickstart[/]  ·  "
    "[bold]mezzotint status quickstart --watch[/]  ·  [bold]mezzotint status --json[/]"
)
def status(
    run: Annotated[
        str | None,
        typer.Argument(help="A run: its name under --runs, or its directory. All runs by default."),
    ] = None,
    runs: Runs = Path("runs"),
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look every 2 s until all has ended, or Ctrl-C.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --watch, a line per change.")
    ] = False,
) -> None:
    """Show how runs stand: jobs, nodes, steps, losses, speed, time left, from SLURM and disk."""
    from launch.status import table
    from launch.status.lookup import all_runs, find_run
    from launch.status.run import RunStatus, query

    def facts() -> list[RunStatus]:
        return query(all_runs(runs) if run is None else [find_run(run, runs)])

    show = table.watch if watch else table.show
    show(facts, listed=run is None, as_json=as_json)


@cluster_app.command(
    epilog="Examples:  [bold]mezzotint logs quickstart --follow[/]  ·  "
    "[bold]mezzotint logs quickstart dvae --lines 200[/]"
)
def logs(
    run: RunName,
    stage: StageName = None,
    runs: Runs = Path("runs"),
    lines: Annotated[int, typer.Option(help="How many of the last lines.", min=1)] = 40,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the stage ends, or Ctrl-C.")
    ] = False,
) -> None:
    """Print the end of a stage's log; by default of the stage that runs or has failed."""
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
    """End the jobs of a run, or of a stage and those that wait for it; checkpoints stay."""
    from dataclasses import asdict

    from launch.status.lookup import find_run
    from launch.submit import cancel

    root = find_run(run, runs)
    told = cancel.cancel(root, stage)
    plain = {"run": root.name, "cancelled": [asdict(each) for each in told]}
    typer.echo(json.dumps(plain) if as_json else cancel.to_text(told, root.name))
