"""`mezzotint inspect-mask` and `complete`: the transformer prior."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import (
    AsJson,
    Device,
    ForcePreprocessing,
    ImageFilter,
    ImageFit,
    ImageOut,
    Processes,
)

prior_app = typer.Typer()


@prior_app.command(
    "inspect-mask",
    epilog="Examples:  [bold]mezzotint inspect-mask recipes/dalle_prior_12b.yaml --out masks"
    "[/]  ·  [bold]mezzotint inspect-mask recipes/emoji_prior.yaml model.mask_flavor=paper "
    "--json[/]",
)
def inspect_mask(
    recipe: Annotated[Path, typer.Argument(help="A recipe of a prior, one YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Dotted settings, like model.layers=8."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for a PNG of each mask.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show the attention masks of a prior: images, density, what is saved, a check of causality."""
    from launch.dry_run.attention_masks import inspect_masks
    from trainer.recipe import load

    inspection = inspect_masks(load(recipe, overrides or []), out)
    typer.echo(inspection.to_json() if as_json else inspection.to_text())


@prior_app.command(
    epilog="Examples:  [bold]mezzotint complete runs/quickstart photo.png 'man pilot'[/]  ·  "
    "[bold]mezzotint complete runs/quickstart face.png 'woman artist: dark skin tone' --rows 4[/]"
)
def complete(
    run: Annotated[Path, typer.Argument(help="A pipeline's run directory (runs/NAME).")],
    image: Annotated[Path, typer.Argument(help="The image whose upper part is kept.")],
    captions: Annotated[list[str], typer.Argument(help="What the image shows.")],
    out: ImageOut = Path("completed.png"),
    system: Annotated[
        str, typer.Option(help="An evaluate stage's system of kind dalle.")
    ] = "dalle",
    rows: Annotated[
        int | None, typer.Option(help="Rows of codes kept; 7 of 16 by default.", min=0)
    ] = None,
    number: Annotated[int, typer.Option(help="Images shown per caption.", min=1)] = 4,
    candidates: Annotated[int, typer.Option(help="Images generated to choose from.", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Same seed, same images.", min=0)] = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale; the pipeline's by default.", min=0)
    ] = None,
    device: Device = None,
    processes: Processes = None,
    *,
    image_fit: ImageFit = None,
    image_filter: ImageFilter = None,
    force_preprocessing: ForcePreprocessing = False,
) -> None:
    """Complete an image from its upper part, as each caption says, with a trained prior."""
    from launch.sampling.complete import CompleteOptions
    from launch.sampling.complete import complete as complete_image
    from mezzotint.common.preprocessing import StatedPreprocessing

    options = CompleteOptions(
        system=system,
        rows=rows,
        number=number,
        candidates=candidates,
        seed=seed,
        guidance=guidance,
        device=device,
        processes=processes,
        preprocessing=StatedPreprocessing.of_options(
            image_fit, image_filter, force=force_preprocessing
        ),
    )
    kept = complete_image(run, image, captions, out, options)
    if kept is not None:
        typer.echo(f"{out}: the upper {kept} rows kept, {number} completions of each caption")
