"""How runs stand, shown: a table for people, JSON for programs, once or as long as it changes."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

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
VOLATILE = ("seconds_left", "heard")
"""What changes without anything having happened."""
INTERVAL = 2.0
"""Seconds between two looks."""
NUMERIC_COLUMNS = ("step", "loss", "images/s", "left")
WIDE_TERMINAL = 110
"""Characters from which on jobs and nodes have columns; else they stand below the table."""
REPORT_TIMEOUT = 900.0
"""Seconds without a word from a running stage that are worth telling."""


def show(look: Callable[[], list[RunStatus]], *, listed: bool, as_json: bool) -> None:
    """Print how runs stand; `listed` is one line per run instead of all stages of one."""
    runs = look()
    if as_json:
        sys.stdout.write(
            json.dumps(to_tree(runs, listed=listed), indent=1, ensure_ascii=False) + "\n"
        )
    else:
        console = Console(highlight=False)
        console.print(render(runs, listed=listed, now=time.time(), width=console.width))


def watch(look: Callable[[], list[RunStatus]], *, listed: bool, as_json: bool) -> None:
    """Show how runs stand until all have ended or Ctrl-C; with JSON, one line per change."""
    try:
        if as_json:
            watch_json(look, listed=listed)
        else:
            watch_table(look, listed=listed)
    except KeyboardInterrupt:
        return


def watch_json(look: Callable[[], list[RunStatus]], *, listed: bool) -> None:
    """One JSON line per change."""
    before = None
    while True:
        runs = look()
        facts = to_tree(runs, listed=listed)
        if without_volatile(facts) != before:
            before = without_volatile(facts)
            sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        if all(run.ended for run in runs):
            return
        time.sleep(INTERVAL)


def watch_table(look: Callable[[], list[RunStatus]], *, listed: bool) -> None:
    """A table redrawn in place; without a terminal, printed again at each change."""
    console = Console(highlight=False)
    before = None
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            runs = look()
            shown = render(runs, listed=listed, now=time.time(), width=console.width)
            facts = without_volatile(to_tree(runs, listed=listed))
            if console.is_terminal:
                live.update(shown, refresh=True)
            elif facts != before:
                console.print(shown, "")
            before = facts
            if all(run.ended for run in runs):
                return
            time.sleep(INTERVAL)


def to_tree(runs: Sequence[RunStatus], *, listed: bool) -> dict[str, Any]:
    """Runs as plain values: one run, or all of a list under `runs`."""
    plain = [{**plain_value(asdict(run)), "stages_total": len(run.stages)} for run in runs]
    return {"runs": plain} if listed else plain[0]


def plain_value(value: Any) -> Any:  # noqa: ANN401 - whatever a dataclass holds
    """The value with paths as text and without numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: plain_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def without_volatile(facts: Any) -> Any:  # noqa: ANN401 - plain values of any shape
    """The facts without what changes by itself."""
    if isinstance(facts, dict):
        return {key: without_volatile(value) for key, value in facts.items() if key not in VOLATILE}
    return [without_volatile(each) for each in facts] if isinstance(facts, list) else facts


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
        told = next((stage for stage in run.stages if stage.state == run.state), None)
        since = told.since if told else None
        table.add_row(
            run.name,
            Text(run.state, STYLES[run.state]),
            f"{run.done}/{len(run.stages)}",
            activity(run),
            ago(since, now) if since and run.state != "waiting" else "",
        )
    return Group(table, *notes(run for run in runs))


def activity(run: RunStatus) -> str:
    """What a run is at, in a few words."""
    if run.state == "finished":
        return ""
    words = [
        " ".join(filter(None, [stage.stage, progress(stage), eta(stage) and f"({eta(stage)})"]))
        for stage in run.stages
        if stage.state == run.state and run.state != "not submitted"
    ]
    return ", ".join([*words[:2], *([f"{len(words) - 2} more"] if len(words) > 2 else [])])


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
    why = [told for stage in run.stages if (told := details(stage, now, wide=wide)) is not None]
    return Group(head, table, *why, *links(run), *notes([run]))


