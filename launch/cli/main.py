"""The command line. Every command imports its work inside, so that `--help` is fast."""

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from launch.cli.cluster import cluster_app
from launch.cli.data import data_app
from launch.cli.edit import edit_app
from launch.cli.options import (
    AsJson,
    ClusterFile,
    Device,
    Overrides,
    Processes,
    RecipeFile,
    Redo,
    Runs,
)
from launch.cli.prior import prior_app
from launch.cli.sample import sampling_app
from launch.cli.tracking import tracking_app
from launch.cli.weights import weights_app
from launch.errors import run_command

app = typer.Typer(
    name="mezzotint",
    help="Train, sample and evaluate text-to-image systems.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(cluster_app)
app.add_typer(sampling_app)
app.add_typer(prior_app)
app.add_typer(weights_app)
app.add_typer(data_app, name="data")
app.add_typer(edit_app, name="edit")
app.add_typer(tracking_app, name="tracking")


@app.command(
    epilog="Examples:  [bold]mezzotint train recipes/emoji_dvae.yaml[/]  ·  "
    "[bold]mezzotint train recipes/emoji_base.yaml steps=200 engine.zero=2 --name try[/]"
)
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Run name; default: the recipe's.")] = None,
) -> None:
    """Train a recipe; the same command again resumes it, or does nothing when it is finished."""
    from launch.progress import Reporter
    from launch.train.local import is_main_process
    from launch.train.local import train as train_recipe
    from trainer.recipe import load
    from trainer.run import RunDirectory
    from trainer.tracking.address import default_uri
    from trainer.tracking.environment import tracking_from_environment

    settings = [*(overrides or []), *([f"name={name}"] if name else [])]
    loaded = load(recipe, settings)
    run = RunDirectory(runs / loaded.name)
    setup_logging()
    main = is_main_process()  # the other ranks of torchrun or srun report nothing
    with Reporter(run.path if main else None, shows=main) as reporter:
        train_recipe(loaded, run, tracking_from_environment(default_uri(runs)), reporter)
    if main:
        typer.echo(f"{run.model}: the trained model")


@app.command(
    epilog="Examples:  [bold]mezzotint run recipes/pipelines/quickstart.yaml[/]  ·  "
    "[bold]mezzotint run recipes/pipelines/quickstart.yaml --redo prior[/]"
)
def run(
    pipeline: Annotated[Path, typer.Argument(help="A pipeline, one YAML file.")],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    redo: Redo = None,
) -> None:
    """Run the stages of a pipeline on this machine; finished stages are skipped."""
    from launch.pipeline.config import load_pipeline
    from launch.pipeline.runner import run_pipeline
    from launch.tracking.ui import dashboard_hint

    loaded = load_pipeline(pipeline, overrides or [])
    result = run_pipeline(loaded, runs, redo=redo or [])
    root = runs / loaded.name
    if result.skipped:
        typer.echo(f"already finished: {', '.join(result.skipped)}")
    if result.failed:
        hint = f"; not started: {', '.join(result.cancelled)}" if result.cancelled else ""
        raise SystemExit(
            f"failed: {', '.join(result.failed)}{hint}. Logs are in {root}/STAGE/logs; "
            "the same command resumes the run"
        )
    if result.done:
        stages = "1 stage" if len(result.done) == 1 else f"{len(result.done)} stages"
        typer.echo(f"{stages} run in {result.seconds:.0f} s")
    if (root / "index.html").is_file():
        typer.echo(f"Result page: {root / 'index.html'}")
    typer.echo(dashboard_hint(runs))


@app.command(hidden=True)
def stage(
    root: Annotated[Path, typer.Argument(help="The run directory of a pipeline.")],
    name: Annotated[str, typer.Argument(help="One of its stages.")],
) -> None:
    """Run one stage of a pipeline run (the process that `run` and `submit` start)."""
    from launch.pipeline.stage_process import run_stage

    setup_logging()
    run_stage(root, name)


@app.command(
    epilog="Examples:  [bold]mezzotint check recipes/emoji_base.yaml batch=64 engine.zero=3[/]  ·  "
    "[bold]mezzotint check recipes/dalle_prior_12b.yaml --cluster cluster.yaml --nodes 32[/]"
)
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    cluster: ClusterFile | None = None,
    nodes: Annotated[
        int | None, typer.Option(help="Nodes of the job; default: the cluster file's.", min=1)
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Without a cluster: processes on this machine.", min=1)
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Print a recipe's parameter counts, memory, DeepSpeed config and job; starts nothing."""
    from launch.dry_run.report import dry_run
    from launch.dry_run.text import to_text
    from launch.slurm.config import load_cluster
    from trainer.recipe import load

    report = dry_run(
        load(recipe, overrides or []),
        runs,
        processes=processes,
        cluster=None if cluster is None else load_cluster(cluster),
        nodes=nodes,
    )
    typer.echo(report.to_json() if as_json else to_text(report))


@app.command(
    epilog="Examples:  [bold]mezzotint evaluate evaluation.yaml --out runs/evaluation "
    "limit.test=50[/]  ·  [bold]mezzotint evaluate evaluation.yaml --sweep "
    "system.upsampler_sampling.level=0,0.02,0.05 limit.train=200[/]"
)
def evaluate(
    config: Annotated[Path, typer.Argument(help="An evaluation, one YAML file.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Directory of the report, samples and grids.")] = Path(
        "runs/evaluation"
    ),
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,C",
            help="Evaluate under each value of a setting, on training captions alone, and mark the "
            "best. Several: every combination.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="The metric that chooses in a sweep, NAME or NAME/GROUP."),
    ] = None,
    device: Device = None,
    processes: Processes = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Evaluate a text-to-image system, an autoencoder, a class-conditional model or a cascade."""
    from launch.evaluation_sweep import evaluate_command

    text = evaluate_command(
        config,
        overrides or [],
        out,
        sweep=sweep or [],
        metric=metric,
        as_json=as_json,
        device=device,
        processes=processes,
    )
    typer.echo(text)


@app.command(
    epilog="Examples:  [bold]mezzotint conform runs/quickstart[/]  ·  [bold]mezzotint conform "
    "runs/emoji_base --no-updates --json[/]"
)
def conform(
    run_directory: Annotated[
        Path, typer.Argument(metavar="RUN", help="A training run, or a pipeline's run directory.")
    ],
    device: Device = None,
    *,
    updates: Annotated[
        bool, typer.Option(help="Also compare updates of one process with those of two.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Check trained models for faults of published training scripts; exit code 1 if one fails."""
    from launch.conform.conform import conform as check_runs

    found = check_runs(run_directory, device=device, updates=updates)
    typer.echo(found.to_json() if as_json else found.to_text())
    if not found.passed:
        raise SystemExit(1)


@app.command(epilog="Example:  [bold]mezzotint dashboard --port 5001[/]")
def dashboard(
    runs: Runs = Path("runs"),
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Start MLflow's web interface for all runs (the sqlite store under the runs directory)."""
    from launch.tracking.ui import serve_ui

    sys.exit(serve_ui(runs, host, port))


def setup_logging() -> None:
    """Log messages of this project from INFO, and those of libraries from WARNING, to stderr."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for package in ("trainer", "launch", "data_pipeline", "evaluation", "mezzotint", "models"):
        logging.getLogger(package).setLevel(logging.INFO)


def main() -> None:
    """The `mezzotint` command."""
    from trainer.tracking.address import export_absolute_uri

    export_absolute_uri()
    # Pillow's, of damaged EXIF, without the name of the file.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
    run_command(app)


if __name__ == "__main__":
    main()
