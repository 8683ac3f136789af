"""Options of `mezzotint sample` for controls."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from launch.sampling.controls import ControlOptions

PANEL = "Controls"
Hints = Annotated[
    list[Path] | None,
    typer.Option("--control", help="A hint file, one for each control.", rich_help_panel=PANEL),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--control-model", help="The run of one more control of RUN.", rich_help_panel=PANEL
    ),
]
Scales = Annotated[
    list[float] | None,
    typer.Option(
        "--control-scale",
        help="Strength, 1 by default: once for all controls or once each.",
        min=0,
        rich_help_panel=PANEL,
    ),
]
Intervals = Annotated[
    list[str] | None,
    typer.Option(
        "--control-interval",
        metavar="LOW,HIGH",
        help="Times in which it acts, 0 (image) to 1 (noise).",
        rich_help_panel=PANEL,
    ),
]
GuessModes = Annotated[
    Literal["off", "power", "logspace"],
    typer.Option(
        "--guess-mode",
        help="Weaker early layers, and no control on guidance's unconditional side: 0.825^(12-i), "
        "or equal steps of the logarithm.",
        rich_help_panel=PANEL,
    ),
]
Detect = Annotated[
    bool,
    typer.Option(
        "--detect",
        help="The files of --control are images: the detector of the control's training makes "
        "their hints.",
        rich_help_panel=PANEL,
    ),
]


def stated(
    hints: list[Path] | None,
    models: list[str] | None,
    scales: list[float] | None,
    intervals: list[str] | None,
    guess: Literal["off", "power", "logspace"],
    *,
    detect: bool,
) -> "ControlOptions":
    """What the options say of controls."""
    from launch.sampling.controls import ControlOptions

    lists = tuple(hints or ()), tuple(models or ()), tuple(scales or ()), tuple(intervals or ())
    return ControlOptions(*lists, guess=guess, detect=detect)