def stage_row(stage: StageStatus, *, wide: bool) -> dict[str, str | Text]:
    """A stage's line in the table, by column."""
    return {
        "stage": Text(stage.stage),
        "state": Text(stage.state, STYLES[stage.state]),
        "job": str(stage.job) if wide and stage.job is not None else "",
        "nodes": format_nodes(stage.nodes) if wide else "",
        "step": progress(stage),
        "loss": f"{stage.loss:.4g}" if stage.loss is not None else "",
        "images/s": f"{stage.images_per_second:,.0f}" if stage.images_per_second else "",
        "left": eta(stage) if stage.state == "running" else "",
    }


def stage_table(rows: Sequence[dict[str, str | Text]]) -> Table:
    """All stages; a column in which nothing stands is left out."""
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
    """The look of every table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def details(stage: StageStatus, now: float, *, wide: bool) -> RenderableType | None:
    """What there is to say of a stage besides its line: why it is what it is, first of all."""
    words = [stage.reason or ""]
    if stage.reason and stage.since and stage.state == "failed":
        words = [f"{stage.reason} ({ago(stage.since, now)})"]
    if stage.state == "running" and stage.heard and now - stage.heard > REPORT_TIMEOUT:
        words.append(f"has told nothing for {duration(now - stage.heard)}")
    if stage.restarts:
        words.append(f"restarted {stage.restarts} {'times' if stage.restarts > 1 else 'time'}")
    if not wide and stage.job is not None and stage.state != "finished":
        on = f" on {format_nodes(stage.nodes)}" if stage.nodes else ""
        words.append(f"job {stage.job}{on}")
    elif not wide and stage.nodes and stage.state == "running":
        words.append(f"on {format_nodes(stage.nodes)}")
    told = "; ".join(filter(None, words))
    if not told:
        return None
    text = Text.assemble((stage.stage, STYLES[stage.state]), f": {told}")
    return Padding(text, (0, 0, 0, 2))


def links(run: RunStatus) -> list[RenderableType]:
    """Where else a run can be seen."""
    lines: list[RenderableType] = []
    if run.tracking is not None:
        identifier = f"  run {run.tracking.run_id}" if run.tracking.run_id else ""
        lines.append(Text(f"MLflow: {run.tracking.uri}{identifier}".replace(":  ", ": ")))
    if run.page is not None:
        lines.append(Text(f"result page: {run.page}"))
    return lines


def notes(runs: Iterable[RunStatus]) -> list[RenderableType]:
    """What could not be asked or read, each once."""
    notes = dict.fromkeys(note for run in runs for note in run.notes)
    return [Text(note, "yellow") for note in notes]


def progress(stage: StageStatus) -> str:
    """How far a stage is; the phase is named where it is not training."""
    if stage.step is None:
        return f"of {stage.steps:,}" if stage.steps and stage.state != "finished" else ""
    phase = "" if stage.phase in (None, "train") or stage.state == "finished" else f"{stage.phase} "
    return f"{phase}{stage.step:,}/{stage.steps:,}" if stage.steps else f"{phase}{stage.step:,}"


def eta(stage: StageStatus) -> str:
    """Time left, in words."""
    return duration(stage.seconds_left) if stage.seconds_left is not None else ""


def format_nodes(nodes: Sequence[str]) -> str:
    """Nodes in one short word."""
    if len(nodes) < 3:
        return ", ".join(nodes)
    alike = nodes[0].rstrip("0123456789")
    return f"{nodes[0]}..{nodes[-1].removeprefix(alike)} ({len(nodes)})"


def duration(seconds: float) -> str:
    """A time of seconds, minutes, hours or days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    whole = timedelta(seconds=seconds)
    hours, minutes = divmod(whole.seconds // 60, 60)
    return f"{whole.days} d {hours} h" if whole.days else f"{hours} h {minutes:02} min"


def ago(moment: float | None, now: float) -> str:
    """How long ago a time was."""
    return "" if moment is None else f"{duration(max(0.0, now - moment))} ago"
