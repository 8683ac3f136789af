"""Options that several commands share."""

from typing import Annotated

import typer

Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; all GPUs by default, else the CPU.")
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="Processes that share the work, with the same result for any number; one per GPU by "
        "default.",
        min=1,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
