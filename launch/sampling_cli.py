"""`mezzotint sample`: pictures of captions."""

from pathlib import Path
from typing import Annotated

import typer

sampling_app = typer.Typer()


@sampling_app.command(
    epilog='Examples:  [bold]mezzotint sample runs/quickstart "woman firefighter: dark skin tone"'
    "[/]  ·  [bold]mezzotint sample runs/quickstart --system dalle --candidates 64 --processes 2 "
    "'man pilot'[/]"
)
def sample(
    run: Annotated[Path, typer.Argument(help="A pipeline's run directory (runs/NAME).")],
    captions: Annotated[list[str], typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("sample.png"),
    system: Annotated[
        str, typer.Option(help="An evaluate stage's system: cascade or dalle.")
    ] = "cascade",
    number: Annotated[int, typer.Option(help="Pictures shown per caption.", min=1)] = 4,
    candidates: Annotated[
        int | None,
        typer.Option(help="Pictures dalle draws per caption, of which the best are shown.", min=1),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            help="Processes that draw candidates, one thread each; same pictures by any number.",
            min=1,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same pictures.", min=0)] = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; the pipeline's by default.", min=0)
    ] = None,
) -> None:
    """Draw pictures from captions with a trained pipeline, as one labelled sheet."""
    from launch.sampling import Drawing, draw_sheet

    drawing = Drawing(
        system=system,
        number=number,
        candidates=candidates,
        processes=processes,
        seed=seed,
        guidance=guidance,
    )
    if draw_sheet(run, captions, out, drawing):
        typer.echo(f"{out}: {number} pictures of each of {len(captions)} captions")
