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

from launch.stage_status import StageStatus
from launch.status import RunStatus

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
EVERY = 2.0
"""Seconds between two looks."""
SILENT = 900.0
"""Seconds without a word from a running stage that are worth telling."""


def show(look: Callable[[], list[RunStatus]], *, listed: bool, as_json: bool) -> None:
    """Print how runs stand; `listed` is one line per run instead of all stages of one."""
    runs = look()
    if as_json:
        sys.stdout.write(json.dumps(tree(runs, listed=listed), indent=1, ensure_ascii=False) + "\n")
    else:
        Console(highlight=False).print(view(runs, listed=listed, now=time.time()))


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
        facts = tree(runs, listed=listed)
        if steady(facts) != before:
            before = steady(facts)
            sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        if all(run.ended for run in runs):
            return
        time.sleep(EVERY)


def watch_table(look: Callable[[], list[RunStatus]], *, listed: bool) -> None:
    """A table redrawn in place; without a terminal, printed again at each change."""
    console = Console(highlight=False)
    before = None
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            runs = look()
            shown = view(runs, listed=listed, now=time.time())
            facts = steady(tree(runs, listed=listed))
            if console.is_terminal:
                live.update(shown, refresh=True)
            elif facts != before:
                console.print(shown, "")
            before = facts
            if all(run.ended for run in runs):
                return
            time.sleep(EVERY)


def tree(runs: Sequence[RunStatus], *, listed: bool) -> dict[str, Any]:
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


def steady(facts: Any) -> Any:  # noqa: ANN401 - plain values of any shape
    """The facts without what changes by itself."""
    if isinstance(facts, dict):
        return {key: steady(value) for key, value in facts.items() if key not in VOLATILE}
    return [steady(each) for each in facts] if isinstance(facts, list) else facts


def view(runs: Sequence[RunStatus], *, listed: bool, now: float) -> RenderableType:
    """One run with its stages, or a list of runs."""
    return run_list(runs, now) if listed else run_view(runs[0], now)


def run_list(runs: Sequence[RunStatus], now: float) -> RenderableType:
    """One line per run."""
    if not runs:
        return Text("no runs yet")
    table = plain_table("run", "state", "stages", "now", "since")
    for run in runs:
        told = next((stage for stage in run.stages if stage.state == run.state), None)
        since = told.since if told else None
        table.add_row(
            Text(run.name, overflow="fold"),
            Text(run.state, STYLES[run.state]),
            f"{run.done}/{len(run.stages)}",
            Text(doing(run), overflow="ellipsis", no_wrap=True),
            ago(since, now) if since and run.state != "waiting" else "",
        )
    return Group(table, *remarks(run for run in runs))


def doing(run: RunStatus) -> str:
    """What a run is at, in a few words."""
    if run.state == "finished":
        return ""
    words = [
        " ".join(filter(None, [stage.stage, reached(stage), left(stage)]))
        for stage in run.stages
        if stage.state == run.state and run.state != "not submitted"
    ]
    return ", ".join(words)


def run_view(run: RunStatus, now: float) -> RenderableType:
    """A run with all its stages."""
    head = Text.assemble(
        (run.name, "bold"),
        "  ",
        (run.state, STYLES[run.state]),
        f"  {run.done} of {len(run.stages)} {'stages' if len(run.stages) > 1 else 'stage'} done",
        f"  on {run.cluster}" if run.cluster else "",
    )
    table = plain_table("stage", "state", "job", "nodes", "step", "loss", "images/s", "left", "re")
    for name in ("step", "loss", "images/s", "left", "re"):
        column = next(each for each in table.columns if each.header == name)
        column.justify = "right"
    for stage in run.stages:
        table.add_row(*cells(stage))
    why = [words for stage in run.stages if (words := because(stage, now)) is not None]
    return Group(head, table, *why, *links(run), *remarks([run]))


def cells(stage: StageStatus) -> list[RenderableType]:
    """A stage's line in the table."""
    running = stage.state == "running"
    return [
        Text(stage.stage, overflow="fold"),
        Text(stage.state, STYLES[stage.state]),
        str(stage.job) if stage.job is not None else "",
        node_words(stage.nodes),
        reached(stage),
        f"{stage.loss:.4g}" if stage.loss is not None else "",
        f"{stage.images_per_second:,.0f}" if stage.images_per_second is not None else "",
        left(stage) if running else "",
        str(stage.restarts) if stage.restarts else "",
    ]


def plain_table(*headers: str) -> Table:
    """The look of every table."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def because(stage: StageStatus, now: float) -> RenderableType | None:
    """Why a stage is what it is, where that needs saying."""
    words = stage.reason
    if stage.state == "running" and stage.heard and now - stage.heard > SILENT:
        silent = f"has told nothing for {duration(now - stage.heard)}"
        words = f"{words}; {silent}" if words else silent
    if words is None:
        return None
    since = f" ({ago(stage.since, now)})" if stage.since and stage.state == "failed" else ""
    text = Text.assemble((stage.stage, STYLES[stage.state]), f": {words}{since}")
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


def remarks(runs: Iterable[RunStatus]) -> list[RenderableType]:
    """What could not be asked or read, each once."""
    notes = dict.fromkeys(note for run in runs for note in run.notes)
    return [Text(note, "yellow") for note in notes]


def reached(stage: StageStatus) -> str:
    """How far a stage is; the phase is named where it is not training."""
    if stage.step is None:
        return f"of {stage.steps:,}" if stage.steps and stage.state != "finished" else ""
    phase = "" if stage.phase in (None, "train") or stage.state == "finished" else f"{stage.phase} "
    return f"{phase}{stage.step:,}/{stage.steps:,}" if stage.steps else f"{phase}{stage.step:,}"


def left(stage: StageStatus) -> str:
    """Time left, in words."""
    return duration(stage.seconds_left) if stage.seconds_left is not None else ""


def node_words(nodes: Sequence[str]) -> str:
    """Nodes in one short word."""
    return ",".join(nodes) if len(nodes) < 3 else f"{nodes[0]}..{nodes[-1]} ({len(nodes)})"


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
