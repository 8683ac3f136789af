"""The output of `mezzotint status`: a table or JSON, once or with every change."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from launch.progress import format_rate
from launch.status.run import RunStatus
from launch.status.stage import StageStatus

STYLES = {
    "finished": "green",
    "running": "bold cyan",
    "requeued": "yellow",
    "pending": "yellow",
    "waiting": "dim",
    "failed": "bold red",
    "cancelled": "red",
    "stopped": "magenta",
    "not submitted": "dim",
    "unknown": "magenta",
}
VOLATILE = ("seconds_left", "last_report")
"""Fields that change although nothing has happened."""
INTERVAL = 2.0
"""Seconds between two queries of `--watch`."""
NUMERIC_COLUMNS = ("step", "loss", "images/s", "left")
WIDE_TERMINAL = 110
"""Characters from which on jobs and nodes have columns; else they stand below the table."""
REPORT_TIMEOUT = 900.0
"""Seconds without a progress report of a running stage after which the table says so."""
Query = Callable[[], list[RunStatus]]
_RUN = TypeAdapter(RunStatus)


def show(query: Query, *, listed: bool, as_json: bool) -> None:
    """Print the status of runs; `listed`: one line per run instead of the stages of one run."""
    runs = query()
    if as_json:
        tree = to_tree(runs, listed=listed)
        sys.stdout.write(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    else:
        console = Console(highlight=False)
        console.print(render(runs, listed=listed, now=time.time(), width=console.width))


def watch(query: Query, *, listed: bool, as_json: bool) -> None:
    """Show the status of runs until all have ended or Ctrl-C.

    A table is updated in place; without a terminal, or as JSON, there is one output per change.
    """
    console, before = Console(highlight=False), None
    updates_in_place = console.is_terminal and not as_json
    live = Live(console=console, auto_refresh=False, transient=False)
    with suppress(KeyboardInterrupt), live if updates_in_place else nullcontext():
        while True:
            runs = query()
            tree = to_tree(runs, listed=listed)
            changed = without_volatile(tree) != before
            before = without_volatile(tree)
            if as_json and changed:
                sys.stdout.write(json.dumps(tree, ensure_ascii=False) + "\n")
                sys.stdout.flush()
            elif not as_json and (changed or updates_in_place):
                table = render(runs, listed=listed, now=time.time(), width=console.width)
                if updates_in_place:
                    live.update(table, refresh=True)
                else:
                    console.print(table, "")
            if all(run.ended for run in runs):
                return
            time.sleep(INTERVAL)


def to_tree(runs: Sequence[RunStatus], *, listed: bool) -> dict[str, Any]:
    """Runs as plain values: one run, or all of a list under `runs`."""
    plain = [{**json.loads(_RUN.dump_json(run)), "stages_total": len(run.stages)} for run in runs]
    return {"runs": plain} if listed else plain[0]


def without_volatile(tree: Any) -> Any:  # noqa: ANN401 - plain values of any shape
    """The tree without fields that change by themselves."""
    if isinstance(tree, dict):
        return {key: without_volatile(value) for key, value in tree.items() if key not in VOLATILE}
    return [without_volatile(each) for each in tree] if isinstance(tree, list) else tree


def render(runs: Sequence[RunStatus], *, listed: bool, now: float, width: int) -> RenderableType:
    """One run with its stages, or a list of runs."""
    return (
        render_list(runs, now) if listed else render_run(runs[0], now, wide=width >= WIDE_TERMINAL)
    )


def render_list(runs: Sequence[RunStatus], now: float) -> RenderableType:
    """One line per run."""
    if not runs:
        return Text("no runs yet")
    table = plain_table("run", "state", "stages", "now", "since")
    table.columns[3].no_wrap = False
    for run in runs:
        since = next((stage.since for stage in run.stages if stage.state == run.state), None)
        table.add_row(
            run.name,
            Text(run.state, STYLES[run.state]),
            f"{run.done}/{len(run.stages)}",
            activity(run),
            ago(since, now) if since and run.state != "waiting" else "",
        )
    return Group(table, *notes(run for run in runs))


def activity(run: RunStatus) -> str:
    """The stages that give a run its state, with their progress."""
    if run.state in ("finished", "not submitted"):
        return ""
    parts = [
        " ".join(filter(None, [stage.stage, progress(stage), eta(stage) and f"({eta(stage)})"]))
        for stage in run.stages
        if stage.state == run.state
    ]
    return ", ".join([*parts[:2], *([f"{len(parts) - 2} more"] if len(parts) > 2 else [])])


def render_run(run: RunStatus, now: float, *, wide: bool) -> RenderableType:
    """A run with all its stages."""
    head = Text.assemble(
        (run.name, "bold"),
        "  ",
        (run.state, STYLES[run.state]),
        f"  {run.done} of {len(run.stages)} {'stages' if len(run.stages) > 1 else 'stage'} done",
        f"  on {run.cluster}" if run.cluster else "",
    )
    table = stage_table([stage_row(stage, wide=wide) for stage in run.stages])
    lines = [text for stage in run.stages if (text := details(stage, now, wide=wide)) is not None]
    return Group(head, table, *lines, *links(run), *notes([run]))


def stage_row(stage: StageStatus, *, wide: bool) -> dict[str, str | Text]:
    """The row of a stage, by column."""
    return {
        "stage": Text(stage.stage),
        "state": Text(stage.state, STYLES[stage.state]),
        "job": str(stage.job) if wide and stage.job is not None else "",
        "nodes": format_nodes(stage.nodes) if wide else "",
        "step": progress(stage),
        "loss": f"{stage.loss:.4g}" if stage.loss is not None else "",
        "images/s": format_rate(stage.images_per_second) if stage.images_per_second else "",
        "left": eta(stage) if stage.state == "running" else "",
    }


def stage_table(rows: Sequence[dict[str, str | Text]]) -> Table:
    """All stages, without empty columns."""
    names = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    table = plain_table(*names)
    for column in table.columns:
        column.justify = "right" if column.header in NUMERIC_COLUMNS else "left"
        column.no_wrap = column.header not in ("stage", "nodes")
        column.overflow = "fold"
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def plain_table(*headers: str) -> Table:
    """The layout of every table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def details(stage: StageStatus, now: float, *, wide: bool) -> RenderableType | None:
    """The line below the table about a stage: first of all, the reason of its state."""
    parts = [stage.reason or ""]
    if stage.reason and stage.since and stage.state == "failed":
        parts = [f"{stage.reason} ({ago(stage.since, now)})"]
    if stage.state == "running" and stage.last_report and now - stage.last_report > REPORT_TIMEOUT:
        parts.append(f"no progress report for {duration(now - stage.last_report)}")
    if stage.restarts:
        parts.append(f"restarted {stage.restarts} {'times' if stage.restarts > 1 else 'time'}")
    if not wide and stage.job is not None and stage.state != "finished":
        on = f" on {format_nodes(stage.nodes)}" if stage.nodes else ""
        parts.append(f"job {stage.job}{on}")
    elif not wide and stage.nodes and stage.state == "running":
        parts.append(f"on {format_nodes(stage.nodes)}")
    text = "; ".join(filter(None, parts))
    if not text:
        return None
    return Padding(Text.assemble((stage.stage, STYLES[stage.state]), f": {text}"), (0, 0, 0, 2))


def links(run: RunStatus) -> list[RenderableType]:
    """The MLflow run and the result page."""
    lines: list[RenderableType] = []
    if run.tracking is not None:
        identifier = f"  run {run.tracking.run_id}" if run.tracking.run_id else ""
        lines.append(Text(f"MLflow: {run.tracking.uri}{identifier}"))
    if run.page is not None:
        lines.append(Text(f"result page: {run.page}"))
    return lines


def notes(runs: Iterable[RunStatus]) -> list[RenderableType]:
    """What could not be queried or read, each once."""
    unique = dict.fromkeys(note for run in runs for note in run.notes)
    return [Text(note, "yellow") for note in unique]


def progress(stage: StageStatus) -> str:
    """Steps done of all; a phase other than training is named."""
    if stage.step is None:
        return f"of {stage.steps:,}" if stage.steps and stage.state != "finished" else ""
    phase = "" if stage.phase in (None, "train") or stage.state == "finished" else f"{stage.phase} "
    return f"{phase}{stage.step:,}/{stage.steps:,}" if stage.steps else f"{phase}{stage.step:,}"


def eta(stage: StageStatus) -> str:
    """Time left."""
    return duration(stage.seconds_left) if stage.seconds_left is not None else ""


def format_nodes(nodes: Sequence[str]) -> str:
    """`n1, n2`, or `n1..5 (5)` for more than two."""
    if len(nodes) < 3:
        return ", ".join(nodes)
    prefix = nodes[0].rstrip("0123456789")
    return f"{nodes[0]}..{nodes[-1].removeprefix(prefix)} ({len(nodes)})"


def duration(seconds: float) -> str:
    """A duration in seconds, minutes, hours or days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    whole = timedelta(seconds=seconds)
    hours, minutes = divmod(whole.seconds // 60, 60)
    return f"{whole.days} d {hours} h" if whole.days else f"{hours} h {minutes:02} min"


def ago(time: float | None, now: float) -> str:
    """How long ago a time was."""
    return "" if time is None else f"{duration(max(0.0, now - time))} ago"
